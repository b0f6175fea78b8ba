"""How much of the embedding space a row covers beyond its neighbours, from random points of random planes.

ZCore: Griffin et al., arXiv 2411.15349. For each draw: two dims at random; a point whose two numbers come from
triangular distributions over (least, median, greatest) of their dims; the row nearest to the point (L1 in the plane)
gains 1; the rows nearest to that row lose, together, 1, in proportion to 1 / d^4. Higher is better.

What differs, so that it costs minutes at a million rows instead of draws x rows:
    planes    `PLANES` pairs of dims take all draws between them; the rows of a plane are sorted once by their first
              number, and the nearest are looked for in a window that widens until nothing outside can be nearer
    penalty   over the `REDUNDANT` nearest in place of 1,000: in a plane 1 / d^4 falls as 1 / rank^2, and the rest holds
              about 2 % of it; rows at distance 0 share the whole penalty, where the authors' code charges one of them

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

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32, Float64, Int64

DRAWS = 1_000_000
"""As in the paper."""
PLANES = 512
REDUNDANT = 32
EXPONENT = 4
_CELLS = 1 << 20  # distances held at a time


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

    A lone row gains every draw. Time planes * rows * log rows + draws * window; memory 48 bytes a row and thread.

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
        values = _floats(columns[number])
        low, middle, high = float(values.min()), float(np.median(values)), float(values.max())
        points[:, axis] = _triangular(share[:, axis], low, middle, high)
    return Draws(dims=dims, points=points)


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
    x, y = (_floats(columns[number]).astype(np.float64) for number in drawn.dims.tolist())
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    nearest = _nearest(x, y, drawn.points, 1, order)[0][:, 0]
    winners, wins = np.unique(nearest, return_counts=True)
    gains = wins.astype(np.float64)
    count = min(REDUNDANT + 1, len(x))
    if count == 1:
        return order[winners], gains
    places, distances = _nearest(x, y, np.column_stack([x[winners], y[winners]]), count, order)
    other = places != winners[:, None]
    # A winner may have so many copies that it is not among its own nearest: then the last of them is left out.
    other[other.all(axis=1), -1] = False
    losses = -gains[:, None] * _penalty(distances, other)
    return np.append(order[winners], order[places[other]]), np.append(gains, losses[other])


def _penalty(distances: Float64, other: NDArray[np.bool_]) -> Float64:
    """Shares of the penalty among the neighbours of each winner, float64 (winners, neighbours), each row of sum 1."""
    copies = other & (distances == 0)
    least = np.where(other & (distances > 0), distances, np.inf).min(axis=1, keepdims=True)
    # In units of the nearest distance, so that no power overflows.
    ratio = np.where(np.isfinite(least), least, 1.0) / np.where(distances > 0, distances, np.inf)
    weights = np.where(copies.any(axis=1, keepdims=True), copies, np.where(other, ratio**EXPONENT, 0.0))
    shares: Float64 = weights / weights.sum(axis=1, keepdims=True)
    return shares


def _nearest(x: Float64, y: Float64, points: Float64, count: int, rows: Int64) -> tuple[Int64, Float64]:
    """The `count` places nearest to each point by L1, and their distances, (points, count).

    For one, ties go to the lowest row; for several, those at the last distance are taken by their places.

    Args:
        x: First numbers, ascending, float64 (rows,).
        y: Second numbers, in the same order.
        points: float64 (points, 2).
        count: 1 <= count <= rows.
        rows: The row at each place.
    """
    found = np.empty((len(points), count), np.int64)
    distance = np.empty((len(points), count))
    pending = np.arange(len(points))
    width = min(max(64, 8 * count), len(x))
    while len(pending):
        again = []
        step = max(_CELLS // width, 1)
        for start in range(0, len(pending), step):
            some = pending[start : start + step]
            places, apart, sure = _within(x, y, points[some], count, width, rows)
            found[some], distance[some] = places, apart
            again.append(some[~sure])
        pending = np.concatenate(again)
        width = min(4 * width, len(x))
    return found, distance


def _within(
    x: Float64, y: Float64, points: Float64, count: int, width: int, rows: Int64
) -> tuple[Int64, Float64, NDArray[np.bool_]]:
    """As `_nearest`, among the `width` places around each point; and whether no place outside can be as near."""
    begin = np.clip(np.searchsorted(x, points[:, 0]) - width // 2, 0, len(x) - width)
    end = begin + width
    view = np.lib.stride_tricks.sliding_window_view
    apart = np.abs(view(x, width)[begin] - points[:, :1]) + np.abs(view(y, width)[begin] - points[:, 1:])
    if count == 1:
        least = apart.min(axis=1, keepdims=True)
        ranks = np.where(apart == least, view(rows, width)[begin], len(rows))
        places = ranks.argmin(axis=1)[:, None]
    else:
        places = np.argpartition(apart, count - 1, axis=1)[:, :count]
    chosen = np.take_along_axis(apart, places, axis=1)
    reach = chosen.max(axis=1)
    below = np.where(begin > 0, points[:, 0] - x[np.maximum(begin - 1, 0)], np.inf)
    above = np.where(end < len(x), x[np.minimum(end, len(x) - 1)] - points[:, 0], np.inf)
    return places + begin[:, None], chosen, (reach < below) & (reach < above)


def _floats(bits: NDArray[np.uint16]) -> Float32:
    wide = np.asarray(bits).astype("<u4")
    values: Float32 = np.left_shift(wide, 16, out=wide).view("<f4")
    return values
