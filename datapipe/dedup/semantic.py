"""Rows that say the same thing in other words: pairs of a cosine at or above a threshold, and which row of each stays.

    VectorLists + neighbouring lists -> tiles of the upper triangle -> pairs -> one kept row for each row that goes

After SemDeDup (Abbas et al. 2023, arXiv 2303.09540): clusters, pairs inside them. Here pairs across neighbouring lists
count too. And where theirs takes out a row for being near any other, here each row that goes is at or above the
threshold with the row kept in its place: rows are gone through in the order of `rank`, and a row that is still there
takes out what is near to it. So a chain of small steps does not fall together into its first row.

Copies (equal bits) are put together before pairs are made, so a row with a million copies makes no pair of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.storage.arrays import Float32, Int64
    from datapipe.storage.lists import VectorLists

SEMANTIC = 0.95
"""Default cosine; see `datapipe.dedup.protect.NEAR` for what pairs of real texts look like at it."""
MOST_PAIRS = 50_000_000
_TILE = 1024


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
    tick: Callable[[int], None] | None = None,
) -> SemanticDuplicates:
    """Find the rows that go.

    Time rows * rows of the neighbouring lists * dim / 2; memory 20 bytes a pair and two tiles.

    Args:
        lists: The vectors, unit or not.
        near: Lists to compare each list with, int64 (lists, probes), itself among them.
        rank: Which row stays: of two the one of lower rank, int64 (rows,), each number once.
        threshold: Cosine, 0 < threshold <= 1.
        device: Torch device of the products; each is of fixed shape.
        tick: Called with the rows just done.

    Raises:
        ConfigError: The threshold is out of range, or so low that there are more than `MOST_PAIRS` pairs.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"dedup_threshold is a cosine, 0 < dedup_threshold <= 1; got {threshold}")
    copies, kept = _copies(lists, rank)
    gone = np.zeros(len(lists.rows), np.bool_)
    gone[copies] = True
    left, right, cosine = _pairs(lists, near, gone, threshold, device, tick)
    first, second = _by_rank(left, right, rank)
    order = np.lexsort((rank[second], rank[first]))
    stays = {int(row): (int(keeper), 1.0) for row, keeper in zip(copies, kept, strict=True)}
    moved: dict[int, tuple[int, float]] = {}
    for at in order.tolist():
        keeper, row = int(first[at]), int(second[at])
        if keeper not in moved and row not in moved:
            moved[row] = (keeper, float(cosine[at]))
    for row, (keeper, _) in stays.items():
        # The row whose copy this is may itself have gone: then the copy's place is taken by the same row.
        stays[row] = moved.get(keeper, (keeper, 1.0))
    found = sorted({**stays, **moved}.items())
    return SemanticDuplicates(
        rows=np.array([row for row, _ in found], np.int64),
        kept=np.array([keeper for _, (keeper, _) in found], np.int64),
        similarity=np.array([value for _, (_, value) in found], np.float32),
        pairs=len(left),
    )


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


def _pairs(
    lists: VectorLists,
    near: Int64,
    gone: np.ndarray,
    threshold: float,
    device: str,
    tick: Callable[[int], None] | None,
) -> tuple[Int64, Int64, Float32]:
    """Pairs of rows at or above the threshold, each once, without rows that are gone."""
    import torch

    found: list[tuple[Int64, Int64, Float32]] = [
        (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    ]
    both = {(min(i, j), max(i, j)) for i, row in enumerate(near.tolist()) for j in row}
    total = 0
    for one, other in sorted(both):
        for queries in _tiles(lists, one):
            block = torch.zeros(_TILE, lists.codes.shape[1])
            block[: queries.stop - queries.start] = torch.from_numpy(lists.unit(queries))
            block = block.to(device)
            for tile in _tiles(lists, other):
                if one == other and tile.start < queries.start:
                    continue
                against = torch.zeros_like(block, device="cpu")
                against[: tile.stop - tile.start] = torch.from_numpy(lists.unit(tile))
                cosines = block @ against.to(device).T
                cosines = cosines.triu(1) if one == other and tile == queries else cosines
                at = (cosines >= threshold).nonzero()
                values = cosines[at[:, 0], at[:, 1]].cpu().numpy()
                where = at.cpu().numpy()
                left, right = lists.rows[where[:, 0] + queries.start], lists.rows[where[:, 1] + tile.start]
                there = ~(gone[left] | gone[right])
                found.append((left[there], right[there], np.minimum(values[there], np.float32(1.0))))
                total += int(there.sum())
                if total > MOST_PAIRS:
                    raise ConfigError(
                        f"more than {MOST_PAIRS:,} pairs of rows have a cosine of {threshold} or more: raise "
                        "dedup_threshold, or use an embedder that tells these rows apart"
                    )
            if tick is not None and one == other:
                tick(queries.stop - queries.start)
    left_, right_, values_ = (np.concatenate(part) for part in zip(*found, strict=True))
    return left_, right_, values_


def _tiles(lists: VectorLists, number: int) -> list[slice]:
    low, end = int(lists.offsets[number]), int(lists.offsets[number + 1])
    return [slice(start, min(start + _TILE, end)) for start in range(low, end, _TILE)]


def _by_rank(left: Int64, right: Int64, rank: Int64) -> tuple[Int64, Int64]:
    """Each pair, the row of lower rank first."""
    swap = rank[left] > rank[right]
    return np.where(swap, right, left), np.where(swap, left, right)
