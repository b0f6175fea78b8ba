"""How a budget is shared among strata: pure functions of counts and weights, exact in whole numbers.

Raises `BudgetError` for weights, counts or budgets that cannot be meant.
"""

from __future__ import annotations

from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import BudgetError

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float64, Int64


def allocate(weights: Float64, available: Int64, *, budget: int) -> Int64:
    """Split a budget over strata in proportion to weight, exactly; int64 (strata,).

    Largest remainder with caps: n_k <= available_k and sum(n_k) == min(budget, sum(available)). A stratum whose share
    is at least what it holds is taken whole and what it leaves is shared again among the others. Ties go to the lower
    stratum. Strata of weight 0 get something only when all others are taken whole; they then share in proportion to
    what they hold. With equal weights this is the budget rule of CCS (Zheng et al., arXiv 2210.15809, algorithm 1), up
    to its rounding. PASER (arXiv 2502.12594, eq. 6) rounds down and loses the rest; here it is handed on.

    Args:
        weights: Float64 (strata,), finite, >= 0.
        available: Int64 (strata,), >= 0: rows, or tokens.
        budget: How much to share out, >= 0.

    Raises:
        BudgetError: A weight is negative or not finite, a count or the budget is negative, or the lengths differ; names
            the stratum.
    """
    _check(weights, available, budget)
    held = [int(count) for count in available]
    whole = _whole_weights(weights)
    given = [0] * len(held)
    left = min(budget, sum(held))
    for rule in (whole, held):
        members = [k for k in range(len(held)) if rule[k] > 0 and not given[k]]
        left = _share(given, members, rule, held, left)
    return np.array(given, np.int64)


def _share(given: list[int], members: list[int], weights: list[int], held: list[int], left: int) -> int:
    """Give out `left` among `members` and return what they cannot hold."""
    while members and left:
        weight = sum(weights[k] for k in members)
        full = [k for k in members if left * weights[k] >= held[k] * weight]
        if not full:
            break
        for k in full:
            given[k] = held[k]
        left -= sum(held[k] for k in full)
        taken = set(full)
        members = [k for k in members if k not in taken]
    if not members or not left:
        return left
    weight = sum(weights[k] for k in members)
    remainders = []
    for k in members:
        given[k], remainder = divmod(left * weights[k], weight)
        remainders.append((-remainder, k))
    # No stratum is full here: each share lies below what the stratum holds, so one more always fits.
    for _, k in sorted(remainders)[: left - sum(given[k] for k in members)]:
        given[k] += 1
    return 0


def balanced_floor(n_keep: int, n_groups: int, ratio: float = 0.5) -> int:
    """Return floor(ratio * n_keep / n_groups): what every group keeps before the rest goes by score.

    The class-balance rule of the prototypes paper's group (Sorscher et al., arXiv 2206.14486, 50 % on ImageNet; the
    formula of Abbas et al., effective_pruning, `cls_bal_ratio`). A group that holds less is kept whole.

    Args:
        n_keep: Rows (or tokens) to keep, >= 0.
        n_groups: Groups that hold anything, >= 1.
        ratio: 0 <= ratio <= 1; 1 keeps equal numbers.

    Raises:
        BudgetError: An argument is out of range.
    """
    if n_keep < 0 or n_groups < 1 or not 0 <= ratio <= 1:
        raise BudgetError(
            f"A floor needs n_keep >= 0, n_groups >= 1 and a ratio within 0 and 1; got {n_keep}, {n_groups}, {ratio}."
        )
    return int(n_keep / n_groups * ratio)


def _check(weights: Float64, available: Int64, budget: int) -> None:
    if len(weights) != len(available):
        raise BudgetError(f"There are {len(weights)} weights for {len(available)} strata.")
    if budget < 0:
        raise BudgetError(f"A budget is at least 0; got {budget}.")
    for k in np.flatnonzero(~(np.isfinite(weights) & (weights >= 0))):
        raise BudgetError(f"The weight of stratum {k} must be finite and at least 0; got {weights[k]}.")
    for k in np.flatnonzero(available < 0):
        raise BudgetError(f"Stratum {k} cannot hold {available[k]}.")


def _whole_weights(weights: Float64) -> list[int]:
    """The weights as whole numbers in the same proportion: a float is a fraction, so shares are exact."""
    parts = [Fraction(float(weight)) for weight in weights]
    scale = lcm(*(part.denominator for part in parts)) if parts else 1
    return [int(part * scale) for part in parts]
