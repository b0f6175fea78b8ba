"""What repeated trainings say about a difference: intervals over seeds, and a verdict that the noise cannot win.

    accuracies, one a seed -> interval (Student's t, bootstrap) -> verdict: win, loss, or no difference inside the noise

Pure Python and numpy, float64. Raises `MetricError` for seeds that do not match or values that are not finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from datapipe.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Float64, Int64

LEVEL = 0.95
"""Of every interval."""
POWER = 0.8
"""Chance with which a true difference as large as `Comparison.detectable` is called one."""

Verdict: TypeAlias = Literal["win", "loss", "no difference inside the noise"]
NO_DIFFERENCE: Verdict = "no difference inside the noise"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the interval around it.

    Attributes:
        mean: In the unit of the values.
        low: Lower end; -inf for a single value.
        high: Upper end; inf for a single value.
        count: Values.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm against another.

    Attributes:
        difference: Mean of the first minus mean of the second, with its interval.
        verdict: `win` where the interval lies above 0, `loss` below; else there is no difference inside the noise.
        detectable: Least true difference that as many seeds with this spread would show with the chance `POWER`; inf
            for a single seed.
        paired: Whether equal seeds were subtracted from each other.
    """

    difference: Interval
    verdict: Verdict
    detectable: float
    paired: bool


def interval(values: Sequence[float], *, level: float = LEVEL) -> Interval:
    """Return mean and Student's t interval. Raises `MetricError` for no values, or values that are not finite."""
    mean, variance = _moments(values)
    half = math.inf
    if len(values) > 1:
        half = student_t(0.5 + level / 2, len(values) - 1) * math.sqrt(variance / len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half, count=len(values))


def bootstrap(values: Sequence[float], *, level: float = LEVEL, draws: int = 10_000, seed: int = 0) -> Interval:
    """Return mean and percentile bootstrap interval; with few seeds it is narrower than it should be.

    Args:
        values: At least one.
        level: Of the interval.
        draws: Resamples.
        seed: Of the resampling; equal seeds give equal intervals.

    Raises:
        MetricError: There are no values, or some are not finite.
    """
    mean, _ = _moments(values)
    if len(values) == 1:
        return Interval(mean=mean, low=-math.inf, high=math.inf, count=1)
    wide = np.asarray(values, np.float64)
    at = np.random.Generator(np.random.Philox(seed)).integers(0, len(wide), (draws, len(wide)))
    low, high = np.quantile(wide[at].mean(axis=1), [0.5 - level / 2, 0.5 + level / 2])
    return Interval(mean=mean, low=float(low), high=float(high), count=len(wide))


def compare_paired(first: Sequence[float], second: Sequence[float], *, level: float = LEVEL) -> Comparison:
    """Compare arms whose values belong together seed by seed.

    Raises:
        MetricError: The arms differ in length, are empty, or hold a value that is not finite.
    """
    if len(first) != len(second):
        raise MetricError(f"paired arms need equal seeds, but one has {len(first)} values and the other {len(second)}")
    found = interval([one - other for one, other in zip(first, second, strict=True)], level=level)
    count = len(first)
    if count == 1:
        return Comparison(difference=found, verdict=NO_DIFFERENCE, detectable=math.inf, paired=True)
    freedom = count - 1
    error = (found.high - found.mean) / student_t(0.5 + level / 2, freedom)
    return Comparison(
        difference=found, verdict=_verdict(found), detectable=_detectable(error, freedom, level), paired=True
    )


def compare_unpaired(first: Sequence[float], second: Sequence[float], *, level: float = LEVEL) -> Comparison:
    """Compare independent arms by Welch's interval (Welch 1947); lengths may differ.

    Raises:
        MetricError: An arm is empty or holds a value that is not finite.
    """
    (one, spread), (other, spread_) = _moments(first), _moments(second)
    difference = one - other
    sizes = len(first), len(second)
    if min(sizes) < 2:  # noqa: PLR2004 - one value has no spread
        unknown = Interval(mean=difference, low=-math.inf, high=math.inf, count=min(sizes))
        return Comparison(difference=unknown, verdict=NO_DIFFERENCE, detectable=math.inf, paired=False)
    parts = spread / sizes[0], spread_ / sizes[1]
    error = math.sqrt(sum(parts))
    # Both arms constant: any freedom gives the same interval of width 0.
    below = parts[0] ** 2 / (sizes[0] - 1) + parts[1] ** 2 / (sizes[1] - 1)
    freedom = sum(parts) ** 2 / below if below else float(sum(sizes) - 2)
    half = student_t(0.5 + level / 2, freedom) * error
    found = Interval(mean=difference, low=difference - half, high=difference + half, count=min(sizes))
    return Comparison(
        difference=found, verdict=_verdict(found), detectable=_detectable(error, freedom, level), paired=False
    )


def class_accuracies(predicted: Int64, labels: Int64, *, classes: int) -> Float64:
    """Return the accuracy within each class, float64 (classes,) in [0, 1]; NaN for a class without a test row."""
    rows = np.bincount(labels, minlength=classes).astype(np.float64)
    right = np.bincount(labels[predicted == labels], minlength=classes).astype(np.float64)
    found: Float64 = np.divide(right, rows, out=np.full(classes, np.nan), where=rows > 0)
    return found


def worst_class(predicted: Int64, labels: Int64, *, classes: int) -> float:
    """Return the least accuracy over the classes that have test rows, in [0, 1]. Raises `MetricError` for no rows."""
    if not len(labels):
        raise MetricError("there is no test row, so no class has an accuracy")
    return float(np.nanmin(class_accuracies(predicted, labels, classes=classes)))


def student_t(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t.

    Args:
        probability: 0 < probability < 1.
        freedom: Degrees of freedom, > 0; need not be whole.
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased variance; the variance of a single value is 0."""
    if not len(values):
        raise MetricError("an arm has no value: train it with at least one seed")
    for at, value in enumerate(values):
        if not math.isfinite(value):
            raise MetricError(f"value {at} of an arm is {value}: its training diverged or was not evaluated")
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)


def _detectable(error: float, freedom: float, level: float) -> float:
    return (student_t(0.5 + level / 2, freedom) + student_t(POWER, freedom)) * error


def _verdict(found: Interval) -> Verdict:
    if found.low > 0:
        return "win"
    return "loss" if found.high < 0 else NO_DIFFERENCE
