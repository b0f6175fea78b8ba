"""How a budget is shared out among clusters: more to those that the damage hit harder.

    damage of sampled rows -> CDS of each cluster with an interval -> weights -> quotas, within bounds -> rows that fit

Capability degradation scores and the share by them are PASER's (arXiv 2502.12594, section 3.3, "CDAIS"). The paper
rounds each share down, loses the rest, and does not say what a cluster does that has fewer rows than its share; the
split of the quotas gives out every row. Raises `BudgetError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import BudgetError
from datapipe.selection.quotas import allocate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Bool, Float64, Int64

WINSOR = 0.99
_RESAMPLES = 1000
_CONFIDENCE = 0.95
_ROUNDING = 1e-6
"""How far below zero a computed divergence may lie."""


@dataclass(frozen=True, eq=False)
class Degradation:
    """Capability degradation score (CDS) of each cluster.

    Attributes:
        score: Shrunk mean damage, less the noise floor, float64 (clusters,), >= 0, in the unit of the damage (nats).
        low: Lower end of the 95 % bootstrap interval of the score, float64 (clusters,); the score itself where no row
            was measured.
        high: Upper end.
        mean: Winsorised mean of the measured rows, NaN where none was, float64 (clusters,).
        measured: Rows measured in each, int64 (clusters,).
        rows: Rows of each, int64 (clusters,).
    """

    score: Float64
    low: Float64
    high: Float64
    mean: Float64
    measured: Int64
    rows: Int64


def degradation(
    damage: Float64,
    labels: Int64,
    *,
    clusters: int,
    floor: float = 0.0,
    prior_rows: float = 20.0,
    winsor: float = WINSOR,
    seed: int = 0,
) -> Degradation:
    """Score the clusters.

    Damages are winsorised at their 99th percentile, since a mean is what one broken row can move; a cluster's mean is
    shrunk to that of all rows as if `prior_rows` rows of that had been seen (James & Stein 1961, with a fixed weight),
    and so are the ends of its interval; a floor, what two runs of the same model differ by, is taken off.

    Args:
        damage: Mean divergence of a row's response tokens, float64 (rows,), >= 0; NaN where it was not measured.
        labels: Cluster of each row, int64 (rows,) in [0, clusters).
        clusters: Their number.
        floor: Damage that is noise, >= 0.
        prior_rows: Rows' worth of the mean of all, >= 0.
        winsor: Quantile that damages are cut at, 0 ... 1; 1 cuts none.
        seed: Of the bootstrap.

    Raises:
        BudgetError: No row was measured, or a damage is negative or infinite.
    """
    known = ~np.isnan(damage)
    if not known.any():
        raise BudgetError("no row's damage was measured, so none can be shared out by")
    if not np.isfinite(damage[known]).all() or damage[known].min() < -_ROUNDING:
        at = int(np.flatnonzero(known & ~(damage > -_ROUNDING))[0])
        raise BudgetError(f"the damage of row {at} is {damage[at]}; a divergence is finite and not negative")
    limit = float(np.quantile(damage[known], winsor))
    cut = np.clip(damage, 0.0, limit)
    whole = float(cut[known].mean())
    rows, measured = (np.bincount(some, minlength=clusters).astype(np.int64) for some in (labels, labels[known]))
    sums = np.bincount(labels[known], weights=cut[known], minlength=clusters)
    mean = np.divide(sums, measured, out=np.full(clusters, np.nan), where=measured > 0)
    low, high = _interval(cut, labels, known, clusters, seed)
    means = np.stack([np.nan_to_num(each) for each in (mean, low, high)])
    shrunk = (measured * means + prior_rows * whole) / np.maximum(measured + prior_rows, 1e-12)
    lifted = np.maximum(shrunk - floor, 0.0)
    return Degradation(lifted[0], lifted[1], lifted[2], mean, measured, rows)


def _interval(cut: Float64, labels: Int64, known: Bool, clusters: int, seed: int) -> tuple[Float64, Float64]:
    low, high = (np.full(clusters, np.nan) for _ in range(2))
    draws = np.random.Generator(np.random.Philox(seed))
    edges = [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2]
    for number in range(clusters):
        own = cut[known & (labels == number)]
        if not len(own):
            continue
        # The mean of a resample is that of multinomial counts; a large cluster's is normal to the last digit shown.
        if len(own) > 5000:  # noqa: PLR2004
            half = 1.959964 * float(own.std(ddof=1)) / len(own) ** 0.5
            low[number], high[number] = own.mean() - half, own.mean() + half
            continue
        means = own[draws.integers(0, len(own), (_RESAMPLES, len(own)))].mean(1)
        low[number], high[number] = np.quantile(means, edges)
    return low, high


def shares_by_damage(
    scores: Float64,
    *,
    prior: Float64 | None = None,
    sizes: Int64 | None = None,
    power: float = 1.0,
    size_power: float = 0.0,
    even: float = 0.0,
) -> Float64:
    """Weights of the clusters, float64 summing to 1: w_k ~ CDS_k^power * size_k^size_power * prior_k, mixed with sizes.

    PASER's own (equation 6) is power 1, size power 0, nothing mixed in. If no cluster is damaged, sizes alone decide.

    Args:
        scores: CDS, float64 (clusters,), >= 0.
        prior: What each cluster is worth to the user, float64 (clusters,), >= 0; None: all the same.
        sizes: Rows of each; needed where `even` or `size_power` > 0 or nothing is damaged; None: all the same.
        power: 0 forgets the damage, 1 follows it, above 1 favours the worst.
        size_power: 0 forgets the sizes: a small cluster gets as much as a large one; 1 tilts the pool's own mix.
        even: Part of the budget that follows the sizes, 0 ... 1.

    Raises:
        BudgetError: A score or prior is negative or not finite, all priors are zero, or `even` is out of range.
    """
    worth = np.ones(len(scores)) if prior is None else np.asarray(prior, np.float64)
    for name, values in (("score", scores), ("prior", worth)):
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if len(wrong):
            raise BudgetError(f"the {name} of cluster {wrong[0]} is {values[wrong[0]]}; it must be finite and >= 0")
    if not 0.0 <= even <= 1.0:
        raise BudgetError(f"even is a part of the budget, 0 ... 1; got {even}")
    if worth.sum() <= 0:
        raise BudgetError("all priors are zero: nothing is left to choose from")
    base = (np.ones(len(scores)) if sizes is None else sizes.astype(np.float64)) * (worth > 0)
    weights = np.where(scores > 0, np.power(scores, power), 0.0) * np.power(base, size_power) * worth
    weights = weights / weights.sum() if weights.sum() > 0 else base / base.sum()
    found: Float64 = (1.0 - even) * weights + even * base / base.sum()
    return found


def allocate_within(weights: Float64, available: Int64, *, budget: int, least: Int64, most: Int64) -> Int64:
    """Split a budget as `datapipe.selection.quotas.allocate` does, but between bounds; int64 (clusters,).

    Sums to min(budget, what is available). No cluster gets less than its least unless it holds less, nor more than its
    most while another can take it.

    Args:
        weights: Float64 (clusters,), finite, >= 0.
        available: Rows or tokens of each, int64 (clusters,), >= 0.
        budget: How much to share out, >= 0.
        least: Int64 (clusters,), >= 0.
        most: Int64 (clusters,), >= least.

    Raises:
        BudgetError: The leasts add up to more than the budget, or a weight, a count or the budget cannot be meant.
    """
    caps = np.minimum(available, most)
    floors = np.minimum(caps, least)
    if floors.sum() > budget:
        raise BudgetError(f"the floors of the clusters add up to {floors.sum():,}, more than the budget of {budget:,}")
    fixed = np.zeros(len(weights), np.bool_)
    while True:
        free = allocate(weights * ~fixed, caps * ~fixed, budget=budget - int(floors[fixed].sum()))
        given = np.where(fixed, floors, free)
        short = given < floors
        if not short.any():
            break
        fixed |= short
    missing = min(budget, int(available.sum())) - int(given.sum())
    return given + allocate(weights, available - given, budget=missing)


def allocate_tokens(order: Sequence[Int64], tokens: Int64, budgets: Int64) -> list[Int64]:
    """From each cluster's rows, best first, those that fit its tokens: a prefix, but a row too long is passed over.

    Args:
        order: Rows of each cluster, best first.
        tokens: Of every row, int64 (rows,).
        budgets: Tokens of each cluster.

    Returns:
        The rows of each cluster, in their order; their tokens sum to at most its budget.
    """
    return [fitting(rows, tokens, budget) for rows, budget in zip(order, budgets.tolist(), strict=True)]


def fitting(rows: Int64, costs: Int64, budget: int) -> Int64:
    """The rows that fit a budget, taken in their order; one that costs more than what is left is passed over, int64.

    Args:
        rows: First one first.
        costs: Of every row of the pool, int64, >= 0.
        budget: What they may cost together.
    """
    taken, left = np.zeros(len(rows), np.bool_), budget
    own = costs[rows]
    start = 0
    while start < len(rows):
        # What fits in one go, then the first of the rest that is short enough.
        run = int(np.searchsorted(np.cumsum(own[start:]), left, side="right"))
        taken[start : start + run] = True
        left -= int(own[start : start + run].sum())
        short = np.flatnonzero(own[start + run :] <= left)
        if not len(short):
            break
        start += run + int(short[0])
    return rows[taken]
