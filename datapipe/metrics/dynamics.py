"""Metrics of a row's course through training: el2n, margin, entropy, forgetting, aum, dual.

    per epoch and row: probability, margin, error -> one float32 a row; higher is harder

Arrays are (epochs, rows) of any float type and are read in float64; each row's value depends on that row alone, so any
slice of rows gives the same bits. A row that was never seen (NaN in every epoch) has NaN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datapipe.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.storage.arrays import Float32, Float64

WINDOW = 10
"""Epochs in a window of DUAL."""
EARLY_SHARE = 0.25
"""Part of the epochs after which EL2N and GraNd are read: "early in training".

Of 0.05, 0.1, 0.25, 0.5 and 1 the earliest whose rows, kept as CCS keeps them, gain as much over random rows as those of
any later one (validation rows of TREC and BANKING77, 10 and 30 % kept; `benchmarks/results/pruning_settings.json`).
"""
MEAN_PROBABILITY = "mean_probability"
"""Mean over all epochs of the probability of the label: no metric, but what DUAL is drawn by beside its score."""
DYNAMICS = ("el2n", "grand", "margin", "entropy", "forgetting", "aum", "dual", MEAN_PROBABILITY)
"""What one training gives, in the order of the columns."""

Course = NDArray[Any]


def early_epoch(epochs: int) -> int:
    """Place of the epoch at which EL2N and GraNd are read, 0 <= it < epochs."""
    return max(0, math.ceil(EARLY_SHARE * epochs) - 1)


def fill_gaps(course: Course) -> Course:
    """Give a row that an epoch missed its value of the epoch before; before its first, that of the first.

    Loops that drop the last batch miss a few rows an epoch. A row that every epoch missed stays NaN.
    """
    filled = course.copy()
    for epoch in range(1, len(filled)):
        filled[epoch] = np.where(np.isnan(filled[epoch]), filled[epoch - 1], filled[epoch])
    for epoch in range(len(filled) - 2, -1, -1):
        filled[epoch] = np.where(np.isnan(filled[epoch]), filled[epoch + 1], filled[epoch])
    return filled


def el2n(error: Course) -> Float32:
    """||p - y|| at the early epoch, float32 (rows,) in [0, sqrt 2] (Paul et al. 2021, arXiv 2107.07075)."""
    return _bounded(_wide(error[early_epoch(len(error))]), 0.0, math.sqrt(2.0))


def forgetting(margin: Course) -> Float32:
    """How often the row went from right to wrong between two epochs (Toneva et al. 2019, arXiv 1812.05159).

    Right means a margin above 0. A row that was never right counts epochs + 1, above any that was.
    """
    right = _wide(margin) > 0
    events = (right[:-1] & ~right[1:]).sum(0, dtype=np.float64)
    return _seen(np.where(right.any(0), events, len(margin) + 1.0), margin)


def aum(margin: Course) -> Float32:
    """Minus the mean margin over the epochs, float32 (rows,) in [-1, 1].

    AUM of Pleiss et al. 2020 (arXiv 2001.10528) takes logits and counts easy rows high; here it is of probabilities,
    whose scale does not grow with training, and high is hard.
    """
    return _bounded(-_mean(_wide(margin)), -1.0, 1.0)


def dual(probability: Course, *, window: int = WINDOW) -> Float32:
    """Mean over windows of std(p) * (1 - mean(p)), float32 (rows,) in [0, 0.5] (Cho et al. 2025, arXiv 2502.06905).

    p is the probability of the label; std has the divisor window - 1. With fewer epochs than `window` the one window is
    all of them.

    Raises:
        MetricError: There are fewer than 2 epochs, so nothing varies.
    """
    epochs = len(probability)
    if epochs < 2:  # noqa: PLR2004 - a deviation needs two values
        raise MetricError(f"dual needs at least 2 epochs of dynamics, there is {epochs}")
    wide, size = _wide(probability), min(window, epochs)
    total = np.zeros(wide.shape[1])
    for start in range(epochs - size + 1):
        part = wide[start : start + size]
        mean = _mean(part)
        deviation = np.sqrt(_mean(np.square(part - mean)) * (size / (size - 1)))
        total += deviation * (1.0 - mean)
    return _bounded(total / (epochs - size + 1), 0.0, 0.5)


def metrics_of(course: Mapping[str, Course]) -> dict[str, Float32]:
    """All of `DYNAMICS` for a slice of rows; `grand` only where its values were recorded.

    Args:
        course: `probability`, `margin`, `error`, each (epochs, rows); `gap`, `entropy` of the last epoch and, if there,
            `grand` of the early one, each (rows,).
    """
    found = {
        "el2n": el2n(course["error"]),
        "margin": _bounded(1.0 - _wide(course["gap"]), 0.0, 1.0),
        "entropy": _wide(course["entropy"]).astype(np.float32),
        "forgetting": forgetting(course["margin"]),
        "aum": aum(course["margin"]),
        "dual": dual(course["probability"]),
        MEAN_PROBABILITY: _bounded(_mean(_wide(course["probability"])), 0.0, 1.0),
    }
    if "grand" in course:
        found["grand"] = _wide(course["grand"]).astype(np.float32)
    return found


def _wide(values: Course) -> Float64:
    return values.astype(np.float64)


def _mean(values: Float64) -> Float64:
    # Row by row in the order of the epochs: numpy's own mean may sum in another order for another shape.
    total = np.zeros(values.shape[1])
    for row in values:
        total += row
    mean: Float64 = total / len(values)
    return mean


def _bounded(values: Float64, low: float, high: float) -> Float32:
    bounded: Float32 = np.clip(values, low, high).astype(np.float32)
    return bounded


def _seen(values: Float64, course: Course) -> Float32:
    seen: Float32 = np.where(np.isnan(course[0]), np.nan, values).astype(np.float32)
    return seen
