"""Walks rows in keep order and decides each: its rank in its stratum, and whether it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.selection.quotas import allocate, balanced_floor

if TYPE_CHECKING:
    from datapipe.selection.keys import UInt32
    from datapipe.selection.plan import Plan
    from datapipe.storage.arrays import Bool, Float64, Int64


@dataclass(frozen=True, kw_only=True, eq=False)
class Supply:
    """What stands in each stratum after trimming, as weights (rows, or tokens), int64 (strata,) each.

    Attributes:
        rows: Rows.
        weights: Their weight.
        mixed: The weight of those that the random part keeps.
    """

    rows: Int64
    weights: Int64
    mixed: Int64


def share_out(plan: Plan, supply: Supply, *, limit: int, given: Float64 | None) -> tuple[Int64, int]:
    """Return what each stratum may keep beside the random part, int64 (strata,), and what "fill" gives out after that.

    Args:
        plan: Its quota rule.
        supply: What there is.
        limit: The whole budget, the random part included.
        given: Weights of the strata for quota "given".
    """
    rest = supply.weights - supply.mixed
    left = limit - int(supply.mixed.sum())
    if plan.quota == "fill":
        held = max(int(np.count_nonzero(supply.rows)), 1)
        floor = np.minimum(balanced_floor(limit, held, plan.floor_ratio), supply.weights)
        floors = np.maximum(floor - supply.mixed, 0)
        return floors, left - int(floors.sum())
    if plan.quota == "given" and given is not None:
        weights = given
    elif plan.quota == "equal":
        weights = np.ones(len(rest))
    else:
        weights = rest.astype(np.float64)
    return allocate(weights, rest, budget=left), 0


class Ranking:
    """Decides rows that come in keep order: the random part first, then by the plan's key, strata mingled.

    Args:
        quotas: Weight that each stratum may keep beside the random part, int64 (strata,).
        spare: Weight given out across strata to rows beyond their quota.
        mixed_rows: Rows of the random part.
    """

    def __init__(self, quotas: Int64, *, spare: int, mixed_rows: int) -> None:
        strata = len(quotas)
        self._quotas, self._spare, self._mixed_left = quotas, spare, mixed_rows
        self._seen = np.zeros(strata, np.int64)
        self._used = np.zeros(strata, np.int64)
        self._spare_used = 0
        self.kept_rows = np.zeros(strata, np.int64)
        self.kept_weights = np.zeros(strata, np.int64)
        self.last_keys = np.zeros(strata, np.uint32)
        self.has_cut = np.zeros(strata, np.bool_)

    def decide(self, strata: Int64, weights: Int64, keys: UInt32) -> tuple[Int64, Bool]:
        """Return rank and kept of the next rows, int64 and bool (rows,)."""
        mixed = np.arange(len(strata)) < self._mixed_left
        self._mixed_left -= int(mixed.sum())
        by_stratum = _ByStratum(strata)
        ranks = by_stratum.running(np.ones(len(strata), np.int64), self._seen) - 1
        by_plan = ~mixed & (by_stratum.running(weights * ~mixed, self._used) <= self._quotas[strata])
        if self._spare:
            beyond = ~mixed & ~by_plan
            reached = self._spare_used + np.cumsum(weights * beyond)
            by_plan |= beyond & (reached <= self._spare)
            self._spare_used = int(reached[-1]) if len(reached) else self._spare_used
        kept = mixed | by_plan
        self.kept_rows += np.bincount(strata[kept], minlength=len(self._seen))
        np.add.at(self.kept_weights, strata[kept], weights[kept])
        # Of several values for one place the last stays, and rows come in keep order.
        self.last_keys[strata[by_plan]] = keys[by_plan]
        self.has_cut[strata[by_plan]] = True
        return ranks, kept


class _ByStratum:
    """Running sums within strata over rows whose strata are mingled."""

    def __init__(self, strata: Int64) -> None:
        self._order = np.argsort(strata, kind="stable")
        self._sorted = strata[self._order]
        self._starts = np.flatnonzero(np.diff(self._sorted, prepend=-1))
        self._stops = np.append(self._starts[1:], len(strata))[: len(self._starts)]

    def running(self, values: Int64, totals: Int64) -> Int64:
        """Return the sum of `values` over each row's stratum up to the row, from `totals` on, and carry `totals` on."""
        sums = np.cumsum(values[self._order])
        before = np.concatenate([np.zeros(1, np.int64), sums])[self._starts]
        sums += totals[self._sorted] - np.repeat(before, self._stops - self._starts)
        totals[self._sorted[self._starts]] = sums[self._stops - 1]
        running = np.empty_like(sums)
        running[self._order] = sums
        return running
