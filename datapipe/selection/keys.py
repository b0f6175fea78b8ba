"""Scores as sortable words: uint32 keys in which smaller means earlier.

float32 score -> key by an order-preserving map of its bits; the map is invertible, so a key stands for its score.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32, Int64, UInt64

    UInt32 = NDArray[np.uint32]

_SIGN = np.uint32(1 << 31)
RANK_STEPS = 64
"""Steps of a row's place by rank; the density of a Beta distribution is taken in the middle of each."""
PLACE_STEPS = 1024
"""Steps of a place that comes with the row."""
_LEAST_B = 1e-3


def hard_keys(scores: Float32) -> UInt32:
    """Return uint32 (rows,): the highest score has the smallest key, equal scores (-0.0 and 0.0 too) have equal keys.

    Finite scores only. The words below 2^23 - 1 belong to no finite score.
    """
    bits = (scores + np.float32(0.0)).view(np.uint32)
    ascending = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return ~ascending


def scores_of_keys(keys: UInt32) -> Float32:
    """Return the scores that `hard_keys` turned into `keys`, float32 (rows,); 0.0 for -0.0."""
    ascending = ~keys
    bits = np.where(ascending & _SIGN, ascending ^ _SIGN, ~ascending)
    return bits.view(np.float32)


def race_keys(weights: Float32, hashes: UInt64) -> UInt32:
    """Return uint32 (rows,) whose ascending order draws row after row, each in proportion to its weight.

    Key of e_i = -ln(u_i) / w_i with u_i in (0, 1) from the hash (Efraimidis & Spirakis 2006); weight 0 comes last. The
    logarithm is the platform's, so this order, unlike the hash order, is the same on one platform only.
    """
    uniform = ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    with np.errstate(divide="ignore", over="ignore"):
        race = np.minimum(-np.log(uniform) / weights, np.finfo(np.float32).max).astype(np.float32)
    return ~hard_keys(race)


def beta_weights(steps: Int64, beta: tuple[float, float], *, anchor: float, count: int) -> Float32:
    """Return the density of DUAL's Beta distribution at the middle of each step, float32 (rows,), >= 0.

    b = C (1 - anchor) t and a = C + 1 - b, as in the authors' code (behaapyy/dual-pruning, `beta_sampling`). The
    constant factor is left out and the greatest weight is 1: only proportions count in a race.

    Args:
        steps: Step of each row's place, int64 (rows,), 0 ... `count` - 1.
        beta: Sharpness C and reach t.
        anchor: Place of the hardest rows, 0 ... 1.
        count: Steps of the unit interval.
    """
    b = max(beta[0] * (1 - anchor) * beta[1], _LEAST_B)
    a = beta[0] + 1 - b
    places = [(step + 0.5) / count for step in range(count)]
    logs = [(a - 1) * math.log(place) + (b - 1) * math.log1p(-place) for place in places]
    density = np.array([math.exp(each - max(logs)) for each in logs], np.float32)
    weights: Float32 = density[steps]
    return weights


def place_steps(places: Float32) -> Int64:
    """Return the step of each place in 0 ... 1, int64 (rows,), 0 ... `PLACE_STEPS` - 1."""
    steps: Int64 = np.minimum((places * np.float32(PLACE_STEPS)).astype(np.int64), PLACE_STEPS - 1)
    return steps
