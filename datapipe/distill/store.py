"""Soft labels read from one Parquet file, in step with the data or row by row in any order.

    SoftLabelStore.open(path, teacher=…, class_names=…) -> find(row ids) -> read(places) -> SoftLabelRows

A file that fits in `memory` bytes is held there after the first read; of a larger one, as many row groups as fit, those
used last. For training on such a one, `shuffled` gives an order that reads each group once. Everything raises
`SoftLabelError`.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datapipe.distill.header import SoftLabelHeader
from datapipe.distill.layout import FACTS, labels_of, positions_of, schema_of
from datapipe.distill.writer import first_fall
from datapipe.errors import SoftLabelError
from datapipe.storage.rowid import ids_from_arrow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapipe.distill.codec import SoftLabels
    from datapipe.storage.arrays import Ids, Int64

__all__ = ["SoftLabelRows", "SoftLabelStore"]


@dataclass(frozen=True, slots=True)
class SoftLabelRows:
    """Rows of a store.

    Attributes:
        header: What the labels are.
        table: The rows as stored.
        sizes: Positions of each row, int64 (rows,); 1 for labels of rows.
        labels: Of all positions, row after row.
    """

    header: SoftLabelHeader
    table: pa.Table
    sizes: Int64
    labels: SoftLabels

    @property
    def row_ids(self) -> Ids:
        """Ids of the rows, uint64 (rows, 2)."""
        return ids_from_arrow(self.table["row_id"])

    def fact(self, name: str) -> Any:
        """One of `FACTS` as a masked array (rows,): masked where it is not known."""
        column = self.table[name].combine_chunks()
        unknown = column.is_null().to_numpy(zero_copy_only=False)
        filled = column.fill_null(False if pa.types.is_boolean(FACTS[name]) else 0)
        return np.ma.masked_array(filled.to_numpy(zero_copy_only=False), unknown)


class SoftLabelStore:
    """Reads a store. Goes to other processes by its path: each opens the file anew and holds its own rows.

    Args:
        path: The Parquet file.
        memory: Bytes of rows that are held at most.

    Attributes:
        path: The file.
        header: What the labels are.
        row_ids: Of all rows, ascending, uint64 (rows, 2).
    """

    def __init__(self, path: Path, *, memory: int = 1 << 30) -> None:
        self.path, self._memory = Path(path), memory
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._file: pq.ParquetFile | None = None
        self._process = -1
        metadata, schema = self._opened().metadata, self._opened().schema_arrow
        self.header = SoftLabelHeader.from_metadata(schema.metadata, where=str(path))
        if not schema.equals(schema_of(self.header)):
            raise SoftLabelError(f"{path}: its columns are not those of its header; was it written by something else?")
        groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
        self._begins = np.cumsum([0, *(group.num_rows for group in groups)])
        self._fits = sum(group.total_byte_size for group in groups) <= memory
        self.row_ids = ids_from_arrow(self._load(columns=["row_id"])["row_id"])
        if (at := first_fall(self.row_ids)) is not None:
            raise SoftLabelError(f"{path}: its row ids do not ascend at row {at + 1}: make it again")
        self._words = np.ascontiguousarray(self.row_ids.astype(">u8")).view("S16").reshape(-1)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        teacher: str | Sequence[str] | None = None,
        preprocessing: str | None = None,
        tokenizer: str | None = None,
        class_names: Sequence[str] | None = None,
        classes: int | None = None,
        memory: int = 1 << 30,
    ) -> SoftLabelStore:
        """Open a store and refuse one that is not what the training expects; None asks for nothing.

        Args:
            path: The Parquet file.
            teacher: Digest of the teacher, or of all of them in order.
            preprocessing: Digest of how rows become the student's inputs.
            tokenizer: Digest of the student's tokenizer.
            class_names: Names of the student's classes, in order.
            classes: Number of the student's classes.
            memory: Bytes of rows that are held at most.

        Raises:
            SoftLabelError: The file is missing or no store, or something differs; says which side has what.
        """
        store = cls(path, memory=memory)
        store.header.check(
            where=str(path),
            teacher=teacher,
            preprocessing=preprocessing,
            tokenizer=tokenizer,
            class_names=class_names,
            classes=classes,
        )
        return store

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": OrderedDict(), "_file": None, "_process": -1}

    def find(self, row_ids: Ids) -> Int64:
        """Return the place of each row in the store, int64 (rows,); -1 where it has none."""
        wanted = np.ascontiguousarray(row_ids.astype(">u8")).reshape(-1, 2)
        if not len(self) or not len(wanted):
            return np.full(len(wanted), -1, np.int64)
        # "S16" drops closing zero bytes of both sides alike, and ids of one length that differ still differ.
        at = np.searchsorted(self._words, wanted.view("S16").reshape(-1))
        at = np.minimum(at, len(self) - 1)
        return np.where((self.row_ids[at] == row_ids).all(axis=1), at, -1).astype(np.int64)

    def read(self, places: Int64) -> SoftLabelRows:
        """Return the rows at `places`, in that order; a place may come twice.

        Raises:
            SoftLabelError: A place is out of range, or the file changed or is damaged.
        """
        if len(places) and not (int(places.min()) >= 0 and int(places.max()) < len(self)):
            raise SoftLabelError(f"{self.path} has rows 0 … {len(self) - 1}. Got places up to {int(places.max())}")
        if self._fits:
            return self._rows(self._group(-1).take(pa.array(places)))
        group = np.searchsorted(self._begins, places, side="right") - 1
        parts, order = [], []
        for at in np.unique(group):
            own = np.flatnonzero(group == at)
            parts.append(self._group(int(at)).take(pa.array(places[own] - self._begins[at])))
            order.append(own)
        table = pa.concat_tables([schema_of(self.header).empty_table(), *parts])
        back = np.argsort(np.concatenate([np.empty(0, np.int64), *order]), kind="stable")
        return self._rows(table.take(pa.array(back)))

    def batches(self, rows: int = 1024) -> Iterator[SoftLabelRows]:
        """Yield all rows in the order of their ids, so many at a time; holds one row group and one batch."""
        with self._reading():
            for batch in self._opened().iter_batches(batch_size=rows, use_threads=False):
                yield self._rows(pa.Table.from_batches([batch]))

    def shuffled(self, *, seed: int, epoch: int = 0, groups: int = 8) -> Int64:
        """Return all places in an order for training that reads each row group once, int64 (rows,).

        Row groups come in a random order, and the rows of every `groups` successive ones are mixed. Rows lie in the
        order of a hash of their content, so a group is a random sample of the data as it is.
        """
        draw = np.random.default_rng([seed, epoch])
        order = draw.permutation(len(self._begins) - 1)
        spans = [np.arange(self._begins[at], self._begins[at + 1]) for at in order]
        pools = [np.concatenate(spans[at : at + groups]) for at in range(0, len(spans), groups)]
        return np.concatenate([np.empty(0, np.int64), *(draw.permutation(pool) for pool in pools)])

    def _rows(self, table: pa.Table) -> SoftLabelRows:
        return SoftLabelRows(self.header, table, positions_of(self.header, table), labels_of(self.header, table))

    def _group(self, at: int) -> pa.Table:
        """One row group, or with -1 the whole file, from memory if it is there."""
        if at in self._groups:
            self._groups.move_to_end(at)
            return self._groups[at]
        found = self._load(at).combine_chunks()
        self._groups[at] = found
        while len(self._groups) > 1 and sum(table.nbytes for table in self._groups.values()) > self._memory:
            self._groups.popitem(last=False)
        return found

    def _load(self, at: int = -1, columns: list[str] | None = None) -> pa.Table:
        with self._reading():
            file = self._opened()
            if at < 0:
                return file.read(columns=columns, use_threads=False)
            return file.read_row_group(at, columns=columns, use_threads=False)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise SoftLabelError(f"{self.path} cannot be read, it is damaged or gone: {error}") from error

    def _opened(self) -> pq.ParquetFile:
        """The file, opened by this very process: a forked one must not share a handle."""
        if self._file is None or self._process != os.getpid():
            if not self.path.is_file():
                raise SoftLabelError(f"there are no soft labels at {self.path}: no such file")
            try:
                self._file = pq.ParquetFile(self.path)
            except pa.ArrowInvalid as error:
                raise SoftLabelError(f"{self.path} cannot be read as Parquet: {error}") from error
            self._process = os.getpid()
        return self._file
