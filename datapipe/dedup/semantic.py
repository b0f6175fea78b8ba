"""Rows that say the same thing in other words: pairs of a cosine at or above a threshold, and which row of each stays.

    VectorLists + neighbouring lists -> tiles of the upper triangle -> pairs -> one kept row for each row that goes

After SemDeDup (Abbas et al. 2023, arXiv 2303.09540): clusters, pairs inside them. Here pairs across neighbouring lists
count too. And where theirs takes out a row for being near any other, here each row that goes is at or above the
threshold with the row kept in its place: rows are gone through in the order of `rank`, and a row that is still there
takes out what is near to it. So a chain of small steps does not fall together into its first row.

Copies (equal bits) are put together before pairs are made, so a row with a million copies makes no pair of them.
Products have a fixed shape and one thread each, and threads share out whole blocks of rows, so their number changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError
from datapipe.metrics.pool import run_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from datapipe.storage.arrays import Bool, Float32, Int64
    from datapipe.storage.lists import VectorLists

SEMANTIC = 0.95
"""Default cosine; see `datapipe.dedup.protect.NEAR` for what pairs of real texts look like at it."""
MOST_PAIRS = 50_000_000
_TILE = 1024
_WALK = 1 << 20  # pairs turned into Python numbers at once


@dataclass(frozen=True, eq=False)
class SemanticDuplicates:
    """One row that goes an entry, in ascending order of `rows`.

    Attributes:
        rows: Rows that go, int64 (n,).
        kept: The row kept in place of each, int64 (n,).
        similarity: Their cosine, float32 (n,).
        pairs: Pairs at or above the threshold, copies aside.
    """

    rows: Int64
    kept: Int64
    similarity: Float32
    pairs: int


def semantic_duplicates(
    lists: VectorLists,
    near: Int64,
    rank: Int64,
    *,
    threshold: float = SEMANTIC,
    device: str = "cpu",
    threads: int | None = None,
    tick: Callable[[int], None] | None = None,
) -> SemanticDuplicates:
    """Find the rows that go.

    Time rows * rows of the neighbouring lists * dim / 2; memory 60 bytes a pair, 20 a row, and two tiles a thread.

    Args:
        lists: The vectors, unit or not.
        near: Lists to compare each list with, int64 (lists, probes), itself among them.
        rank: Which row stays: of two the one of lower rank, int64 (rows,), each number once.
        threshold: Cosine, 0 < threshold <= 1.
        device: Torch device of the products; each is of fixed shape.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
        tick: Called with the rows just done.

    Raises:
        ConfigError: The threshold is out of range, or so low that there are more than `MOST_PAIRS` pairs.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"dedup_threshold is a cosine, 0 < dedup_threshold <= 1; got {threshold}")
    rows = len(lists.rows)
    copies, originals = _copies(lists, rank)
    gone = np.zeros(rows, np.bool_)
    gone[copies] = True
    pairs = _Pairs(lists, near, gone, threshold=threshold, device=device)
    left, right, cosines = pairs.find(threads, tick)
    first, second = _by_rank(left, right, rank)
    order = np.lexsort((rank[second], rank[first]))
    first, second, cosines = first[order], second[order], cosines[order]
    taken = _taken(first, second, rows)
    kept, similarity = np.full(rows, -1, np.int64), np.ones(rows, np.float32)
    kept[second[taken]], similarity[second[taken]] = first[taken], cosines[taken]
    # The row whose copy this is may itself have gone: then the same row takes the copy's place.
    moved = kept[originals] >= 0
    kept[copies] = np.where(moved, kept[originals], originals)
    similarity[copies] = similarity[originals]
    found = np.flatnonzero(kept >= 0)
    return SemanticDuplicates(rows=found, kept=kept[found], similarity=similarity[found], pairs=len(first))


def _taken(first: Int64, second: Int64, rows: int) -> Int64:
    """Places of the pairs by which a row goes, int64 (n,): pairs in order of rank, both of whose rows are still there.

    Args:
        first: The row of lower rank of each pair, int64 (pairs,).
        second: The other.
        rows: Rows in all.
    """
    gone = bytearray(rows)
    taken: list[int] = []
    for start in range(0, len(first), _WALK):
        part = slice(start, start + _WALK)
        both = zip(first[part].tolist(), second[part].tolist(), strict=True)
        for at, (keeper, row) in enumerate(both, start):
            if not gone[keeper] and not gone[row]:
                gone[row] = 1
                taken.append(at)
    return np.array(taken, np.int64)


def _copies(lists: VectorLists, rank: Int64) -> tuple[Int64, Int64]:
    """Rows with the bits of another of lower rank in the same list, and the lowest such row."""
    again, kept = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for low, end in zip(lists.offsets[:-1].tolist(), lists.offsets[1:].tolist(), strict=True):
        if end - low < 2:  # noqa: PLR2004 - a pair
            continue
        rows = lists.rows[low:end]
        order = np.argsort(rank[rows], kind="stable")
        bits = np.ascontiguousarray(lists.codes[low:end][order])
        whole = bits.view(np.dtype((np.void, bits.shape[1] * bits.itemsize))).ravel()
        _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
        lowest = first[inverse]
        copy = lowest != np.arange(len(order))
        again.append(rows[order[copy]])
        kept.append(rows[order[lowest[copy]]])
    return np.concatenate(again), np.concatenate(kept)


@dataclass(eq=False)
class _Pairs:
    """Finds the pairs of rows at or above the threshold, each once, without rows that are gone."""

    lists: VectorLists
    near: Int64
    gone: Bool
    threshold: float
    device: str
    _found: dict[int, tuple[Int64, Int64, Float32]] = field(default_factory=dict)
    _total: int = 0
    _lock: Lock = field(default_factory=Lock)

    def find(self, threads: int | None, tick: Callable[[int], None] | None) -> tuple[Int64, Int64, Float32]:
        """Both rows of each pair, int64 (pairs,), and their cosine, float32 (pairs,), in the order of the lists."""
        others: list[set[int]] = [set() for _ in range(len(self.lists))]
        for one, row in enumerate(self.near.tolist()):
            for other in row:
                others[min(one, other)].add(max(one, other))
        blocks = [(one, queries) for one in range(len(self.lists)) for queries in _tiles(self.lists, one)]

        def work(at: int) -> None:
            one, queries = blocks[at]
            self._block(at, one, queries, sorted(others[one]))
            if tick is not None:
                tick(queries.stop - queries.start)

        run_blocks(work, len(blocks), device=self.device, threads=threads)
        nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        parts = [nothing, *(self._found[at] for at in sorted(self._found))]
        left, right, cosines = (np.concatenate(part) for part in zip(*parts, strict=True))
        return left, right, cosines

    def _block(self, at: int, one: int, queries: slice, others: list[int]) -> None:
        block = self._padded(queries)
        parts = []
        for other in others:
            for tile in _tiles(self.lists, other):
                if one == other and tile.start < queries.start:
                    continue
                cosines = block @ self._padded(tile).T
                parts.append(self._above(cosines.triu(1) if tile == queries else cosines, queries, tile))
        left, right, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        with self._lock:
            self._total += len(left)
            if self._total > MOST_PAIRS:
                raise ConfigError(
                    f"more than {MOST_PAIRS:,} pairs of rows have a cosine of {self.threshold} or more: raise "
                    "dedup_threshold, or use an embedder that tells these rows apart"
                )
            if len(left):
                self._found[at] = left, right, values

    def _above(self, cosines: torch.Tensor, queries: slice, tile: slice) -> tuple[Int64, Int64, Float32]:
        at = (cosines >= self.threshold).nonzero()
        values = cosines[at[:, 0], at[:, 1]].clamp_(max=1.0).cpu().numpy()
        where = at.cpu().numpy()
        rows = self.lists.rows
        left, right = rows[where[:, 0] + queries.start], rows[where[:, 1] + tile.start]
        there = ~(self.gone[left] | self.gone[right])
        return left[there], right[there], values[there]

    def _padded(self, places: slice) -> torch.Tensor:
        """The vectors at some places, filled up with zero rows, float32 (`_TILE`, dim), on the device."""
        import torch

        tile = torch.zeros(_TILE, self.lists.codes.shape[1])
        tile[: places.stop - places.start] = torch.from_numpy(self.lists.unit(places))
        return tile.to(self.device)


def _tiles(lists: VectorLists, number: int) -> list[slice]:
    low, end = int(lists.offsets[number]), int(lists.offsets[number + 1])
    return [slice(start, min(start + _TILE, end)) for start in range(low, end, _TILE)]


def _by_rank(left: Int64, right: Int64, rank: Int64) -> tuple[Int64, Int64]:
    """Each pair, the row of lower rank first."""
    swap = rank[left] > rank[right]
    return np.where(swap, right, left), np.where(swap, left, right)
