"""The vectors of a run on scratch, sorted by the list (the nearest centroid) that each belongs to.

    shards of bfloat16 codes + list numbers -> VectorLists: codes (memory-mapped), offsets, rows

Two passes: the list numbers say where each row goes, then every shard is scattered to its places. Disk: 2 * dim bytes a
row; memory: 8 bytes a row for the places, and a shard. Inside a list rows keep their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import VectorError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32, Int32, Int64


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

    def unit(self, places: slice) -> Float32:
        """The vectors at some places, scaled to unit length, float32 (places, dim); zero where they have no length."""
        bits = np.asarray(self.codes[places]).astype("<u4")
        np.left_shift(bits, 16, out=bits)
        vectors: Float32 = bits.view("<f4")
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        return (vectors / np.where(lengths > 0, lengths, 1.0)[:, None]).astype(np.float32)


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
