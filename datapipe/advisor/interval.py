"""Intervals of paired differences: Student's t, and its form for splits that share rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datapipe.proof.statistics import student_t

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
