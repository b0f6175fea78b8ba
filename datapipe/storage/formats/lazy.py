"""A source as a Polars LazyFrame with row ids: batches are read while the query runs.

batch -> digests -> how often each was seen before -> row ids, as ingest numbers them
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from datapipe.errors import ColumnError, RowIdError
from datapipe.storage.rowid import (
    ID_TYPE,
    apply_counters,
    content_digests,
    count_duplicates,
    ids_to_arrow,
    value_digests,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapipe.storage.arrays import Ids, Int64
    from datapipe.storage.formats.base import Source, SourceBatch

__all__ = ["lazy_rows"]

ROW_ID = "row_id"


def lazy_rows(source: Source, *, id_column: str | None) -> pl.LazyFrame:
    """Return the rows of `source` and their `row_id` (16 bytes, Binary), read when the frame is collected.

    Raises:
        ColumnError: `id_column` is not in the source, or the source has a column `row_id` of its own.
    """
    names = source.schema.names
    if ROW_ID in names:
        raise ColumnError(f"{source.files[0].uri} has a column {ROW_ID!r} of its own; rename it, or leave it out")
    if id_column is not None and id_column not in names:
        raise ColumnError(
            f"no column {id_column!r} in {source.files[0].uri}; the columns are {', '.join(map(repr, names))}"
        )
    empty = source.schema.append(pa.field(ROW_ID, ID_TYPE)).empty_table()

    def read(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        wanted = with_columns if with_columns is not None else [*names, ROW_ID]
        left = n_rows
        for frame in _frames(source, wanted, id_column):
            part = frame if left is None else frame.head(left)
            left = None if left is None else left - part.height
            yield part if predicate is None else part.filter(predicate)
            if left == 0:
                return

    return register_io_source(read, schema=_frame(empty).schema, validate_schema=True, is_pure=True)


def _frames(source: Source, wanted: list[str], id_column: str | None) -> Iterator[pl.DataFrame]:
    """Batches with the columns wanted; ids are made only where they are."""
    if ROW_ID not in wanted:
        # A query for nothing but a number of rows names no column.
        for batch in source.batches(wanted or source.schema.names[:1]):
            yield _frame(batch.table).select(wanted) if wanted else pl.DataFrame(height=batch.table.num_rows)
        return
    read = None if id_column is None else list(dict.fromkeys([*(name for name in wanted if name != ROW_ID), id_column]))
    seen = _Seen()
    for batch in source.batches(read):
        ids = _ids(source, batch, seen, id_column)
        yield _frame(batch.table.append_column(ROW_ID, ids_to_arrow(ids))).select(wanted)


def _ids(source: Source, batch: SourceBatch, seen: _Seen, id_column: str | None) -> Ids:
    if id_column is None:
        digests = content_digests(batch.table)
        return apply_counters(digests, seen.count(digests))
    digests = value_digests(batch.table[id_column])
    again = np.flatnonzero(seen.count(digests))
    if len(again):
        row = int(again[0])
        value = batch.table[id_column][row].as_py()
        place = f"{source.files[batch.file].uri}, row {batch.rows[row] + 1}"
        raise RowIdError(f"{place}: {value!r} was in column {id_column!r} before; ids must be unique")
    return digests


def _frame(table: pa.Table) -> pl.DataFrame:
    return pl.DataFrame(table)


class _Seen:
    """Counts digests in the order in which they come: 16 bytes each, in sorted runs that are merged as they grow."""

    def __init__(self) -> None:
        self._runs: list[tuple[Ids, Int64]] = []

    def count(self, digests: Ids) -> Int64:
        """How often each digest came before, int64 (rows,), earlier rows of the same call included."""
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        ranked = digests[order]
        within = count_duplicates(ranked)
        last = np.append(within[1:] == 0, True)[: len(ranked)]
        unique, times = ranked[last], within[last] + 1
        before = sum((_times(run, counts, unique) for run, counts in self._runs), np.zeros(len(unique), np.int64))
        counters = np.empty(len(digests), np.int64)
        counters[order] = within + np.repeat(before, times)
        self._add(unique, times)
        return counters

    def _add(self, digests: Ids, times: Int64) -> None:
        """Add a run; runs of like size are merged, so there are few."""
        if not len(digests):
            return
        run = (digests, times)
        while self._runs and len(self._runs[-1][0]) <= len(run[0]):
            run = _merged(self._runs.pop(), run)
        self._runs.append(run)


def _merged(left: tuple[Ids, Int64], right: tuple[Ids, Int64]) -> tuple[Ids, Int64]:
    digests = np.concatenate([left[0], right[0]])
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    digests, times = digests[order], np.concatenate([left[1], right[1]])[order]
    first = np.flatnonzero(count_duplicates(digests) == 0)
    return digests[first], np.add.reduceat(times, first)


def _times(run: Ids, counts: Int64, digests: Ids) -> Int64:
    """How often each of `digests` is in a sorted run without repeats."""
    keys, wanted = _bytes(run), _bytes(digests)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found: Int64 = np.where(keys[place] == wanted, counts[place], 0)
    return found


def _bytes(ids: Ids) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Ids as values that compare as (hi, lo)."""
    return np.ascontiguousarray(ids).view([("hi", np.uint64), ("lo", np.uint64)]).reshape(len(ids))
