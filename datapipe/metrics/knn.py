"""The nearest neighbours of every row and the cosines to them, list by list.

    VectorLists -> a list x the nearest lists, in tiles -> each product serves its rows and its columns -> (rows, k)

With one list the search is exact. With more, a row is compared with the rows of the `probes` lists whose centroids are
nearest to that of its own; `measured_recall` says what that costs. A pair of tiles is multiplied once: what reaches a
row's k-th best so far is merged into it, and the same down the columns. Bits: tiles are cut by the lists alone, one
thread makes one product, and what is merged is ordered by cosine, then row; so neither the number of threads nor their
order changes anything.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError
from datapipe.metrics.pool import ChunkPool, run_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from datapipe.storage.arrays import Float32, Int64
    from datapipe.storage.lists import VectorLists

QUERIES = 1024
"""Rows of a block on the host; on an accelerator a block is a whole tile."""
TILE = 2048
"""Rows that a block is compared with in one product."""
EXACT_ROWS = 200_000
"""Up to so many rows all pairs are compared."""
_RESIDENT_BYTES = 24 << 30  # bits that an accelerator holds as a whole
_UPLOADED = 1 << 18  # rows sent to an accelerator at once


def neighbour_lists(centroids: Float32, probes: int, *, threads: int | None = None) -> Int64:
    """The lists nearest to each list, itself first, int64 (lists, min(probes, lists)); ties go to the lower list.

    Time lists^2 * dim; memory 16 KiB a list and thread.

    Args:
        centroids: Of the lists, float32 (lists, dim), unit length.
        probes: Lists to name for each, >= 1.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
    """
    import torch

    probes = min(probes, len(centroids))
    wide = torch.from_numpy(centroids.astype(np.float64))
    near = np.empty((len(wide), probes), np.int64)

    def work(start: int) -> None:
        cosines = (wide[start : start + 1024] @ wide.T).numpy()
        own = np.arange(len(cosines))
        cosines[own, own + start] = np.inf
        near[start : start + 1024] = np.argsort(-cosines, axis=1, kind="stable")[:, :probes]

    pool = ChunkPool(threads)
    try:
        pool.map(work, range(0, len(wide), 1024))
    finally:
        pool.close()
    return near


def nearest_cosines(
    lists: VectorLists,
    near: Int64,
    *,
    k: int,
    device: str = "cpu",
    threads: int | None = None,
    tick: Callable[[int], None] | None = None,
) -> Float32:
    """Return the cosines of each row to its k nearest neighbours, greatest first, float32 (rows, k), in row order.

    As `nearest_neighbours`, without saying who they are; memory 8 * k bytes a row.
    """
    search = _Search(lists, near, k=k, named=False, device=device)
    search.run(threads, tick)
    return search.cosines()


def nearest_neighbours(
    lists: VectorLists,
    near: Int64,
    *,
    k: int,
    device: str = "cpu",
    threads: int | None = None,
    tick: Callable[[int], None] | None = None,
) -> tuple[Int64, Float32]:
    """Return the k nearest neighbours of each row and the cosines to them, int64 and float32 (rows, k), in row order.

    Greatest cosine first. A row is no neighbour of its own, a copy of it is. Where fewer than k rows can be compared,
    -1 and NaN fill up. Time rows * rows compared * dim, half of it where lists compare each other; memory 24 * k bytes
    a row and three tiles a thread.

    Args:
        lists: The vectors.
        near: Lists to compare each list with, int64 (lists, probes), itself among them.
        k: Neighbours, 1 <= k <= `TILE`.
        device: "cpu", or a torch device such as "cuda".
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
        tick: Called with the rows just done.

    Raises:
        MetricError: k is out of range.
    """
    search = _Search(lists, near, k=k, named=True, device=device)
    search.run(threads, tick)
    return search.names(), search.cosines()


def measured_recall(approximate: Float32, exact: Float32) -> float:
    """Part of the true neighbours that were found, 0 ... 1.

    A neighbour counts as found where its cosine reaches that of the farthest true one, to within 1e-5 of rounding.

    Args:
        approximate: Cosines of the search to be measured, float32 (rows, k), greatest first, NaN where there are fewer.
        exact: The same of the search over all rows.
    """
    known = np.isfinite(exact)
    hits = 0
    for true, seen in zip(exact, approximate, strict=True):
        least = true[np.isfinite(true)].min(initial=np.inf)
        hits += int((seen[np.isfinite(seen)] >= least - 1e-5).sum())
    return min(hits / max(int(known.sum()), 1), 1.0)


@dataclass(eq=False)
class _Search:
    """The k best of every row so far, into which threads merge what they find.

    Attributes:
        lists: The vectors.
        near: Lists to compare each list with.
        k: Neighbours.
        named: Whether it is kept who they are.
        device: Torch device.
    """

    lists: VectorLists
    near: Int64
    k: int
    named: bool
    device: str
    _best: torch.Tensor = field(init=False)
    _who: torch.Tensor = field(init=False)
    _rows: torch.Tensor = field(init=False)
    _resident: tuple[torch.Tensor, torch.Tensor] | None = field(init=False, default=None)
    _starts: list[int] = field(init=False)
    _locks: list[Lock] = field(init=False)

    def __post_init__(self) -> None:
        import torch

        if not 1 <= self.k <= TILE:
            raise MetricError(f"k counts neighbours, 1 <= k <= {TILE}; got {self.k}")
        rows = len(self.lists.rows)
        self._best = torch.full((rows, self.k), -torch.inf, device=self.device)
        self._who = torch.full((rows if self.named else 0, self.k), -1, dtype=torch.int64, device=self.device)
        self._rows = torch.from_numpy(self.lists.rows).to(self.device)

    def run(self, threads: int | None, tick: Callable[[int], None] | None) -> None:
        """Compare every list with those that it is near to and those that are near to it."""
        _ = self.lists.scales  # before threads ask for it
        if self.device != "cpu" and self.lists.codes.nbytes <= _RESIDENT_BYTES:
            self._resident = on_device(self.lists, self.device)
        compared = [set(row) for row in self.near.tolist()]
        others: list[set[int]] = [set() for _ in compared]
        for one, row in enumerate(compared):
            for other in row:
                others[min(one, other)].add(max(one, other))
        tiles = [_cut(self.lists, number, TILE) for number in range(len(self.lists))]
        self._starts = [tile.start for parts in tiles for tile in parts]
        self._locks = [Lock() for _ in self._starts]
        step = QUERIES if self.device == "cpu" else TILE
        blocks = [(one, queries) for one in range(len(self.lists)) for queries in _cut(self.lists, one, step)]

        def work(at: int) -> None:
            one, queries = blocks[at]
            vectors = self._units(queries)
            for other in sorted(others[one]):
                down, across = other in compared[one], one in compared[other]
                for tile in tiles[other]:
                    if tile.stop > queries.start:
                        self._compare(vectors, queries, tile, rows=down, columns=across)
            if tick is not None:
                tick(queries.stop - queries.start)

        run_blocks(work, len(blocks), device=self.device, threads=threads)

    def cosines(self) -> Float32:
        """Of each row to its neighbours, greatest first, float32 (rows, k); NaN where there are fewer."""
        values: Float32 = self._best.cpu().numpy()
        return np.where(np.isfinite(values), np.clip(values, -1.0, 1.0), np.float32(np.nan))

    def names(self) -> Int64:
        """The neighbours, int64 (rows, k); -1 where there are fewer."""
        who: Int64 = self._who.where(self._best.isfinite(), -1).cpu().numpy()
        return who

    def _compare(self, vectors: torch.Tensor, queries: slice, tile: slice, *, rows: bool, columns: bool) -> None:
        """Multiply some rows with the rest of a tile, and let the rows, the columns or both learn of it."""
        import torch

        start = max(tile.start, queries.start)
        cosines = vectors @ self._units(slice(start, tile.stop)).T
        if start == queries.start:
            cosines.fill_diagonal_(-torch.inf)
        if rows:
            hits = (~(cosines.amax(dim=1) < self._least(queries))).nonzero()[:, 0]
            self._merge(queries, hits, cosines[hits], start)
        # Among the queries themselves the rows have learnt of both sides.
        first = max(start, queries.stop)
        if columns and first < tile.stop:
            rest, part = slice(first, tile.stop), cosines[:, first - start :]
            hits = (~(part.amax(dim=0) < self._least(rest))).nonzero()[:, 0]
            self._merge(rest, hits, part.index_select(1, hits).T.contiguous(), queries.start)

    def _least(self, places: slice) -> torch.Tensor:
        """The k-th best so far, float32 (places,). It only rises: one that has grown old lets through too much."""
        return self._best[self._rows[places], -1]

    def _merge(self, places: slice, hits: torch.Tensor, cosines: torch.Tensor, start: int) -> None:
        """Let the rows at `places[hits]` know of the cosines (hits, columns) to what stands from `start` on."""
        import torch

        if not len(hits):
            return
        rows = self._rows[places][hits]
        found = cosines.topk(min(self.k, cosines.shape[1]), dim=1)
        with self._locks[bisect_right(self._starts, places.start) - 1]:
            values = torch.cat([self._best[rows], found.values], dim=1)
            if not self.named:
                self._best[rows] = values.topk(self.k, dim=1).values
                return
            who = torch.cat([self._who[rows], self._rows[found.indices + start]], dim=1)
            order = who.argsort(dim=1)
            values, who = values.gather(1, order), who.gather(1, order)
            order = values.argsort(dim=1, descending=True, stable=True)[:, : self.k]
            self._best[rows], self._who[rows] = values.gather(1, order), who.gather(1, order)

    def _units(self, places: slice) -> torch.Tensor:
        """The vectors at some places, float32 (places, dim), on the device."""
        import torch

        if self._resident is None:
            return torch.from_numpy(self.lists.unit(places)).to(self.device)
        bits, scales = self._resident
        return bits[places].float() * scales[places, None]


def _cut(lists: VectorLists, number: int, rows: int) -> list[slice]:
    """The places of a list, at most `rows` at a time."""
    low, end = int(lists.offsets[number]), int(lists.offsets[number + 1])
    return [slice(start, min(start + rows, end)) for start in range(low, end, rows)]


def on_device(lists: VectorLists, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The vectors as they are, bfloat16 (rows, dim), and what makes them unit vectors, float32 (rows,)."""
    import torch

    bits = torch.empty(lists.codes.shape, dtype=torch.bfloat16, device=device)
    for start in range(0, len(bits), _UPLOADED):
        part = np.ascontiguousarray(lists.codes[start : start + _UPLOADED])
        bits[start : start + _UPLOADED] = torch.from_numpy(part).view(torch.bfloat16).to(device)
    return bits, torch.from_numpy(lists.scales).to(device)
