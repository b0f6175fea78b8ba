"""Small files for the tests of sources, and what a source holds in plain Python."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.storage.rowid import content_digests, ids_to_hex
from datapipe.storage.source import Rejected, Source, open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import polars as pl

WRITERS: dict[str, Callable[[pl.DataFrame, Path], None]] = {
    "parquet": lambda frame, path: frame.write_parquet(path),
    "csv": lambda frame, path: frame.write_csv(path),
    "jsonl": lambda frame, path: frame.write_ndjson(path),
    "arrow": lambda frame, path: frame.write_ipc(path),
    "arrows": lambda frame, path: frame.write_ipc_stream(path),
}


def cut(frame: pl.DataFrame, folder: Path, *, suffix: str, files: int) -> Path:
    """Write `frame` into `files` files of nearly equal length below `folder`."""
    folder.mkdir(parents=True)
    bounds = np.linspace(0, frame.height, files + 1).astype(int)
    for index, (start, stop) in enumerate(pairwise(bounds)):
        WRITERS[suffix](frame.slice(start, stop - start), folder / f"part-{index:03d}.{suffix}")
    return folder


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_jsonl(path: Path, records: Sequence[Any]) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def rows_of(source: Source, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """All accepted rows; refused records are passed over."""
    return [row for batch in source.batches(columns, rejected=lambda _: None) for row in batch.table.to_pylist()]


def column_of(path: Path, name: str, **options: Any) -> list[Any]:
    return [row[name] for row in rows_of(open_source(path, **options))]


def refused_by(source: Source, columns: Sequence[str] | None = None) -> list[Rejected]:
    refused: list[Rejected] = []
    for _ in source.batches(columns, rejected=refused.append):
        pass
    return refused


def ordinals_of(source: Source) -> list[tuple[int, int]]:
    """(file, ordinal) of each accepted row."""
    return [(batch.file, int(row)) for batch in source.batches(rejected=lambda _: None) for row in batch.rows]


def digests_of(source: Source) -> list[str]:
    """Digests of all rows, sorted."""
    return sorted(digest for batch in source.batches() for digest in ids_to_hex(content_digests(batch.table)))
