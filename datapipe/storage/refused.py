"""Rows that were refused, kept with their reason: spooled to disk while the source is read, written sorted by place."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from datapipe.storage.sort import ExternalSorter, regrouped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from datapipe.storage.arrays import Int64, UInt64
    from datapipe.storage.source import Rejected, SourceBatch
    from datapipe.storage.stage import StageDir

REJECTED = "rejected.parquet"
CONTENT_BYTES = 64 << 10
"""Bytes of a refused row that are kept."""

_SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("content", pa.binary()),
    ]
)
_MEMORY = 16 << 20
_ROWS = 256  # taken at a time: with their content they may be 16 MiB
_ROW_BITS = 40


def place_keys(file: int | Int64, rows: Int64) -> UInt64:
    """Number places so that they sort by file and row: uint64 (rows,). Rows are below 2**40, files below 2**24."""
    keys: UInt64 = np.asarray(file, np.uint64) << np.uint64(_ROW_BITS) | rows.astype(np.uint64)
    return keys


class RefusedRows:
    """Collects refused rows in bounded memory. A context manager, like the sorter it holds.

    Attributes:
        reasons: Rows by reason.
    """

    def __init__(self, folder: Path) -> None:
        self.reasons: Counter[str] = Counter()
        self._sorter = ExternalSorter(folder, memory_bytes=_MEMORY)
        self._waiting: list[tuple[int, int, str, str, bytes | None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sorter.__exit__(kind, error, trace)

    @property
    def rows(self) -> int:
        """Rows refused so far."""
        return self.reasons.total()

    def add_records(self, records: Sequence[Rejected]) -> None:
        """Take records that the source could not read."""
        self.reasons.update(record.reason for record in records)
        self._waiting += [(each.file, each.row, each.reason, each.detail, each.content) for each in records]
        if len(self._waiting) >= _ROWS:
            self._flush()

    def add_rows(self, batch: SourceBatch, refused: dict[int, tuple[str, str]]) -> None:
        """Take rows of a batch, by position, with reason and detail; their content is the row as JSON."""
        positions = sorted(refused)
        for start in range(0, len(positions), _ROWS):
            some = positions[start : start + _ROWS]
            records = batch.table.take(pa.array(some, pa.int64())).to_pylist()
            for position, record in zip(some, records, strict=True):
                content = json.dumps(record, ensure_ascii=False, default=_shown).encode(errors="replace")
                place = (batch.file, int(batch.rows[position]) + 1)
                self._waiting.append((*place, *refused[position], content[:CONTENT_BYTES]))
            self._flush()
        self.reasons.update(reason for reason, _ in refused.values())

    def write(self, out: StageDir, uris: Sequence[str], *, earlier: Iterable[pa.Table] = ()) -> None:
        """Write `rejected.parquet` (reason, detail, file, row, content), unless it is there or no row was refused.

        Args:
            out: Where it goes.
            uris: Names of the source's files, in order.
            earlier: Tables of such a file, which come first.
        """
        self._flush()
        before = iter(earlier)
        first = next(before, None)
        if (not self.rows and first is None) or out.done(REJECTED) is not None:
            return
        names = pa.array(uris, pa.string())
        with out.writer(REJECTED, _SCHEMA) as writer:
            for table in () if first is None else chain([first], before):
                writer.write(table.cast(_SCHEMA))
            for table in regrouped(self._sorter.sorted_tables(rows_hint=_ROWS), _ROWS):
                writer.write(table.set_column(2, "file", names.take(table["file"].combine_chunks())).cast(_SCHEMA))

    def _flush(self) -> None:
        if not self._waiting:
            return
        files, rows, reasons, details, contents = (list(column) for column in zip(*self._waiting, strict=True))
        keys = place_keys(np.array(files), np.array(rows))
        types = [pa.string(), pa.string(), pa.int32(), pa.int64(), pa.binary()]
        columns = (reasons, details, files, rows, contents)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
        table = pa.table(arrays, names=_SCHEMA.names)
        self._sorter.add(keys, np.zeros(len(keys), np.uint64), table)
        self._waiting = []


def _shown(value: Any) -> str:
    """What JSON has no form for: bytes as hexadecimal digits, times and decimals as they print."""
    return value.hex() if isinstance(value, bytes) else str(value)
