"""Which of two rows that say the same stays: the order in which rows are kept.

    lengths of texts, or cosines to the centroid of each row's list -> rank_of -> `semantic_duplicates`

SemDeDup (Abbas et al. 2023, arXiv 2303.09540) keeps the row that is furthest from its cluster's centroid: `hardest`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32, Float64, Int64
    from datapipe.storage.lists import VectorLists

_TILE = 4096


def rank_of(values: Float64) -> Int64:
    """The rank of each row, the greatest value first and of equals the lower row, int64 (rows,)."""
    rank = np.empty(len(values), np.int64)
    rank[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return rank


def centrality(lists: VectorLists, centroids: Float32) -> Float64:
    """The cosine of each row to the centroid of its list, float64 (rows,), in row order; 0 without length.

    With one list the centroid is the mean of the unit vectors.

    Args:
        lists: The vectors.
        centroids: Of the lists, float32 (lists, dim); not read where there is one list.
    """
    if len(lists) == 1:
        total = np.zeros(lists.codes.shape[1])
        for tile in _tiles(lists, 0):
            total += lists.unit(tile).sum(axis=0, dtype=np.float64)
        centroids = total[None].astype(np.float32)
    found = np.zeros(len(lists.rows))
    for number in range(len(lists)):
        centre = centroids[number].astype(np.float64)
        centre /= np.sqrt(centre @ centre) or 1.0
        for tile in _tiles(lists, number):
            found[lists.rows[tile]] = np.einsum("ij,j->i", lists.unit(tile), centre)
    return found


def _tiles(lists: VectorLists, number: int) -> list[slice]:
    low, end = int(lists.offsets[number]), int(lists.offsets[number + 1])
    return [slice(start, min(start + _TILE, end)) for start in range(low, end, _TILE)]
