"""Question-answering sets with sentence gold, read from Parquet.

    PARQUET (id, split, question, title, context, sent_start, sent_end, relevant, answers, …) -> checked -> [Example, …]

`context[sent_start[i]:sent_end[i]]` is sentence i, and `relevant[i]` is 1 where it holds the answer or was marked as
evidence. Raises `SourceError` for a file that cannot be read or holds a wrong row, and `ColumnError` for a missing
column; both name the file, and the row and column where there is one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datapipe.errors import ColumnError, ConfigError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapipe.storage.arrays import Bool, Int32, Int64

__all__ = ["COLUMNS", "Example", "hash_order", "read_examples", "splits_of"]

_TEXTS = ("id", "split", "question", "title", "context")
_NUMBERS = ("sent_start", "sent_end", "relevant")
COLUMNS = (*_TEXTS, *_NUMBERS, "answers", "answerable")
"""Columns that a set must have; others are left alone."""


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """A question, a document, and which of its sentences answer.

    Attributes:
        id: Name of the question in its set; need not be unique.
        question: Any text.
        title: Of the document; empty if it has none.
        context: The document.
        starts: Offset of each sentence's first character in the context, int32 (sentences,).
        ends: Offset after its last, int32 (sentences,); sentences lie in order and do not overlap.
        relevant: Whether the sentence is gold, bool (sentences,).
        answers: Answer strings that annotators gave; may be empty.
        answerable: Whether the document answers the question.
    """

    id: str
    question: str
    title: str
    context: str
    starts: Int32
    ends: Int32
    relevant: Bool
    answers: tuple[str, ...]
    answerable: bool


def hash_order(seed: int, *parts: object) -> bytes:
    """A key whose order is random, but the same on every machine: blake2b of the seed and the parts."""
    return hashlib.blake2b("\x1f".join(map(str, (seed, *parts))).encode(), digest_size=8).digest()


def splits_of(path: Path | str) -> dict[str, int]:
    """Questions of each split of a set, by its name. Raises as `read_examples` does."""
    table = _open(Path(path), ("split",))
    counts = table["split"].value_counts().to_pylist()
    return {count["values"]: count["counts"] for count in sorted(counts, key=lambda count: str(count["values"]))}


def read_examples(
    path: Path | str, *, split: str | None = None, limit: int | None = None, seed: int = 0
) -> list[Example]:
    """Read a set, in the order of its file.

    Args:
        path: Parquet file in the layout of this module.
        split: Only this split; None takes all.
        limit: At most so many questions, those first by `hash_order(seed, id)`: the same on every machine, and a
            smaller sample lies inside a larger one. None takes all.
        seed: Another seed, another sample.

    Raises:
        SourceError: The file cannot be read, a row is wrong, or there is no such split; names the row and the column.
        ColumnError: A column is missing or of another type; names the columns there are.
        ConfigError: The limit is no positive number.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1 question, or None for all. Got {limit}")
    path = Path(path)
    table = _open(path, COLUMNS)
    rows = np.arange(table.num_rows)
    if split is not None:
        rows = rows[np.asarray(table["split"].to_pylist(), dtype=object) == split]
        if not rows.size:
            raise SourceError(f"{path}: no row of split {split!r}. It has {splits_of(path)}")
    if limit is not None and rows.size > limit:
        ids = table["id"].to_pylist()
        rows = np.sort(np.array(sorted(rows, key=lambda row: (hash_order(seed, ids[row]), row))[:limit]))
    return list(_examples(path, table.take(pa.array(rows)), rows))


def _open(path: Path, columns: tuple[str, ...]) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path}: not a readable Parquet file: {error}") from error
    there = file.schema_arrow.names
    missing = [name for name in columns if name not in there]
    if missing:
        raise ColumnError(f"{path}: no column {', '.join(missing)}. It has {', '.join(there)}")
    for name in columns:
        found = file.schema_arrow.field(name).type
        if not _fits(name, found):
            raise ColumnError(f"{path}: column {name} must hold {_wanted(name)}. It is of type {found}")
    try:
        file = pq.ParquetFile(path, read_dictionary=[name for name in columns if name == "context"])
        table = file.read(columns=list(columns)).combine_chunks()
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path}: not a readable Parquet file: {error}") from error
    for name in columns:
        if table[name].null_count:
            row = table[name].is_null().to_pylist().index(True)
            raise SourceError(f"{path}, row {row}, column {name}: is null, must be {_wanted(name)}")
    return table


def _fits(name: str, found: pa.DataType) -> bool:
    if name in _TEXTS:
        inner = found.value_type if pa.types.is_dictionary(found) else found
        return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))
    if name == "answerable":
        return bool(pa.types.is_boolean(found))
    if not (pa.types.is_list(found) or pa.types.is_large_list(found)):
        return False
    inner = found.value_type
    return bool(pa.types.is_string(inner) if name == "answers" else pa.types.is_integer(inner))


def _wanted(name: str) -> str:
    if name in _TEXTS:
        return "text"
    if name == "answerable":
        return "true or false"
    return "a list of texts" if name == "answers" else "a list of whole numbers"


def _examples(path: Path, table: pa.Table, rows: Int64) -> Iterator[Example]:
    """Cut the columns into rows; `rows` are their places in the file, for messages."""
    contexts: Any = table["context"].combine_chunks()
    texts, places = contexts.dictionary.to_pylist(), contexts.indices.to_numpy()
    starts, ends, relevant = (_ragged(path, table, name, rows) for name in _NUMBERS)
    columns = (table[name].to_pylist() for name in ("id", "question", "title", "answers", "answerable"))
    for place, (name, question, title, answers, answerable) in enumerate(zip(*columns, strict=True)):
        context = texts[places[place]]
        spans = starts[place], ends[place]
        wrong = _wrong(*spans, relevant[place], len(context))
        if None in answers:
            wrong = "answers", "holds a null"
        if wrong:
            raise SourceError(f"{path}, row {rows[place]}, column {wrong[0]}: {wrong[1]}")
        yield Example(name, question, title, context, *spans, relevant[place] == 1, tuple(answers), answerable)


def _ragged(path: Path, table: pa.Table, name: str, rows: Int64) -> list[Int32]:
    """The lists of a column, as views into one array."""
    lists: Any = table[name].combine_chunks()
    offsets = lists.offsets.to_numpy()
    flat = lists.flatten()
    if flat.null_count:
        at = flat.is_null().to_pylist().index(True)
        row = rows[np.searchsorted(offsets - offsets[0], at, side="right") - 1]
        raise SourceError(f"{path}, row {row}, column {name}: holds a null")
    values = flat.to_numpy().astype(np.int32)
    return np.split(values, (offsets - offsets[0])[1:-1])


def _wrong(starts: Int32, ends: Int32, relevant: Int32, characters: int) -> tuple[str, str] | None:
    """Column and fault of a row whose sentences make no sense; None for a good one."""
    if not starts.size == ends.size == relevant.size:
        return "sent_end", f"{starts.size} starts, {ends.size} ends, {relevant.size} labels; must be as many"
    if not starts.size:
        return None
    if starts[0] < 0 or (starts[1:] < ends[:-1]).any():
        return "sent_start", "sentences must lie in order, not overlap, and begin at 0 or later"
    if (starts >= ends).any() or ends[-1] > characters:
        return (
            "sent_end",
            f"each sentence must end after it begins and within the context of {characters} characters",
        )
    if not np.isin(relevant, (0, 1)).all():
        return "relevant", f"must be 0 or 1. Got {int(relevant[~np.isin(relevant, (0, 1))][0])}"
    return None
