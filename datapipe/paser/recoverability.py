"""What training on a skill gives back, and the budget by which the last token gives the same everywhere.

    pilots (tokens, gain) -> g(t) = a (1 - exp(-t / tau)) of each cluster -> tokens of each, equal marginal gain

Damage is not recoverability: a skill may be far gone and learn slowly. A few short trainings tell. PASER takes one for
the other (arXiv 2502.12594, theorem 2, needs CDS_i / CDS_j ~ gain_i / gain_j). To choose rows by it, hand the shares to
`PickConfig(power=0, cluster_prior=...)`. Pure functions; raises `BudgetError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import BudgetError

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float64, Int64

_WIDER = 20.0
"""How far the scale may lie below the shortest and above the longest pilot: beyond, a curve is a step or a line."""
_GRID = 512
_CONFIDENCE = 0.95
_PARAMETERS = 2


@dataclass(frozen=True, eq=False)
class Curves:
    """g(t) = most (1 - exp(-t / scale)) of each cluster; arrays float64 (clusters,).

    Attributes:
        most: What training can give back at most, >= 0, in the unit of the gains; NaN for a cluster without a pilot.
        scale: Tokens after which 63 % of that is back, > 0; NaN likewise.
        most_low: Lower end of its 95 % interval; 0 where the pilots do not tell.
        most_high: Upper end; infinite where they do not tell.
        scale_low: Of the scale.
        scale_high: The same.
    """

    most: Float64
    scale: Float64
    most_low: Float64
    most_high: Float64
    scale_low: Float64
    scale_high: Float64

    def gain(self, tokens: Float64 | Int64) -> Float64:
        """What each cluster gets back from so many tokens, float64 (clusters,)."""
        found: Float64 = -self.most * np.expm1(-tokens / self.scale)
        return found


def fit_curves(
    labels: Int64, tokens: Float64, before: Float64, after: Float64, *, clusters: int, noise: float | None = None
) -> Curves:
    """Fit a saturating curve to the pilots of each cluster, by least squares.

    For a scale the best `most` is known, so scales are searched, on a grid and then between its points. The interval of
    a scale holds those whose error is not worse than the best by more than chance allows (a profile, F test); that of
    `most` follows. With two pilots and no noise given there is nothing to judge by.

    Args:
        labels: Cluster of each pilot, int64 (pilots,).
        tokens: It was trained on, float64 (pilots,), > 0.
        before: Held-out loss of the cluster before, float64 (pilots,).
        after: The same afterwards; a cluster that got worse gains nothing.
        clusters: Their number.
        noise: Standard deviation of a gain, from seeds say; None takes it from the fit.

    Raises:
        BudgetError: A cluster has one pilot, a number is not finite, or a pilot had no tokens.
    """
    gains = before - after
    for name, values in (("loss", gains), ("number of tokens", tokens)):
        wrong = np.flatnonzero(~np.isfinite(values) | ((values <= 0) & (name != "loss")))
        if len(wrong):
            raise BudgetError(f"the {name} of pilot {wrong[0]} cannot be used: {values[wrong[0]]}")
    found = np.full((6, clusters), np.nan)
    for cluster in np.unique(labels).tolist():
        own = labels == cluster
        if len(np.unique(tokens[own])) < _PARAMETERS:
            raise BudgetError(f"cluster {cluster} has pilots of one length; a curve needs two or more")
        found[:, cluster] = _fit(tokens[own].astype(np.float64), gains[own], noise)
    return Curves(*found)


def _fit(tokens: Float64, gains: Float64, noise: float | None) -> tuple[float, ...]:
    scales = np.geomspace(tokens.min() / _WIDER, tokens.max() * _WIDER, _GRID)
    most, error = _best_most(scales, tokens, gains)
    at = int(error.argmin())
    inner = np.geomspace(scales[max(at - 1, 0)], scales[min(at + 1, _GRID - 1)], _GRID)
    inner_most, inner_error = _best_most(inner, tokens, gains)
    best = int(inner_error.argmin())
    free = len(tokens) - _PARAMETERS
    variance = noise**2 if noise is not None else (float(inner_error[best]) / free if free > 0 else np.nan)
    if not np.isfinite(variance):
        return float(inner_most[best]), float(inner[best]), 0.0, np.inf, float(scales[0]), float(scales[-1])
    limit, half = _limits(free if noise is None else None)
    near = error <= float(inner_error[best]) + limit * variance
    near[at] = True
    spread = half * np.sqrt(variance / (_shape(scales[near], tokens) ** 2).sum(1))
    low, high = (most[near] - spread).min(), (most[near] + spread).max()
    return (
        float(inner_most[best]),
        float(inner[best]),
        max(float(low), 0.0),
        max(float(high), 0.0),
        float(scales[near].min()),
        float(scales[near].max()),
    )


def _shape(scales: Float64, tokens: Float64) -> Float64:
    """1 - exp(-t / tau), float64 (scales, pilots)."""
    found: Float64 = -np.expm1(-tokens[None] / scales[:, None])
    return found


def _best_most(scales: Float64, tokens: Float64, gains: Float64) -> tuple[Float64, Float64]:
    """The best `most`, >= 0, for each scale, and the sum of squares it leaves."""
    shape = _shape(scales, tokens)
    most = np.maximum(shape @ gains / (shape**2).sum(1), 0.0)
    return most, ((most[:, None] * shape - gains[None]) ** 2).sum(1)


def _limits(free: int | None) -> tuple[float, float]:
    """How much worse than the best a scale may be, in variances, and the half width of `most`, in standard errors."""
    from scipy import special

    two_sided = (1 + _CONFIDENCE) / 2
    if free is None:
        half = float(special.ndtri(two_sided))
        return half**2, half
    return float(special.fdtri(1, free, _CONFIDENCE)), float(special.stdtrit(free, two_sided))


def allocate_by_gain(curves: Curves, *, budget: int, available: Int64, worth: Float64 | None = None) -> Int64:
    """Tokens of each cluster that give back the most together, int64 (clusters,), exactly.

    Maximises sum_k w_k g_k(t_k) over whole t_k in [0, available_k] that sum to min(budget, all that is available). At
    the continuous optimum w_k a_k / tau_k exp(-t_k / tau_k) is one number for all clusters between their bounds; from
    a little below it, tokens are handed out one by one where the next gives most, which is exact as the curves are
    concave (Hochbaum, Mathematics of Operations Research 1994). What clusters with a gain cannot hold goes to the
    others by what they hold.

    Args:
        curves: Of `fit_curves`; a cluster without a curve gains nothing.
        budget: Tokens, >= 0.
        available: Tokens of each cluster, int64 (clusters,), >= 0.
        worth: What a gain is worth in each, float64 (clusters,), >= 0; None: everywhere the same.

    Raises:
        BudgetError: The budget is negative, the lengths differ, or no cluster gains anything.
    """
    from datapipe.selection.quotas import allocate

    value = np.nan_to_num(curves.most) * (np.ones(len(curves.most)) if worth is None else worth)
    if len(available) != len(value) or budget < 0:
        raise BudgetError(f"{len(value)} curves, {len(available)} counts and a budget of {budget:,} do not go together")
    if not (value > 0).any():
        raise BudgetError("no cluster gains anything from the pilots: share the budget by size instead")
    useful = np.flatnonzero(value > 0)
    wanted = min(budget, int(available.sum()))
    found = np.zeros(len(value), np.int64)
    own, scale, most = available[useful], curves.scale[useful], value[useful]
    inner = min(wanted, int(own.sum()))
    start = np.floor(_water_level(most, scale, own.astype(np.float64), float(inner))).astype(np.int64)
    found[useful] = _one_by_one(np.maximum(start - len(useful), 0), most, scale, own, inner)
    rest = np.where(value > 0, 0, available)
    return found + allocate(rest.astype(np.float64), rest, budget=wanted - inner)


def _water_level(most: Float64, scale: Float64, caps: Float64, budget: float) -> Float64:
    """Continuous tokens of each cluster at equal marginal gain, summing to the budget.

    t_k falls linearly in the logarithm of the marginal gain between the one at which the cluster gets its first token
    and the one at which it is full, so their sum is linear between all of these points.
    """
    first = np.log(most / scale)
    full = first - caps / scale

    def at(level: Float64) -> Float64:
        tokens: Float64 = np.clip(scale * (first - level[:, None]), 0.0, caps)
        return tokens

    levels = np.sort(np.concatenate([first, full]))[::-1]
    sums = at(levels).sum(1)
    place = int(np.searchsorted(sums, budget))
    level = levels[[min(place, len(sums) - 1)]]
    if 0 < place < len(sums):
        part = (budget - sums[place - 1]) / (sums[place] - sums[place - 1])
        level = levels[[place - 1]] * (1 - part) + level * part
    found: Float64 = at(level)[0]
    return found


def _one_by_one(tokens: Int64, most: Float64, scale: Float64, caps: Int64, budget: int) -> Int64:
    """Hand out the last tokens where the next one gives most; equal ones to the lower cluster."""
    tokens = np.minimum(tokens, caps)
    # The gain of one more: most exp(-t / scale) (1 - exp(-1 / scale)); its logarithm does not underflow.
    step = np.log(most) + np.log(-np.expm1(-1.0 / scale))
    for _ in range(budget - int(tokens.sum())):
        gains = np.where(tokens < caps, step - tokens / scale, -np.inf)
        tokens[int(gains.argmax())] += 1
    return tokens
