"""How much of a pool's damage a budget holds, for every budget at once.

    damage, costs, skills, ranks, shares -> for each budget: rows as chosen, random rows, the most damaged rows

Pure arithmetic on what a finished choice knows of its rows. Raises `BudgetError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import BudgetError
from datapipe.selection.quotas import allocate

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float64, Int64

__all__ = ["HeldDamage", "held_damage"]


@dataclass(frozen=True, eq=False)
class HeldDamage:
    """Shares of all damage, float64 (budgets,), 0 ... 1.

    Attributes:
        chosen: Held by each skill's best rows, as many as its share gives.
        most: Held by the most damaged rows of the pool.
    """

    chosen: Float64
    most: Float64


def held_damage(
    damage: Float64, costs: Int64, labels: Int64, ranks: Int64, shares: Float64, *, budgets: Float64
) -> HeldDamage:
    """Sum the damage of the rows that each budget takes.

    Args:
        damage: Of each row, float64 (rows,), >= 0; rows that were not measured (NaN) hold none.
        costs: What a row takes of the budget, int64 (rows,), > 0: 1, or its tokens.
        labels: Skill of each row, int64 (rows,) in [0, skills).
        ranks: Place of each row in its skill, int64 (rows,), lower first; ties keep the order of the rows.
        shares: Part of the budget of each skill, float64 (skills,), >= 0.
        budgets: Parts of the sum of all costs, float64, 0 ... 1.

    Raises:
        BudgetError: Lengths differ, or no row has any damage.
    """
    if not len(damage) == len(costs) == len(labels) == len(ranks):
        raise BudgetError(
            f"{len(damage)} damages, {len(costs)} costs, {len(labels)} skills and {len(ranks)} ranks are not of the "
            "same rows"
        )
    held = np.nan_to_num(damage, nan=0.0)
    total = float(held.sum())
    if total <= 0:
        raise BudgetError("no row has any damage, so no budget holds any")
    wanted = np.round(budgets * costs.sum()).astype(np.int64)
    order = np.lexsort((ranks, labels))
    ends = np.cumsum(np.bincount(labels, minlength=len(shares)))
    groups = np.split(order, ends[:-1])
    available = np.array([costs[group].sum() for group in groups], np.int64)
    sums = [(np.cumsum(costs[group]), np.concatenate([[0.0], np.cumsum(held[group])])) for group in groups]
    chosen = []
    for budget in wanted.tolist():
        parts = allocate(shares, available, budget=budget)
        chosen.append(
            sum(
                float(of_damage[np.searchsorted(of_cost, part, side="right")])
                for (of_cost, of_damage), part in zip(sums, parts, strict=True)
            )
        )
    worst = np.argsort(-held, kind="stable")
    most = np.concatenate([[0.0], np.cumsum(held[worst])])[np.searchsorted(np.cumsum(costs[worst]), wanted, "right")]
    return HeldDamage(chosen=np.array(chosen) / total, most=most / total)
