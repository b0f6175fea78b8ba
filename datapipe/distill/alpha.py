"""How much a student should listen to its teacher: the weight alpha of the distillation term, by the fraction kept.

    alpha.json (curves of measured points) -> recommended_alpha(fraction) -> Alpha(value, low, high, rests_on)

alpha weighs loss = (1 - alpha) * cross-entropy + alpha * T^2 * KL(teacher || student). The fewer rows are kept, the
greater the best alpha (Ben-Baruch et al., arXiv 2403.07854). Raises `ConfigError` for options out of range and for a
file of curves that is none.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CONTRADICTION", "CURVES", "Alpha", "AlphaCurve", "read_curves", "recommended_alpha"]

CURVES = Path(__file__).with_name("alpha.json")
"""The curves that come with the package."""

CONTRADICTION = 0.9
"""Probability of another class than the label from which a teacher contradicts the label; the label then counts for
nothing in the loss (alpha 1)."""

_ENDS = 3  # value, low, high


@dataclass(frozen=True, kw_only=True)
class AlphaCurve:
    """Measured points of alpha over the fraction kept.

    Attributes:
        points: Fraction kept, alpha, low and high end of its interval; ascending in the fraction.
        fitted: Whether they were measured; a prior is not.
        rests_on: What they were measured on, in a sentence.
        classes: Of the set they were measured on; None for any.
        noise: Share of wrong labels there.
    """

    points: tuple[tuple[float, float, float, float], ...]
    fitted: bool
    rests_on: str
    classes: int | None = None
    noise: float = 0.0

    def at(self, fraction: float) -> tuple[float, float, float]:
        """alpha, low and high at a fraction: straight lines between the points, constant outside of them."""
        before = max((each for each in self.points if each[0] <= fraction), default=self.points[0])
        after = min((each for each in self.points if each[0] >= fraction), default=self.points[-1])
        share = 0.0 if before[0] >= after[0] else (fraction - before[0]) / (after[0] - before[0])
        found = [one + share * (two - one) for one, two in zip(before[1:], after[1:], strict=True)]
        return found[0], found[1], found[2]


@dataclass(frozen=True, kw_only=True)
class Alpha:
    """A recommendation.

    Attributes:
        value: alpha, in [0, 1].
        low: Low end of its interval.
        high: High end.
        fraction: Of the rows that are kept, for which it was asked.
        fitted: Whether it was measured.
        rests_on: What it rests on, in a sentence.
    """

    value: float
    low: float
    high: float
    fraction: float
    fitted: bool
    rests_on: str


def recommended_alpha(
    fraction: float,
    *,
    classes: int | None = None,
    noise: float | None = None,
    curves: Sequence[AlphaCurve] | None = None,
) -> Alpha:
    """Return the weight of the teacher for a set of which `fraction` is kept.

    Of the curves that there are, the one counts whose label noise is nearest to `noise`, then whose number of classes
    is nearest to `classes`. Where `noise` is greater than the curve's, the weight of the label, 1 - alpha, shrinks as
    the share of right labels does: 1 - alpha' = (1 - alpha) * (1 - noise) / (1 - the curve's noise).

    Args:
        fraction: Kept rows by all rows of the set, 0 < fraction <= 1.
        classes: Their number, if known.
        noise: Share of wrong labels, 0 <= noise < 1, if known.
        curves: Others than those of the package; the first one counts where two are equally near.

    Raises:
        ConfigError: A number is out of range.
    """
    _check(fraction, classes, noise)
    known = tuple(curves) if curves is not None else read_curves(CURVES)
    if not known:
        raise ConfigError("there are no curves of alpha to read a recommendation from")
    curve = min(known, key=lambda each: (_noise_apart(each, noise), _classes_apart(each, classes)))
    found = curve.at(fraction)
    if noise is not None and noise > curve.noise:
        left = (1.0 - noise) / (1.0 - curve.noise)
        value, low, high = (1.0 - (1.0 - each) * left for each in found)
        told = f"{curve.rests_on}; the label's weight scaled by {left:.2f} for {noise:.0%} of wrong labels"
        return Alpha(value=value, low=low, high=high, fraction=fraction, fitted=curve.fitted, rests_on=told)
    value, low, high = found
    return Alpha(value=value, low=low, high=high, fraction=fraction, fitted=curve.fitted, rests_on=curve.rests_on)


def read_curves(path: Path) -> tuple[AlphaCurve, ...]:
    """Read curves from a JSON file: `{"curves": [{"points": {fraction: [alpha, low, high]}, "fitted": …, …}]}`.

    Raises:
        ConfigError: The file cannot be read, or a curve in it has no points or one out of range; says which.
    """
    try:
        body = json.loads(path.read_bytes())
        found = tuple(_curve(each) for each in body["curves"])
    except OSError as error:
        raise ConfigError(f"cannot read the curves of alpha in {path}: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} holds no curves of alpha ({type(error).__name__}: {error})") from error
    return found


def _curve(body: dict[str, Any]) -> AlphaCurve:
    points = []
    for name, ends in body["points"].items():
        point = (float(name), *(float(each) for each in ends))
        if len(point) != 1 + _ENDS or not 0 < point[0] <= 1:
            raise ConfigError(f"a point is a fraction in (0, 1] with alpha, low and high; got {name}: {ends}")
        _, alpha, low, high = point
        if not 0 <= low <= alpha <= high <= 1:
            raise ConfigError(f"alpha at {name} must lie between its ends, all within 0 and 1; got {ends}")
        points.append((point[0], alpha, low, high))
    if not points:
        raise ConfigError("a curve of alpha has no points")
    classes = body.get("classes")
    return AlphaCurve(
        points=tuple(sorted(points)),
        fitted=bool(body["fitted"]),
        rests_on=str(body["rests_on"]),
        classes=int(classes) if classes is not None else None,
        noise=float(body.get("noise") or 0.0),
    )


def _check(fraction: float, classes: int | None, noise: float | None) -> None:
    if not 0 < fraction <= 1:  # NaN fails too
        raise ConfigError(f"fraction must be above 0 and at most 1, got {fraction!r}")
    if classes is not None and classes < 2:  # noqa: PLR2004 - one class needs no teacher
        raise ConfigError(f"classes must be at least 2, got {classes!r}")
    if noise is not None and not 0 <= noise < 1:
        raise ConfigError(f"noise must be a share from 0 and below 1, got {noise!r}")


def _noise_apart(curve: AlphaCurve, noise: float | None) -> float:
    return abs(curve.noise - (noise or 0.0))


def _classes_apart(curve: AlphaCurve, classes: int | None) -> float:
    if curve.classes is None or classes is None:
        return 0.0
    return abs(math.log(curve.classes / classes))
