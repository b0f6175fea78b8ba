"""The nearest neighbours of every row and the cosines to them, list by list.

    VectorLists -> for each list: its rows x the rows of the nearest lists, in tiles -> the k best -> (rows, k)

With one list the search is exact. With more, a row is compared with the rows of the `probes` lists whose centroids are
nearest to that of its own; `measured_recall` says what that costs. Bits: tiles have a fixed shape (filled up with zero
rows), one thread makes one product, and threads share out whole blocks of rows; so their number changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError
from datapipe.metrics.pool import ChunkPool, run_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from datapipe.storage.arrays import Float32, Int64
    from datapipe.storage.lists import VectorLists

QUERIES = 512
"""Rows of a block."""
TILE = 2048
"""Rows that a block is compared with in one product."""
EXACT_ROWS = 200_000
"""Up to so many rows all pairs are compared."""


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

    As `nearest_neighbours`, without saying who they are.
    """
    found = np.full((len(lists.rows), k), np.nan, np.float32)

    def keep(rows: Int64, cosines: Float32, _places: Int64) -> None:
        found[rows] = cosines

    _search(lists, near, keep, k=k, device=device, threads=threads, tick=tick)
    return found


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
    -1 and NaN fill up. Time rows * rows compared * dim; memory 12 * k bytes a row and two tiles a thread.

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
    found = np.full((len(lists.rows), k), np.nan, np.float32)
    who = np.full((len(lists.rows), k), -1, np.int64)

    def keep(rows: Int64, cosines: Float32, places: Int64) -> None:
        found[rows] = cosines
        who[rows] = np.where(np.isfinite(cosines), lists.rows[places], -1)

    _search(lists, near, keep, k=k, device=device, threads=threads, tick=tick)
    return who, found


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


def _search(
    lists: VectorLists,
    near: Int64,
    keep: Callable[[Int64, Float32, Int64], None],
    *,
    k: int,
    device: str,
    threads: int | None,
    tick: Callable[[int], None] | None,
) -> None:
    """Hand each block's rows, cosines and neighbours' places to `keep`."""
    if not 1 <= k <= TILE:
        raise MetricError(f"k counts neighbours, 1 <= k <= {TILE}; got {k}")
    blocks = _blocks(lists)

    def work(at: int) -> None:
        number, places = blocks[at]
        keep(lists.rows[places], *_best(lists, places, near[number], k, device))
        if tick is not None:
            tick(places.stop - places.start)

    run_blocks(work, len(blocks), device=device, threads=threads)


def _blocks(lists: VectorLists) -> list[tuple[int, slice]]:
    """Blocks of at most `QUERIES` places of one list."""
    bounds = zip(lists.offsets[:-1].tolist(), lists.offsets[1:].tolist(), strict=True)
    return [
        (number, slice(start, min(start + QUERIES, end)))
        for number, (low, end) in enumerate(bounds)
        for start in range(low, end, QUERIES)
    ]


def _best(lists: VectorLists, places: slice, near: Int64, k: int, device: str) -> tuple[Float32, Int64]:
    """The k greatest cosines of the rows at `places` and where they stand, (places, k); NaN and 0 where fewer are."""
    import torch

    rows = places.stop - places.start
    queries = _padded(lists, places, QUERIES, device)
    best = torch.full((QUERIES, k), -torch.inf, device=device)
    where = torch.zeros((QUERIES, k), dtype=torch.int64, device=device)
    for number in near.tolist():
        low, end = int(lists.offsets[number]), int(lists.offsets[number + 1])
        for start in range(low, end, TILE):
            tile = slice(start, min(start + TILE, end))
            cosines = queries @ _padded(lists, tile, TILE, device).T
            cosines[:, tile.stop - tile.start :] = -torch.inf
            first, last = max(places.start, tile.start), min(places.stop, tile.stop)
            if first < last:
                own = torch.arange(first, last, device=device)
                cosines[own - places.start, own - tile.start] = -torch.inf
            top = cosines.topk(k, dim=1)
            both = torch.cat([best, top.values], dim=1).topk(k, dim=1)
            best, where = both.values, torch.cat([where, top.indices + start], dim=1).gather(1, both.indices)
    values: Float32 = best[:rows].cpu().numpy()
    known = np.isfinite(values)
    cosines_found = np.where(known, np.clip(values, -1.0, 1.0), np.float32(np.nan))
    return cosines_found, np.where(known, where[:rows].cpu().numpy(), 0)


def _padded(lists: VectorLists, places: slice, rows: int, device: str) -> torch.Tensor:
    import torch

    tile = torch.zeros(rows, lists.codes.shape[1])
    tile[: places.stop - places.start] = torch.from_numpy(lists.unit(places))
    return tile.to(device)
