"""How much of the embedding space a row covers beyond its neighbours, from random points of random planes.

ZCore: Griffin et al., arXiv 2411.15349. For each draw: two dims at random; a point whose two numbers come from
triangular distributions over (least, median, greatest) of their dims; the row nearest to the point (L1 in the plane)
gains 1; the rows nearest to that row lose, together, 1, in proportion to 1 / d^4. Higher is better.

What differs, so that it costs minutes at a million rows instead of draws x rows:
    planes    `PLANES` pairs of dims take all draws between them; the rows of a plane are sorted once into strips (see
              `datapipe.metrics.strips`), where the nearest are found exactly without a look at the others
    penalty   over the `REDUNDANT` nearest in place of 1,000: in a plane 1 / d^4 falls as 1 / rank^2, and the rest holds
              about 2 % of it; rows at distance 0 share the whole penalty, where the authors' code charges one of them
    ties      go to the lower row, for the one nearest and for the last of several

columns (dim, rows) -> planes -> winners and losers -> float32 (rows,). Draws come from Philox by plane; planes are
summed in their order; so neither threads nor shards change a bit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError
from datapipe.metrics.pool import usable_cpus
from datapipe.metrics.strips import Strips, ordered, value_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32, Float64, Int64

DRAWS = 1_000_000
"""As in the paper."""
PLANES = 512
REDUNDANT = 32
EXPONENT = 4


@dataclass(frozen=True, eq=False)
class Draws:
    """The random points of one plane.

    Attributes:
        dims: The two dims, int64 (2,).
        points: float64 (draws, 2).
    """

    dims: Int64
    points: Float64


def coverage(
    columns: NDArray[np.uint16],
    *,
    seed: int,
    draws: int = DRAWS,
    planes: int = PLANES,
    threads: int | None = None,
    tick: Callable[[int], None] | None = None,
) -> Float32:
    """Return what each row gains less what it loses, float32 (rows,); the sum over all rows is 0 but for rounding.

    A lone row gains every draw. Time planes * rows + draws * root of rows; memory 40 bytes a row and thread.

    Args:
        columns: bfloat16 bits of the vectors, uint16 (dim, rows), such as a memory-mapped file.
        seed: Of the draws.
        draws: Points in all, >= planes.
        planes: Pairs of dims, >= 1.
        threads: None takes the CPUs this process may use. Does not change the result.
        tick: Called with the planes just done.

    Raises:
        MetricError: There are fewer than two dims, or `draws` and `planes` are out of range.
    """
    dim, rows = columns.shape
    if dim < 2:  # noqa: PLR2004 - a plane
        raise MetricError(f"coverage draws points in planes of two dims; the vectors have {dim}")
    if not 1 <= planes <= draws:
        raise MetricError(f"coverage needs 1 <= planes <= draws; got {planes} planes, {draws} draws")
    scores = np.zeros(rows)
    if not rows:
        return scores.astype(np.float32)

    def work(plane: int) -> tuple[Int64, Float64]:
        count = draws // planes + (plane < draws % planes)
        return _plane(columns, draw(columns, count, seed=seed, plane=plane))

    with ThreadPoolExecutor(threads or usable_cpus()) as pool:
        for places, amounts in pool.map(work, range(planes)):
            scores += np.bincount(places, amounts, minlength=rows)
            if tick is not None:
                tick(1)
    return scores.astype(np.float32)


def draw(columns: NDArray[np.uint16], count: int, *, seed: int, plane: int) -> Draws:
    """Return `count` points of plane number `plane`, the same for the same seed on any machine."""
    chance = np.random.Generator(np.random.Philox(key=np.array([seed, plane], np.uint64)))
    dims = chance.choice(len(columns), 2, replace=False)
    share = chance.random((count, 2))
    points = np.empty((count, 2))
    for axis, number in enumerate(dims.tolist()):
        low, middle, high = _quantiles(ordered(columns[number]))
        points[:, axis] = _triangular(share[:, axis], low, middle, high)
    return Draws(dims=dims, points=points)


def _quantiles(keys: NDArray[np.uint16]) -> tuple[float, float, float]:
    """Least, median and greatest of the numbers with these keys; counted, not sorted."""
    below = np.cumsum(np.bincount(keys))
    middle = np.searchsorted(below, [(len(keys) - 1) // 2, len(keys) // 2], side="right")
    ends = np.searchsorted(below, [0, len(keys) - 1], side="right")
    low, high = value_of(ends).tolist()
    return low, float(value_of(middle).mean(dtype=np.float32)), high


def _triangular(share: Float64, low: float, middle: float, high: float) -> Float64:
    """Inverse of the triangular distribution function, float64 of the shape of `share` in [0, 1)."""
    width = high - low
    if not width:
        return np.full(share.shape, low)
    rising = low + np.sqrt(share * width * (middle - low))
    falling = high - np.sqrt((1.0 - share) * width * (high - middle))
    points: Float64 = np.where(share * width < middle - low, rising, falling)
    return points


def _plane(columns: NDArray[np.uint16], drawn: Draws) -> tuple[Int64, Float64]:
    """The rows that gain or lose in a plane, and how much; a row may stand several times."""
    count = min(REDUNDANT + 1, columns.shape[1])
    x, y = (ordered(columns[number]) for number in drawn.dims.tolist())
    strips = Strips(x, y, most=count)
    nearest = strips.nearest(drawn.points, 1)[0][:, 0]
    winners, wins = np.unique(nearest, return_counts=True)
    gains = wins.astype(np.float64)
    if count == 1:
        return winners, gains
    places = np.column_stack([value_of(x[winners]), value_of(y[winners])]).astype(np.float64)
    # A winner is the lowest row of its place, so it is among its own nearest.
    near, distances = strips.nearest(places, count)
    other = near != winners[:, None]
    losses = -gains[:, None] * _penalty(distances, other)
    return np.append(winners, near[other]), np.append(gains, losses[other])


def _penalty(distances: Float64, other: NDArray[np.bool_]) -> Float64:
    """Shares of the penalty among the neighbours of each winner, float64 (winners, neighbours), each row of sum 1."""
    copies = other & (distances == 0)
    least = np.where(other & (distances > 0), distances, np.inf).min(axis=1, keepdims=True)
    # In units of the nearest distance, so that no power overflows.
    ratio = np.where(np.isfinite(least), least, 1.0) / np.where(distances > 0, distances, np.inf)
    weights = np.where(copies.any(axis=1, keepdims=True), copies, np.where(other, ratio**EXPONENT, 0.0))
    shares: Float64 = weights / weights.sum(axis=1, keepdims=True)
    return shares
