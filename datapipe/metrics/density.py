"""Scores from the cosines to the nearest neighbours: how thinly the space around a row is populated.

`knn_density`: mean cosine distance to the k nearest; after the k-th neighbour estimate of a density (Loftsgaarden &
Quesenberry 1965), of all k distances instead of the last. Higher is rarer.
`typicality`: inverse mean Euclidean distance to the k nearest (Hacohen et al. 2022, arXiv 2202.02794, section on
typicality; K = 20 there). Higher is more typical. Their distance has no floor; ours has, since copies have distance 0.

cosines (rows, k), NaN where a row has fewer neighbours -> float32 (rows,). A row without any neighbour is as far from
others as can be, 2, and as little typical, 1/2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32, Float64

DENSITY_NEIGHBOURS = 10
TYPICALITY_NEIGHBOURS = 20
FLOOR = 2.0**-8
"""Least mean distance of `typicality`: what bfloat16 rounding moves a unit vector by, so copies score 256 at most."""
_FARTHEST = 2.0


def knn_density(cosines: Float32) -> Float32:
    """Return the mean of 1 - cos over the neighbours, float32 (rows,) in [0, 2]; sums in float64."""
    return _mean(np.clip(1.0 - cosines.astype(np.float64), 0.0, _FARTHEST)).astype(np.float32)


def typicality(cosines: Float32) -> Float32:
    """Return 1 / max(mean of sqrt(2 - 2 cos), FLOOR), float32 (rows,) in [1/2, 256]; sums in float64."""
    distances = np.sqrt(np.clip(2.0 - 2.0 * cosines.astype(np.float64), 0.0, _FARTHEST**2))
    return (1.0 / np.maximum(_mean(distances), FLOOR)).astype(np.float32)


def _mean(distances: Float64) -> Float64:
    """Mean over the neighbours that are there, the nearest first; the farthest distance where none is."""
    there = np.isfinite(distances).sum(axis=1)
    sums = np.zeros(len(distances))
    for column in distances.T:
        sums += np.where(np.isfinite(column), column, 0.0)
    mean: Float64 = np.where(there > 0, sums / np.maximum(there, 1), _FARTHEST)
    return mean
