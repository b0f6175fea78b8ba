"""Budgets are shared out exactly: to the last row, within what is there, in proportion."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers, lists, tuples

from datapipe.errors import BudgetError
from datapipe.selection.quotas import allocate, balanced_floor

STRATA = lists(tuples(floats(0, 1e6), integers(0, 1000)), max_size=12)


def shares(weights: list[float], available: list[int], budget: int) -> list[int]:
    given: list[int] = allocate(np.array(weights, np.float64), np.array(available, np.int64), budget=budget).tolist()
    return given


def test_shares_follow_the_weights_and_the_largest_remainder_gets_what_is_left() -> None:
    assert shares([1, 1, 2], [10, 10, 10], 10) == [3, 2, 5]
    assert shares([1, 1, 1], [10, 10, 10], 10) == [4, 3, 3]
    assert shares([3, 2, 1], [100, 100, 100], 7) == [4, 2, 1]


def test_a_small_stratum_is_taken_whole_and_the_others_share_what_it_leaves() -> None:
    assert shares([1, 1, 1], [1, 10, 10], 10) == [1, 5, 4]


def test_strata_without_weight_get_only_what_the_others_cannot_hold() -> None:
    assert shares([1, 0, 0], [5, 3, 6], 5) == [5, 0, 0]
    assert shares([1, 0, 0], [5, 3, 6], 8) == [5, 1, 2]
    assert shares([0, 0], [1, 3], 2) == [1, 1]


@given(strata=STRATA, budget=integers(0, 5000))
def test_the_whole_budget_is_shared_out_and_no_stratum_gets_more_than_it_holds(
    strata: list[tuple[float, int]], budget: int
) -> None:
    weights, available = [w for w, _ in strata], [n for _, n in strata]
    given_out = shares(weights, available, budget)
    assert sum(given_out) == min(budget, sum(available))
    assert all(0 <= got <= held for got, held in zip(given_out, available, strict=True))


@given(strata=STRATA, budget=integers(0, 5000))
def test_strata_that_are_not_full_get_their_share_to_within_one(strata: list[tuple[float, int]], budget: int) -> None:
    weights, available = [w for w, _ in strata], [n for _, n in strata]
    given_out = shares(weights, available, budget)
    open_ = [k for k in range(len(strata)) if given_out[k] < available[k] and weights[k] > 0]
    left = sum(given_out[k] for k in open_)
    whole = sum(Fraction(weights[k]) for k in open_)
    # A stratum that filled up by its last rounded row holds less than one row above its share.
    slack = sum(1 for k in range(len(strata)) if given_out[k] == available[k])
    for k in open_:
        assert abs(Fraction(weights[k]) / whole * left - given_out[k]) <= 1 + slack


@given(counts=lists(integers(0, 10**6), min_size=1, max_size=30), budget=integers(0, 10**7))
def test_shares_in_proportion_to_size_are_the_exact_quota_rounded_up_or_down(counts: list[int], budget: int) -> None:
    total = sum(counts)
    for got, held in zip(shares([float(n) for n in counts], counts, budget), counts, strict=True):
        exact = Fraction(min(budget, total) * held, total) if total else Fraction(0)
        assert int(exact) <= got <= int(exact) + 1


@given(strata=STRATA, budget=integers(0, 5000), scale=integers(-20, 20))
def test_only_the_proportion_of_the_weights_matters(strata: list[tuple[float, int]], budget: int, scale: int) -> None:
    weights, available = [float(int(w)) for w, _ in strata], [n for _, n in strata]
    assert shares(weights, available, budget) == shares([w * 2.0**scale for w in weights], available, budget)


def test_equal_weights_give_what_the_smallest_first_rule_of_ccs_gives() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        available = rng.integers(0, 40, 8).tolist()
        budget = int(rng.integers(0, sum(available) + 1))
        left, expected = budget, [0] * 8
        for done, k in enumerate(sorted(range(8), key=lambda k: available[k])):  # algorithm 1, arXiv 2210.15809
            expected[k] = min(available[k], left // (8 - done))
            left -= expected[k]
        assert all(abs(a - b) <= 1 for a, b in zip(shares([1.0] * 8, available, budget), expected, strict=True))


@pytest.mark.parametrize(
    ("weights", "available", "budget", "message"),
    [
        ([1.0, -1.0], [1, 1], 1, r"weight of stratum 1 must be finite and at least 0; got -1\.0"),
        ([float("nan")], [1], 1, r"weight of stratum 0 must be finite and at least 0; got nan"),
        ([1.0], [1, 1], 1, "1 weights for 2 strata"),
        ([1.0], [-2], 1, "Stratum 0 cannot hold -2"),
        ([1.0], [2], -1, "budget is at least 0; got -1"),
    ],
)
def test_weights_and_counts_that_cannot_be_meant_are_refused(
    weights: list[float], available: list[int], budget: int, message: str
) -> None:
    with pytest.raises(BudgetError, match=message):
        shares(weights, available, budget)


def test_the_floor_is_the_published_formula() -> None:
    assert balanced_floor(100, 10) == 5
    assert balanced_floor(99, 10) == 4
    assert balanced_floor(3, 10) == 0
    assert balanced_floor(100, 10, 1.0) == 10


@given(n_keep=integers(0, 10**9), n_groups=integers(1, 10**5), ratio=floats(0, 1))
def test_floors_together_never_exceed_their_part_of_the_budget(n_keep: int, n_groups: int, ratio: float) -> None:
    assert 0 <= balanced_floor(n_keep, n_groups, ratio) * n_groups <= n_keep


def test_a_floor_without_groups_is_refused() -> None:
    with pytest.raises(BudgetError, match="n_groups >= 1"):
        balanced_floor(10, 0)
