"""The vectors of a run on scratch, sorted by the list (the nearest centroid) that each belongs to.

    shards of bfloat16 codes + list numbers -> VectorLists: codes (memory-mapped), offsets, rows

Two passes: the list numbers say where each row goes, then every shard is scattered to its places. Disk: 2 * dim bytes a
row; memory: 12 bytes a row, and a shard. Inside a list rows keep their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import VectorError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32, Int32, Int64

_BLOCK_ROWS = 4096


@dataclass(frozen=True, eq=False)
class VectorLists:
    """Rows by list.

    Attributes:
        codes: bfloat16 bits in list order, uint16 (rows, dim), memory-mapped.
        offsets: Where each list begins and the last one ends, int64 (lists + 1,).
        rows: The row that stands at each place, int64 (rows,).
    """

    codes: NDArray[np.uint16]
    offsets: Int64
    rows: Int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def scales(self) -> Float32:
        """One by the length of the vector at each place, float32 (rows,); 0 where it has none. Reads all once."""
        found = np.empty(len(self.rows), np.float32)
        for start in range(0, len(found), _BLOCK_ROWS):
            vectors = _floats(self.codes[start : start + _BLOCK_ROWS])
            lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
            some = lengths > 0
            found[start : start + _BLOCK_ROWS] = np.where(some, 1.0 / np.where(some, lengths, 1.0), 0.0)
        return found

    def unit(self, places: slice) -> Float32:
        """The vectors at some places, scaled to unit length, float32 (places, dim); zero where they have no length."""
        vectors = _floats(self.codes[places])
        vectors *= self.scales[places, None]
        return vectors


def build_lists(
    batches: Iterable[NDArray[np.uint16]], assigned: Int32, *, lists: int, dim: int, path: Path
) -> VectorLists:
    """Write the vectors in list order to `path`.

    Args:
        batches: bfloat16 codes in row order, uint16 (rows, dim) each.
        assigned: The list of each row, int32 (rows,), 0 <= list < lists.
        lists: How many, >= 1.
        dim: Numbers in a vector.
        path: A file to be made; the caller's scratch holds it as long as the result is used.

    Raises:
        VectorError: The batches hold another number of rows than `assigned`, or another dim.
    """
    rows = np.argsort(assigned, kind="stable").astype(np.int64)
    places = np.empty(len(rows), np.int64)
    places[rows] = np.arange(len(rows))
    offsets = np.append(0, np.cumsum(np.bincount(assigned, minlength=lists))).astype(np.int64)
    shape = (len(rows), dim)
    if not len(rows):
        return VectorLists(np.empty(shape, np.uint16), offsets, rows)
    codes = np.memmap(path, np.uint16, "w+", shape=shape)
    start = 0
    for batch in batches:
        if batch.shape[1] != dim or start + len(batch) > len(rows):
            raise VectorError(f"vectors {batch.shape} at row {start:,} do not fit {len(rows):,} rows of dim {dim}")
        codes[places[start : start + len(batch)]] = batch
        start += len(batch)
    if start != len(rows):
        raise VectorError(f"{len(rows):,} rows have a list, but {start:,} have a vector")
    return VectorLists(codes, offsets, rows)


def _floats(bits: NDArray[np.uint16]) -> Float32:
    """The numbers with these bits, in memory of their own."""
    wide = np.asarray(bits).astype("<u4")
    np.left_shift(wide, 16, out=wide)
    vectors: Float32 = wide.view("<f4")
    return vectors
