"""Intervals of paired differences, without SciPy: Student's t, and its form for splits that share rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and half of its interval.

    Attributes:
        mean: In the unit of the differences.
        half_width: Half of the interval; infinite for fewer than two differences.
    """

    mean: float
    half_width: float

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.mean > self.half_width

    @property
    def below(self) -> bool:
        """Whether the whole interval lies below 0."""
        return -self.mean > self.half_width


def student_t(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t, to three digits for `freedom` >= 4; exact for 1 and 2.

    Expansion of Abramowitz and Stegun, 26.7.5, in powers of 1 / freedom.

    Args:
        probability: 0 < probability < 1.
        freedom: Degrees of freedom, >= 1.
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:  # noqa: PLR2004 - has a closed form
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    powers = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / float(freedom) ** (at + 1) for at, term in enumerate(powers))


def paired(
    differences: Sequence[float], *, comparisons: int = 1, overlap: float = 0.0, level: float = 0.95
) -> Interval:
    """Return the interval of the mean of paired differences.

    Args:
        differences: One a seed or split.
        comparisons: How many such intervals are looked at for the best one (Bonferroni).
        overlap: Test rows over training rows where the differences come from random splits of the same rows; then the
            variance is corrected as by Nadeau and Bengio (2003), 1 / n + overlap in place of 1 / n. 0 for independent
            runs.
        level: Of the interval.
    """
    count = len(differences)
    mean = math.fsum(differences) / count if count else math.nan
    if count < 2:  # noqa: PLR2004 - one difference has no spread
        return Interval(mean=mean, half_width=math.inf)
    variance = math.fsum((each - mean) ** 2 for each in differences) / (count - 1)
    quantile = student_t(1 - (1 - level) / 2 / comparisons, count - 1)
    return Interval(mean=mean, half_width=quantile * math.sqrt(variance * (1 / count + overlap)))
