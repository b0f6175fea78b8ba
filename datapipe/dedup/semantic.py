"""Rows that say the same thing in other words: pairs of a cosine at or above a threshold, and which row of each stays.

    VectorLists + neighbouring lists -> tiles of the upper triangle -> pairs -> one kept row for each row that goes

After SemDeDup (Abbas et al. 2023, arXiv 2303.09540): clusters, pairs inside them. Here pairs across neighbouring lists
count too. And where theirs takes out a row for being near any other, here each row that goes is at or above the
threshold with the row kept in its place: rows are gone through in the order of `rank`, and a row that is still there
takes out what is near to it. So a chain of small steps does not fall together into its first row.

Copies (equal bits) are put together before pairs are made, so a row with a million copies makes no pair of them. A
float32 product names the candidates, a little below the threshold; each pair is then decided by its cosine in float64.
So what is found depends on which lists are compared, and on no tile, thread or device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError
from datapipe.metrics.knn import on_device
from datapipe.metrics.pool import run_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray

    from datapipe.storage.arrays import Bool, Float32, Float64, Int64
    from datapipe.storage.lists import VectorLists

SEMANTIC = 0.95
"""Default cosine, from people's labels of pairs (all-MiniLM-L6-v2; 200 pairs each of Quora questions and of MRPC).

Share of pairs at or above the cosine that people call the same: at 0.95 43 of 45, at 0.92 77 of 84, at 0.90 86 of 100,
at 0.85 124 of 153. The embedder does not see word order: of 200 PAWS pairs, made of the same words, 160 lie above 0.95
and 78 of these are the same. Fillers of transcripts ("Yeah , right .") say the same to it from 0.93 on.
"""
MOST_PAIRS = 50_000_000
_QUERIES = 512  # rows of a block on the host
_RESIDENT_BYTES = 24 << 30  # bits that an accelerator holds as a whole
_TILE = 4096  # rows that a block is compared with in one product
_SLACK = 1e-5  # by which a float32 product may miss a cosine
_RESCORED = 1 << 12  # pairs whose vectors are held in float64 at once
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

    Time rows * rows of the neighbouring lists * dim / 2; memory 60 bytes a pair, 28 a row, and a tile a thread.

    Args:
        lists: The vectors, unit or not.
        near: Lists to compare each list with, int64 (lists, probes), itself among them.
        rank: Which row stays: of two the one of lower rank, int64 (rows,), each number once.
        threshold: Cosine, 0 < threshold <= 1.
        device: Torch device of the products. Does not change the result.
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


def pair_recall(lists: VectorLists, near: Int64, sample: Int64, *, threshold: float) -> tuple[int, int]:
    """Pairs at or above the threshold of some rows with any other: those in lists that are compared, and all.

    Copies are not counted: they lie in one list. Time sample * rows * dim; memory 64 KiB a row of the sample.

    Args:
        lists: The vectors.
        near: Lists that each list is compared with, int64 (lists, probes), itself among them.
        sample: Places of rows in the lists, int64 (n,).
        threshold: Cosine.
    """
    queries = np.concatenate([lists.unit(slice(at, at + 1)) for at in sample.tolist()])
    list_of = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    compared = {(one, other) for one, row in enumerate(near.tolist()) for other in row}
    found = every = 0
    for start in range(0, len(list_of), 4 * _TILE):
        tile = slice(start, min(start + 4 * _TILE, len(list_of)))
        one, other = np.nonzero(queries @ lists.unit(tile).T >= threshold - _SLACK)
        one, other = sample[one], other + start
        cosines = exact_cosines(lists, one, other)
        pair = (one != other) & (cosines >= threshold) & (cosines < 1.0 - 1e-12)
        both = zip(list_of[one[pair]].tolist(), list_of[other[pair]].tolist(), strict=True)
        hits = [(left, right) in compared or (right, left) in compared for left, right in both]
        found, every = found + sum(hits), every + len(hits)
    return found, every


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
    _resident: tuple[torch.Tensor, torch.Tensor] | None = None
    _found: dict[int, tuple[Int64, Int64, Float32]] = field(default_factory=dict)
    _total: int = 0
    _lock: Lock = field(default_factory=Lock)

    def find(self, threads: int | None, tick: Callable[[int], None] | None) -> tuple[Int64, Int64, Float32]:
        """Both rows of each pair, int64 (pairs,), and their cosine, float32 (pairs,), in the order of the lists."""
        _ = self.lists.scales  # before threads ask for it
        if self.device != "cpu" and self.lists.codes.nbytes <= _RESIDENT_BYTES:
            self._resident = on_device(self.lists, self.device)
        rows = _QUERIES if self.device == "cpu" else _TILE
        others: list[set[int]] = [set() for _ in range(len(self.lists))]
        for one, row in enumerate(self.near.tolist()):
            for other in row:
                others[min(one, other)].add(max(one, other))
        blocks = [(one, queries) for one in range(len(self.lists)) for queries in _tiles(self.lists, one, rows)]

        def work(at: int) -> None:
            one, queries = blocks[at]
            self._block(at, queries, sorted(others[one]))
            if tick is not None:
                tick(queries.stop - queries.start)

        run_blocks(work, len(blocks), device=self.device, threads=threads)
        nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        parts = [nothing, *(self._found[at] for at in sorted(self._found))]
        left, right, cosines = (np.concatenate(part) for part in zip(*parts, strict=True))
        return left, right, cosines

    def _block(self, at: int, queries: slice, others: list[int]) -> None:
        block = self._units(queries)
        parts = [
            self._above(block, queries, slice(max(tile.start, queries.start), tile.stop))
            for other in others
            for tile in _tiles(self.lists, other, _TILE)
            if tile.stop > queries.start
        ]
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

    def _above(self, block: torch.Tensor, queries: slice, tile: slice) -> tuple[Int64, Int64, Float32]:
        least = self.threshold - _SLACK
        cosines = block @ self._units(tile).T
        if cosines.amax() < least:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        left, right = (cosines >= least).nonzero(as_tuple=True)
        one, other = left.cpu().numpy() + queries.start, right.cpu().numpy() + tile.start
        rows = self.lists.rows
        there = (one < other) & ~(self.gone[rows[one]] | self.gone[rows[other]])
        one, other = one[there], other[there]
        values = exact_cosines(self.lists, one, other)
        same = values >= self.threshold
        return rows[one[same]], rows[other[same]], np.minimum(values[same], 1.0).astype(np.float32)

    def _units(self, places: slice) -> torch.Tensor:
        """The vectors at some places, float32 (places, dim), on the device."""
        import torch

        if self._resident is None:
            return torch.from_numpy(self.lists.unit(places)).to(self.device)
        bits, scales = self._resident
        return bits[places].float() * scales[places, None]


def exact_cosines(lists: VectorLists, one: Int64, other: Int64) -> Float64:
    """The cosines of pairs of places, float64 (pairs,), each by itself; 0 beside a vector without length."""
    cosines = np.empty(len(one))
    for start in range(0, len(one), _RESCORED):
        part = slice(start, start + _RESCORED)
        left, right = (_wide(lists.codes[places[part]]) for places in (one, other))
        lengths = np.sqrt(_dots(left, left) * _dots(right, right))
        cosines[part] = _dots(left, right) / np.where(lengths > 0, lengths, 1.0)
    return cosines


def _wide(bits: NDArray[np.uint16]) -> Float64:
    return (bits.astype("<u4") << np.uint32(16)).view("<f4").astype(np.float64)


def _dots(left: Float64, right: Float64) -> Float64:
    products: Float64 = np.einsum("ij,ij->i", left, right)
    return products


def _tiles(lists: VectorLists, number: int, rows: int) -> list[slice]:
    """The places of a list, at most `rows` at a time."""
    low, end = int(lists.offsets[number]), int(lists.offsets[number + 1])
    return [slice(start, min(start + rows, end)) for start in range(low, end, rows)]


def _by_rank(left: Int64, right: Int64, rank: Int64) -> tuple[Int64, Int64]:
    """Each pair, the row of lower rank first."""
    swap = rank[left] > rank[right]
    return np.where(swap, right, left), np.where(swap, left, right)
