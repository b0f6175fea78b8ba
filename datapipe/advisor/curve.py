"""How error falls with rows: power law or exponential, whichever foretells the largest budget better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Float64

DRAWS = 200
LEAST_ERROR = 1e-4
FLOORS = tuple(part / 20 for part in range(20))
"""Floors that are tried, as parts of the least error seen."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A fitted curve and what it foretells.

    Attributes:
        form: "power" is a n^-b + c, "exponential" a e^(-b n) + c.
        scale: a.
        rate: b; 0 or less says that more rows did not help.
        floor: c, the error that no number of rows takes away, 0 or more.
        at: Rows that it is extrapolated to.
        error: Error there, 0 ... 1.
        low: The lower end of the 95 % bootstrap intervals over the splits, of both forms: which of them holds is not
            known so far beyond the data.
        high: The upper end.
    """

    form: Literal["power", "exponential"]
    scale: float
    rate: float
    floor: float
    at: int
    error: float
    low: float
    high: float


def fit_curve(sizes: Sequence[int], errors: Float64, *, at: int, seed: int = 0) -> Curve:
    """Fit the mean error by the number of rows, by least squares of the logarithm of what lies above the floor.

    The form is the one that, fitted without the largest budget, misses it by less; the power law at a draw.

    Args:
        sizes: Rows of each budget, ascending, at least two.
        errors: Of each split and budget, float64 (splits, budgets), 0 ... 1.
        at: Rows to extrapolate to.
        seed: Of the bootstrap.
    """
    mean = errors.mean(axis=0)
    forms: tuple[Literal["power", "exponential"], ...] = ("power", "exponential")
    form = forms[0]
    if len(sizes) > 2:  # noqa: PLR2004 - two budgets fit any form
        form = min(forms, key=lambda each: _miss(each, sizes, mean))
    fitted = _fit(form, sizes, mean)
    generator = np.random.default_rng(seed)
    drawn = np.zeros((len(forms), DRAWS))
    for draw in range(DRAWS):
        again = errors[generator.integers(0, len(errors), len(errors))].mean(axis=0)
        drawn[:, draw] = [_value(each, _fit(each, sizes, again), at) for each in forms]
    low, high = np.quantile(drawn, 0.025, axis=1).min(), np.quantile(drawn, 0.975, axis=1).max()
    return Curve(
        form=form,
        scale=fitted[0],
        rate=fitted[1],
        floor=fitted[2],
        at=at,
        error=_value(form, fitted, at),
        low=float(low),
        high=float(high),
    )


def _fit(form: str, sizes: Sequence[int], error: Float64) -> tuple[float, float, float]:
    """Scale, rate and floor; a floor is tried where three or more budgets leave room for one."""
    across = np.log(sizes) if form == "power" else np.asarray(sizes, np.float64)
    seen = np.maximum(error, LEAST_ERROR)
    best: tuple[float, tuple[float, float, float]] | None = None
    for part in FLOORS if len(sizes) > 2 else FLOORS[:1]:  # noqa: PLR2004 - two points fix two numbers
        floor = part * float(seen.min())
        slope, start = np.polyfit(across, np.log(seen - floor), 1)
        foretold = np.exp(start + slope * across) + floor
        miss = float(((np.log(foretold) - np.log(seen)) ** 2).sum())
        if best is None or miss < best[0]:
            best = (miss, (float(np.exp(start)), float(-slope), floor))
    return best[1] if best is not None else (0.0, 0.0, 0.0)


def _value(form: str, fitted: tuple[float, float, float], rows: int) -> float:
    scale, rate, floor = fitted
    value = (scale * rows**-rate if form == "power" else scale * np.exp(-rate * rows)) + floor
    return float(min(max(value, 0.0), 1.0))


def _miss(form: str, sizes: Sequence[int], error: Float64) -> float:
    foretold = _value(form, _fit(form, sizes[:-1], error[:-1]), sizes[-1])
    return abs(float(np.log(max(foretold, LEAST_ERROR)) - np.log(max(error[-1], LEAST_ERROR))))
