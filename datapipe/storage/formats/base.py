"""What every format shares: the contract of a source, and the way from raw records to batches.

raw batch of a format -> weigh, refuse records -> cut to 16 MiB -> cast to the source's one schema -> SourceBatch

A record's ordinal is its place in its file, counting refused records too, so it is the same in every read. Whether a
value is too large, or a string of a table is UTF-8, shows in the columns that are read only.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from datapipe.errors import ColumnError, DatapipeError, SourceError
from datapipe.storage.formats.cells import cell_bytes, row_width, slices, undecodable, weighs_more_than_it_shows
from datapipe.storage.formats.types import conform
from datapipe.storage.limits import DecodedMeter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping, Sequence

    from datapipe.storage.arrays import Int64
    from datapipe.storage.formats.place import Place
    from datapipe.storage.limits import Limits

__all__ = ["BATCH_BYTES", "Refuse", "Rejected", "Source", "SourceBatch", "SourceFile", "readable"]

BATCH_BYTES = 16 << 20
"""Decoded bytes of a batch: at most this, unless a single row is larger."""

CONTENT_BYTES = 64 << 10
"""Bytes of a refused record that are handed on; the rest is cut off."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        uri: Path or URI as it was given; for a frame, its type in angle brackets.
        size: Bytes.
    """

    uri: str
    size: int


@dataclass(frozen=True)
class Rejected:
    """A record that was refused.

    Attributes:
        file: Index in `Source.files`.
        row: 1-based record number in the file: line of a JSONL file, data row of a CSV file, row of a table.
        reason: "undecodable" (not UTF-8, not JSON, no object, wrong number of fields), "too_large" (a line or value
            over its limit) or "wrong_type" (no string in a text column).
        detail: What was found, and in which column.
        content: The record as it stands in the file (of a table, the value), at most its first 64 KiB; None if unknown.
    """

    file: int
    row: int
    reason: str
    detail: str
    content: bytes | None


@dataclass(frozen=True)
class SourceBatch:
    """Rows of one file.

    Attributes:
        table: The columns asked for, as `Source.schema` has them.
        file: Index in `Source.files`.
        rows: 0-based ordinal in the file of each row, int64 (rows,), ascending; those of refused records are left out.
    """

    table: pa.Table
    file: int
    rows: Int64


Refuse: TypeAlias = "Callable[[int, str, str, bytes | None], None]"
"""How a format refuses a record of the file it reads: 0-based ordinal, reason, detail, content.

It returns, or raises SourceError where nobody takes refused records.
"""


class Source(ABC):
    """Rows that stand in one or more files of one format, read in order and in bounded memory.

    Attributes:
        format: "parquet", "csv", "jsonl", "arrow" or "frame".
        files: In the order in which they are read.
        schema: Of every batch, whatever its file. Independent of how the rows are cut over files.
        rows: Records in all files, refused ones included; None if that cannot be known without reading.
    """

    format: str
    files: tuple[SourceFile, ...]
    schema: pa.Schema
    rows: int | None
    checks_text: bool = True

    def __init__(self, places: Sequence[Place], *, limits: Limits) -> None:
        self.files = tuple(SourceFile(place.uri, place.size) for place in places)
        self._places = tuple(places)
        self._limits = limits

    def batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        rejected: Callable[[Rejected], None] | None = None,
        first_file: int = 0,
    ) -> Iterator[SourceBatch]:
        """Read all rows, file by file.

        Args:
            columns: Names to read, in the order wanted; None reads all.
            first_file: Index in `files` of the first file that is read.
            rejected: Called with each record that is refused. None refuses the source instead.

        Returns:
            Batches of at most 16 MiB, none of them empty.

        Raises:
            ColumnError: A column is not in the source.
            SourceError: A file is truncated or damaged, or a record is refused and `rejected` is None.
            LimitError: A file decodes to more than the limits allow.
        """
        schema = self._projection(columns)
        return (batch for file in range(first_file, len(self.files)) for batch in self._read(file, schema, rejected))

    def digests(self, known: MutableMapping[str, str] | None = None) -> tuple[str, ...]:
        """sha256 of each file's bytes, 64 hexadecimal digits each, in the order of `files`.

        Args:
            known: Digests by "uri|size|mtime_ns". Used for files that have not changed since, and added to.

        Raises:
            SourceError: A file cannot be read.
        """
        return tuple(_digest(place, known if known is not None else {}) for place in self._places)

    def beside(self, file: int, path: str) -> Place | None:
        """The file that a path in a row of file `file` names, relative to that file's folder; None if it leads out."""
        return self._places[file].beside(path)

    @abstractmethod
    def _raw(self, file: int, schema: pa.Schema, refuse: Refuse) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        """Yield batches of one file and the ordinals of their rows; columns may lack, be more, or be of raw types."""

    def _projection(self, columns: Sequence[str] | None) -> pa.Schema:
        if columns is None:
            return self.schema
        names = self.schema.names
        missing = set(columns).difference(names)
        if missing or not columns:
            first = next((name for name in columns if name in missing), None)
            what = "no column was asked for" if first is None else f"no column {first!r} in {self.files[0].uri}"
            raise ColumnError(f"{what}; the columns are {', '.join(map(repr, names))}")
        return pa.schema([self.schema.field(name) for name in columns])

    def _read(self, file: int, schema: pa.Schema, rejected: Callable[[Rejected], None] | None) -> Iterator[SourceBatch]:
        uri, size = self.files[file].uri, self.files[file].size
        meter = DecodedMeter(uri, size, self._limits)

        def refuse(ordinal: int, reason: str, detail: str, content: bytes | None) -> None:
            if rejected is None:
                raise SourceError(f"{uri}, row {ordinal + 1}: {reason}: {detail}")
            short = None if content is None else content[:CONTENT_BYTES]
            rejected(Rejected(file=file, row=ordinal + 1, reason=reason, detail=detail, content=short))

        with readable(uri):
            for raw, ordinals in self._raw(file, schema, refuse):
                for piece, rows in self._weighed(raw, ordinals, schema, refuse, meter):
                    table = conform(piece, schema, uri=uri)
                    if self.checks_text:
                        table, rows = _decodable(table, rows, refuse)  # noqa: PLW2901 - fewer rows of the same piece
                    if len(rows):
                        yield SourceBatch(table=table, file=file, rows=rows)

    def _weighed(
        self, raw: pa.RecordBatch, ordinals: Int64, schema: pa.Schema, refuse: Refuse, meter: DecodedMeter
    ) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        """Weigh the rows, refuse those that hold too much, and cut the others to what a batch may take."""
        held = set(raw.schema.names)
        batch = raw.select([name for name in schema.names if name in held])
        width = row_width(schema)
        shown = max(batch.nbytes, batch.num_rows * width)
        shared = any(weighs_more_than_it_shows(field.type) for field in batch.schema)
        if not shared and shown <= min(BATCH_BYTES, self._limits.max_cell_bytes):
            meter.add(shown)
            yield batch, ordinals
            return
        cells = {name: cell_bytes(batch.column(name)) for name in batch.schema.names}
        weights: Int64 = sum(cells.values(), np.full(batch.num_rows, width, np.int64))
        meter.add(int(weights.sum()))
        after = 0
        for row in [*self._too_large(batch, cells, ordinals, refuse), batch.num_rows]:
            for start, stop in slices(weights[after:row], nbytes=BATCH_BYTES):
                yield batch.slice(after + start, stop - start), ordinals[after + start : after + stop]
            after = row + 1

    def _too_large(
        self, batch: pa.RecordBatch, cells: dict[str, Int64], ordinals: Int64, refuse: Refuse
    ) -> Iterator[int]:
        """Refuse rows that hold a value over the limit; yields them in order."""
        limit = self._limits.max_cell_bytes
        for row in sorted({int(row) for sizes in cells.values() for row in np.flatnonzero(sizes > limit)}):
            name = next(name for name, sizes in cells.items() if sizes[row] > limit)
            found = f"column {name!r} holds {cells[name][row]:,} bytes, more than max_cell_bytes={limit:,}"
            refuse(int(ordinals[row]), "too_large", found, _head(batch.column(name), row))
            yield row


@contextmanager
def readable(uri: str) -> Iterator[None]:
    """Turn what libraries raise on a damaged, truncated or vanished file into a SourceError that names it."""
    try:
        yield
    except (DatapipeError, MemoryError, GeneratorExit):
        raise
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(f"{uri} cannot be read; it is truncated, damaged or gone: {text[0]}") from error


def _decodable(table: pa.Table, ordinals: Int64, refuse: Refuse) -> tuple[pa.Table, Int64]:
    """Refuse rows with a string that is no UTF-8; returns the others."""
    faults: dict[int, str] = {}
    for name in table.schema.names:
        for row in undecodable(table.column(name).chunk(0)):
            faults.setdefault(row, name)
    if not faults:
        return table, ordinals
    good = np.ones(table.num_rows, np.bool_)
    for row, name in sorted(faults.items()):
        column = table.column(name).chunk(0)
        refuse(int(ordinals[row]), "undecodable", f"column {name!r} holds text that is not UTF-8", _head(column, row))
        good[row] = False
    return table.filter(pa.array(good)), ordinals[good]


def _head(column: pa.Array, row: int) -> bytes | None:
    """The first bytes of a flat string or binary value; None for anything else."""
    value = column[row]
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    if not isinstance(value, pa.StringScalar | pa.BinaryScalar):
        return None
    return bytes(memoryview(value.as_buffer())[:CONTENT_BYTES])


def _digest(place: Place, known: MutableMapping[str, str]) -> str:
    key = None if place.stamp is None else f"{place.uri}|{place.size}|{place.stamp}"
    if key is not None and key in known:
        return known[key]
    with readable(place.uri), place.open() as stream:
        found = hashlib.sha256()
        while block := stream.read(1 << 20):
            found.update(block)
    if key is not None:
        known[key] = found.hexdigest()
    return found.hexdigest()
