"""Have centroids gone out of date: do rows that they were not fitted to lie further from them?

errors 1 - cos of the rows fitted to, each against its centroid without it | errors of the new rows -> exact sums ->
ratio of the means with an interval -> refit or not

The assignment error of a row is 1 - max_j cos(z, c_j), its prototype score. A centroid leans towards the rows that it
is the mean of, so their errors are too small to compare with: each is taken against the centroid that the other rows
of its cluster give, in closed form. The interval of the ratio is that of the difference of two log means (delta method,
normal). Sums are of whole numbers, so they are exact: neither the order of the rows nor how they were cut changes a
bit. Knows no file and no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32, Float64, Int32, Int64

THRESHOLD = 0.08
"""Rise of the mean error from which centroids are fitted again, as a part of the mean before.

Between halves of one text set the rise is -0.02 to 0.03 at 5 to 60 rows a centroid, where errors as they are rise by
0.04 to 0.62; rows of another set raise the error by 0.23 to 2.8, and a fifth of such rows by 0.09 to 0.64
(`benchmarks/drift.py`). Rows without any clusters, in 8 to 16 dimensions, reach a lower end of 0.07 by themselves.
"""
LEAST_ROWS = 30
"""Fewer new rows than this are not judged: the interval is that of means of many."""
_Z = 1.959964  # 97.5 % of the normal distribution
_SCALE = 1 << 24  # errors are at most 2, so a square is below 2**51
_ROWS = 1 << 12  # squares summed at once: below 2**63


class Pulls:
    """How strongly the rows of each cluster pull its centroid: the length of their sum, R_j = sum of their cosines."""

    def __init__(self) -> None:
        self._sums: Float64 = np.zeros(0)
        self._rows: Int64 = np.zeros(0, np.int64)

    def add(self, errors: Float32, clusters: Int32) -> None:
        """Count rows: their errors, float32 (rows,) in [0, 2], and clusters, int32 (rows,)."""
        k = max(len(self._sums), int(clusters.max(initial=-1)) + 1)
        whole = np.rint((1.0 - errors.astype(np.float64)) * _SCALE)  # whole numbers add up exactly below 2**53
        sums = np.bincount(clusters, whole, k).astype(np.float64)
        rows = np.bincount(clusters, minlength=k).astype(np.int64)
        sums[: len(self._sums)] += self._sums
        rows[: len(self._rows)] += self._rows
        self._sums, self._rows = sums, rows

    def without_self(self, errors: Float32, clusters: Int32) -> Float32:
        """Return each row's error against the centroid of the other rows of its cluster, float32 (rows,) in [0, 2].

        With c = cos(z, c_j) and R = R_j the mean without z points along R c_j - z, so the cosine is
        (R c - 1) / sqrt(R^2 - 2 R c + 1). NaN for a row that is alone in its cluster.
        """
        cosines, pull = 1.0 - errors.astype(np.float64), self._sums[clusters] / _SCALE
        with np.errstate(invalid="ignore", divide="ignore"):
            left = (pull * cosines - 1) / np.sqrt(np.maximum(pull * pull - 2 * pull * cosines + 1, 0))
        left[self._rows[clusters] < 2] = np.nan  # noqa: PLR2004 - nothing is left of a cluster of one
        found: Float32 = np.clip(1 - left, 0, 2).astype(np.float32)
        return found


@dataclass(frozen=True)
class ErrorSums:
    """Exact sums of assignment errors, in units of 2**-24.

    Attributes:
        rows: How many errors.
        total: Their sum.
        squares: The sum of their squares.
    """

    rows: int = 0
    total: int = 0
    squares: int = 0

    def plus(self, errors: Float32) -> ErrorSums:
        """Return the sums with these errors added: float32 (rows,) in [0, 2], those that are NaN left out."""
        whole = np.rint(errors[np.isfinite(errors)].astype(np.float64) * _SCALE).astype(np.int64)
        total, squares = self.total, self.squares
        for start in range(0, len(whole), _ROWS):
            part = whole[start : start + _ROWS]
            total += int(part.sum())
            squares += int((part * part).sum())
        return ErrorSums(self.rows + len(whole), total, squares)

    @property
    def mean(self) -> float:
        """Mean error; 0 without rows."""
        return self.total / (self.rows * _SCALE) if self.rows else 0.0

    @property
    def variance(self) -> float:
        """Unbiased variance of the errors; 0 for fewer than two rows."""
        if self.rows < 2:  # noqa: PLR2004 - one value has no spread
            return 0.0
        return (self.rows * self.squares - self.total**2) / (self.rows * (self.rows - 1)) / _SCALE**2


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How much further new rows lie from the centroids than those that the centroids were fitted to.

    Attributes:
        fitted_rows: Rows of the set that the centroids were fitted to.
        fitted_error: Their mean 1 - cos to the centroid of the other rows of their cluster.
        new_rows: Rows that came since.
        new_error: Their mean 1 - cos to the nearest centroid.
        rise: new_error / fitted_error - 1; None where there are too few rows to say, or the first error is 0.
        low: Lower end of its 95 % interval.
        high: Upper end.
        threshold: `rise` from which the centroids are out of date.
        refit: Whether they are: the whole interval lies above the threshold.
    """

    fitted_rows: int
    fitted_error: float
    new_rows: int
    new_error: float
    rise: float | None
    low: float | None
    high: float | None
    threshold: float
    refit: bool


def drift_of(fitted: ErrorSums, new: ErrorSums, *, threshold: float = THRESHOLD) -> Drift:
    """Compare the errors of new rows with those of the rows that the centroids were fitted to.

    Below `LEAST_ROWS` new rows nothing is said and nothing refitted. Where the fitted rows lie on their centroids
    (mean error 0, as with a centroid a row), any error above 0 counts as drift.
    """
    rise = low = high = None
    refit = False
    if new.rows >= LEAST_ROWS and fitted.rows:
        if fitted.total and new.total:
            ratio = new.mean / fitted.mean
            spread = sum(each.variance / (each.rows * each.mean**2) for each in (fitted, new))
            reach = math.exp(_Z * math.sqrt(spread))
            rise, low, high = ratio - 1, ratio / reach - 1, ratio * reach - 1
            refit = low > threshold
        else:
            refit = not fitted.total and new.total > 0
    return Drift(
        fitted_rows=fitted.rows,
        fitted_error=fitted.mean,
        new_rows=new.rows,
        new_error=new.mean,
        rise=rise,
        low=low,
        high=high,
        threshold=threshold,
        refit=refit,
    )
