"""What a budget holds of the damage: by hand, against brute force, and at both ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import BudgetError
from datapipe.paser.curve import held_damage


def test_each_skill_gives_its_best_rows_as_many_as_its_share() -> None:
    damage = np.array([4.0, 1.0, 3.0, 2.0])
    labels, ranks = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0])
    found = held_damage(
        damage, np.ones(4, np.int64), labels, ranks, np.array([0.5, 0.5]), budgets=np.array([0.0, 0.5, 1.0])
    )
    assert found.chosen.tolist() == [0.0, 0.6, 1.0]  # rows 0 and 3 at a half: the rank decides, not the damage
    assert found.most.tolist() == [0.0, 0.7, 1.0]


def test_a_budget_of_tokens_takes_rows_that_fit_in_order() -> None:
    damage, tokens = np.array([5.0, 3.0, 2.0]), np.array([10, 5, 5])
    nought = np.zeros(3, np.int64)
    found = held_damage(damage, tokens, nought, np.arange(3), np.array([1.0]), budgets=np.array([0.5, 0.75]))
    assert found.chosen.tolist() == [0.5, 0.8]


@given(
    rows=st.lists(st.tuples(st.floats(0, 0.69), st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=40),
    seed=st.integers(0, 99),
)
def test_more_budget_never_holds_less_and_nothing_holds_more_than_the_most(
    rows: list[tuple[float, int, int]], seed: int
) -> None:
    damage, labels = np.array([row[0] + 1e-3 for row in rows]), np.array([row[1] for row in rows])
    ranks = np.random.default_rng(seed).permutation(len(rows))
    budgets = np.linspace(0, 1, 21)
    found = held_damage(damage, np.ones(len(rows), np.int64), labels, ranks, np.full(4, 0.25), budgets=budgets)
    assert found.chosen[0] == 0
    assert found.chosen[-1] == pytest.approx(1)
    assert (np.diff(found.most) >= -1e-12).all()
    assert (found.chosen <= found.most + 1e-9).all()


def test_rows_that_were_not_measured_hold_nothing_and_no_damage_at_all_is_refused() -> None:
    nought, ones = np.zeros(2, np.int64), np.ones(2, np.int64)
    found = held_damage(np.array([np.nan, 1.0]), ones, nought, np.arange(2), np.ones(1), budgets=np.array([0.5]))
    assert found.chosen.tolist() == [0.0]
    with pytest.raises(BudgetError, match="no row has any damage"):
        held_damage(np.zeros(2), ones, nought, np.arange(2), np.ones(1), budgets=np.array([0.5]))
    with pytest.raises(BudgetError, match="2 damages, 1 costs"):
        held_damage(np.zeros(2), ones[:1], nought, np.arange(2), np.ones(1), budgets=np.array([0.5]))
