"""Small sets in the shipped layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from provence.evaluation.sets import Example

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def row(**changes: Any) -> dict[str, Any]:
    """A good row: two sentences, of which the second answers."""
    return {
        "id": "q1",
        "split": "test",
        "question": "Who came?",
        "title": "Visits",
        "context": "It rained. Anna came.",
        "sent_start": [0, 11],
        "sent_end": [10, 21],
        "relevant": [0, 1],
        "answers": ["Anna"],
        "answerable": True,
    } | changes


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The rows as a Parquet file."""
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def example(lengths: Sequence[int], gold: Sequence[int] = (), *, name: str = "q") -> Example:
    """A document of sentences of these lengths, one space between two; `gold` are the places that answer."""
    sizes = np.array(lengths, dtype=np.int32)
    starts = np.concatenate([[0], np.cumsum(sizes + 1)[:-1]]).astype(np.int32) if sizes.size else sizes
    relevant = np.isin(np.arange(sizes.size), gold)
    context = " ".join(chr(97 + place % 26) * size for place, size in enumerate(lengths))
    return Example(name, "what?", "", context, starts, starts + sizes, relevant, (), bool(relevant.any()))
