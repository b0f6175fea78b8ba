"""Sort more rows than memory holds.

rows with 128-bit keys -> sorted runs in one scratch file -> ranges of keys, merged one at a time

A run is what fits in memory, written in small record batches. The first key of each batch stays in memory, so that a
range reads only the batches that overlap it. The last run stays in memory: what fits there never touches the disk.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datapipe.storage.atomic import explain_os_error, make_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from io import FileIO
    from pathlib import Path
    from types import TracebackType

    from datapipe.storage.arrays import Ids, Int64, UInt64

END = 2**64
"""One above the largest high word of a key."""

_BATCHES = 1024  # batches that fill `memory_bytes`; of each run one stays in memory between two ranges


class ExternalSorter:
    """Sorts rows by 128-bit keys (hi, lo), stably; memory: about twice `memory_bytes`, and three times the range read.

    Add everything, then read: ranges in ascending order are cheapest. A context manager: leaving it deletes the scratch
    file and its folder. A column of a dictionary or of views comes back plain.

    Args:
        folder: Scratch folder, made if missing; needs room for all rows.
        memory_bytes: Bytes of the rows that wait to be sorted and of their copy, >= 1. More makes fewer, longer runs.

    Attributes:
        rows: Rows added so far.
        payload_bytes: Bytes of their values, without offsets and masks: the same however the rows were cut.
    """

    def __init__(self, folder: Path, *, memory_bytes: int = 96 << 20) -> None:
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._schema = pa.schema([("hi", pa.uint64()), ("lo", pa.uint64())])
        self._file: FileIO | None = None
        self._runs: list[_Run] = []
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        self.rows = 0
        self.payload_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runs, self._waiting = [], []
        if self._file is not None:
            self._file.close()
            self._file = None
            (self._folder / "runs.arrow").unlink(missing_ok=True)
            self._folder.rmdir()

    def add(self, hi: UInt64, lo: UInt64, table: pa.Table) -> None:
        """Take rows with their keys.

        Args:
            hi: High words of the keys, uint64 (rows,).
            lo: Low words, uint64 (rows,).
            table: The rows; the same columns in every call.

        Raises:
            OutputError: The scratch file cannot be written.
        """
        stored = [field.with_type(_stored(field.type)) for field in table.schema]
        table = table.cast(pa.schema(stored, table.schema.metadata))
        keyed = table.add_column(0, "lo", pa.array(lo)).add_column(0, "hi", pa.array(hi))
        self._schema = keyed.schema
        self.rows += table.num_rows
        self.payload_bytes += sum(_payload(column) for column in table.columns)
        step = _rows_of(keyed, self._memory_bytes // 4)
        for start in range(0, keyed.num_rows, step):
            piece = keyed.slice(start, step)
            self._waiting.append(piece)
            self._waiting_bytes += piece.nbytes
            if 2 * self._waiting_bytes >= self._memory_bytes:
                self._runs.append(self._spilled(self._sorted_run()))

    def range_count(self, *, rows: int, nbytes: int) -> int:
        """Smallest power of two into which equal ranges have at most `rows` rows and `nbytes` of values on average.

        It depends on what was added only, not on its order or cut.
        """
        least = max(-(-self.rows // rows), -(-self.payload_bytes // nbytes), 1)
        return 1 << (least - 1).bit_length()

    def read_range(self, low: int, high: int) -> tuple[Ids, pa.Table]:
        """Return the keys, uint64 (rows, 2), and the rows whose high word lies in [low, high), sorted by key.

        Rows of equal keys stand in the order in which they were added. Nothing can be added after the first range.
        """
        if self._waiting:
            self._runs.append(_Run(self._sorted_run()))
        pieces = [piece for run in self._runs for piece in run.read(low, high)]
        keyed = pa.Table.from_batches(pieces, self._schema)
        keys = _keys(keyed)
        rows = keyed.select(range(2, keyed.num_columns))
        if len(pieces) > 1:
            order = _order(keys)
            keys, rows = keys[order], rows.combine_chunks().take(pa.array(order))
        return keys, rows

    def sorted_tables(self, bounds: Sequence[int] | None = None, *, rows_hint: int = 32_768) -> Iterator[pa.Table]:
        """Yield all rows in the order of their keys, one range of high words a table.

        Args:
            bounds: Ascending high words where one range ends and the next begins: `len(bounds) + 1` tables, some
                perhaps empty. None cuts into ranges of about `rows_hint` rows, none of them empty.
            rows_hint: Rows in a table where `bounds` is None, >= 1.
        """
        if bounds is not None:
            yield from (self.read_range(low, high)[1] for low, high in pairwise([0, *bounds, END]))
            return
        self.read_range(0, 0)
        ranges = pairwise([0, *self._splitters(rows_hint), END])
        tables = (self.read_range(low, high)[1] for low, high in ranges)
        yield from (table for table in tables if table.num_rows)

    def _sorted_run(self) -> list[pa.RecordBatch]:
        """What waits, sorted, as batches of about 1 / 1024 of the memory."""
        keyed = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting, self._waiting_bytes = [], 0
        keyed = keyed.take(pa.array(_order(_keys(keyed))))
        batches: list[pa.RecordBatch] = keyed.to_batches(_rows_of(keyed, self._memory_bytes // _BATCHES))
        return batches

    def _spilled(self, batches: list[pa.RecordBatch]) -> _Run:
        """Append a run to the scratch file."""
        path = self._folder / "runs.arrow"
        ends = [0]
        try:
            if self._file is None:
                make_folder(self._folder)
                self._file = path.open("w+b", buffering=0)
            start = self._file.tell()
            for batch in batches:
                ends.append(ends[-1] + _write(self._file, memoryview(batch.serialize())))
        except OSError as error:
            raise explain_os_error(error, path) from error
        return _Run(batches, _Spilled(self._file.fileno(), self._schema, start + np.array(ends)))

    def _splitters(self, rows_hint: int) -> list[int]:
        """High words that cut the rows into ranges of about `rows_hint`, found from the first key of each batch."""
        firsts = np.concatenate([np.empty(0, np.uint64), *(run.firsts for run in self._runs)])
        sizes = np.concatenate([np.empty(0, np.int64), *(run.sizes for run in self._runs)])
        order = np.argsort(firsts, kind="stable")
        before = np.cumsum(sizes[order]) - sizes[order]
        cuts = np.searchsorted(before, np.arange(rows_hint, int(sizes.sum()), rows_hint))
        return sorted({int(first) for first in firsts[order][cuts[cuts < len(before)]]} - {0})


class _Run:
    """Batches in the order of their keys, in memory or in the scratch file."""

    def __init__(self, batches: list[pa.RecordBatch], spilled: _Spilled | None = None) -> None:
        self.firsts: UInt64 = np.array([batch.column(0)[0].as_py() for batch in batches], np.uint64)
        self.sizes: Int64 = np.array([batch.num_rows for batch in batches], np.int64)
        self._spilled = spilled
        self._batches = dict(enumerate(batches)) if spilled is None else {}

    def read(self, low: int, high: int) -> list[pa.RecordBatch]:
        """The rows whose high word lies in [low, high), as pieces of batches."""
        start = max(_position(self.firsts, low) - 1, 0)  # its last rows may have the word at which the next one starts
        stop = _position(self.firsts, high)
        if self._spilled is not None and start < stop:
            kept = self._batches.get(start)
            loaded = self._spilled.read(start if kept is None else start + 1, stop)
            batches = loaded if kept is None else [kept, *loaded]
            self._batches = {stop - 1: batches[-1]}
        else:
            batches = [self._batches[index] for index in range(start, stop)]
        cuts = [[_position(batch.column(0).to_numpy(), word) for word in (low, high)] for batch in batches]
        return [batch.slice(a, b - a) for batch, (a, b) in zip(batches, cuts, strict=True) if a < b]


class _Spilled:
    """Where the batches of a run lie in the scratch file: batch i in bytes ends[i] to ends[i + 1]."""

    def __init__(self, file: int, schema: pa.Schema, ends: Int64) -> None:
        self._file = file
        self._schema = schema
        self._ends = ends

    def read(self, start: int, stop: int) -> list[pa.RecordBatch]:
        """Batches start to stop - 1, in one read."""
        ends = self._ends[start : stop + 1] - self._ends[start]
        data = pa.py_buffer(os.pread(self._file, int(ends[-1]), int(self._ends[start])))
        return [pa.ipc.read_record_batch(data.slice(int(a), int(b - a)), self._schema) for a, b in pairwise(ends)]


def equal_ranges(count: int) -> list[tuple[int, int]]:
    """Cut the high words into `count` equal ranges [low, high); `count` is a power of two."""
    return list(pairwise(END * index // count for index in range(count + 1)))


def regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of exactly `rows` rows, the last one perhaps fewer, each of a single chunk.

    What is written from these depends on the rows alone, not on how they came.
    """
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows).combine_chunks()
            waiting = [joined.slice(rows)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting).combine_chunks()


def _write(file: FileIO, content: memoryview) -> int:
    """Write all of `content`; unbuffered, so that a full disk is told here and not when the file is closed."""
    written = 0
    while written < len(content):
        written += file.write(content[written:])
    return written


def _position(words: UInt64, word: int) -> int:
    """How many of the ascending `words` are smaller than `word`."""
    return len(words) if word >= END else int(np.searchsorted(words, np.uint64(word)))


def _keys(keyed: pa.Table) -> Ids:
    return np.column_stack([keyed.column(0).to_numpy(), keyed.column(1).to_numpy()])


def _order(keys: Ids) -> Int64:
    """The stable order of (hi, lo); the low words are looked at only where high words are equal."""
    order: Int64 = np.argsort(keys[:, 0], kind="stable")
    high = keys[order, 0]
    return order if (high[1:] > high[:-1]).all() else np.lexsort((keys[:, 1], keys[:, 0]))


def _rows_of(table: pa.Table, size: int) -> int:
    """How many rows of `table` have about `size` bytes; at least one."""
    return max(size * int(table.num_rows) // max(int(table.nbytes), 1), 1)


def _stored(kind: pa.DataType) -> pa.DataType:
    """The type in which a column is sorted: Arrow cannot gather views, nor write a dictionary beside its batch."""
    if pa.types.is_dictionary(kind):
        return _stored(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _payload(column: pa.Array | pa.ChunkedArray) -> int:
    kind = column.type
    if pa.types.is_null(kind):
        return 0
    if pa.types.is_struct(kind):
        return sum(_payload(child) for child in column.flatten())
    if pa.types.is_map(kind):
        column = column.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    if pa.types.is_nested(kind):
        return _payload(pc.list_flatten(column))
    try:
        width = kind.bit_width
    except ValueError:  # Arrow's word for a type of no fixed width
        return int(pc.sum(pc.binary_length(column)).as_py() or 0)
    return len(column) * max(int(width) // 8, 1)
