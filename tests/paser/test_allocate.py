"""Damage by cluster, and the budget that follows it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import BudgetError
from datapipe.paser.allocate import allocate_tokens, degradation, shares_by_damage
from datapipe.selection.quotas import allocate


def test_a_cluster_twice_as_damaged_gets_twice_the_rows() -> None:
    weights = shares_by_damage(np.array([0.4, 0.2, 0.1]))
    assert allocate(weights, np.array([100, 100, 100]), budget=70).tolist() == [40, 20, 10]


def test_what_a_small_cluster_cannot_take_goes_to_the_others_by_their_weights() -> None:
    assert allocate(np.array([0.5, 0.3, 0.2]), np.array([10, 100, 100]), budget=60).tolist() == [10, 30, 20]


def test_rounding_loses_no_row_where_the_paper_does() -> None:
    weights = np.array([1.0, 1.0, 1.0])
    assert allocate(weights, np.array([9, 9, 9]), budget=10).tolist() == [4, 3, 3]


def test_clusters_without_weight_serve_only_when_the_others_are_used_up() -> None:
    assert allocate(np.array([1.0, 0.0, 0.0]), np.array([5, 4, 12]), budget=13).tolist() == [5, 2, 6]
    assert allocate(np.array([1.0, 0.0, 0.0]), np.array([5, 4, 12]), budget=5).tolist() == [5, 0, 0]


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 50)), min_size=1, max_size=12),
    st.integers(0, 400),
)
def test_a_budget_is_met_exactly_and_no_cluster_gives_more_than_it_has(
    clusters: list[tuple[float, int]], budget: int
) -> None:
    weights, available = np.array([each[0] for each in clusters]), np.array([each[1] for each in clusters])
    given_ = allocate(weights, available, budget=budget)
    assert given_.sum() == min(budget, available.sum())
    assert (given_ >= 0).all()
    assert (given_ <= available).all()


def test_damage_is_winsorised_shrunk_and_has_an_interval() -> None:
    draws = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [400, 400, 2])
    damage = np.where(labels == 0, 0.3, 0.1) + 0.01 * draws.random(802)
    damage[5], damage[801] = 50.0, np.nan
    found = degradation(damage, labels, clusters=3)
    assert found.mean[0] == pytest.approx(0.305, abs=0.003)
    assert found.low[0] < found.score[0] < found.high[0] < found.mean[0]
    assert found.low[2] <= found.score[2] <= found.high[2]
    assert found.measured.tolist() == [400, 400, 1]
    assert found.rows.tolist() == [400, 400, 2]
    assert 0.15 < found.score[2] < 0.21
    assert degradation(damage, labels, clusters=3, floor=0.1).score[1] == pytest.approx(found.score[1] - 0.1)


def test_two_identical_models_leave_the_sizes_to_decide() -> None:
    found = degradation(np.zeros(30), np.repeat([0, 1], [20, 10]), clusters=2)
    assert found.score.tolist() == [0.0, 0.0]
    assert shares_by_damage(found.score, sizes=found.rows) == pytest.approx([2 / 3, 1 / 3])


def test_a_prior_and_an_even_part_change_the_shares() -> None:
    scores, sizes = np.array([0.2, 0.2]), np.array([30, 10])
    assert shares_by_damage(scores, prior=np.array([1.0, 3.0])) == pytest.approx([0.25, 0.75])
    assert shares_by_damage(scores, prior=np.array([0.0, 3.0]), sizes=sizes, even=0.5) == pytest.approx([0.0, 1.0])
    assert shares_by_damage(scores, sizes=sizes, even=1.0) == pytest.approx([0.75, 0.25])
    assert shares_by_damage(np.array([0.2, 0.1]), power=0.0) == pytest.approx([0.5, 0.5])
    tilted = shares_by_damage(np.array([0.2, 0.1]), sizes=np.array([100, 300]), size_power=1.0)
    assert tilted == pytest.approx([0.4, 0.6])


def test_tokens_are_filled_from_the_best_row_on_and_a_row_too_long_is_passed_over() -> None:
    tokens = np.array([5, 9, 3, 4])
    chosen = allocate_tokens([np.array([1, 0, 2]), np.array([3])], tokens, np.array([8, 3]))
    assert [each.tolist() for each in chosen] == [[0, 2], []]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: allocate(np.array([1.0, np.nan]), np.array([1, 1]), budget=1),
            r"weight of stratum 1 must be finite and at least 0; got nan",
        ),
        (lambda: allocate(np.array([1.0]), np.array([1, 1]), budget=1), "1 weights for 2 strata"),
        (lambda: allocate(np.array([1.0]), np.array([1]), budget=-1), "at least 0; got -1"),
        (lambda: shares_by_damage(np.array([-1.0])), "score of cluster 0 is -1.0"),
        (lambda: shares_by_damage(np.array([1.0]), prior=np.array([0.0])), "all priors are zero"),
        (lambda: shares_by_damage(np.array([1.0]), even=2.0), "0 ... 1; got 2.0"),
        (lambda: degradation(np.array([np.nan]), np.array([0]), clusters=1), "no row's damage was measured"),
        (lambda: degradation(np.array([0.1, -1.0]), np.array([0, 0]), clusters=1), "damage of row 1 is -1.0"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_in_words(call: object, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        call()  # type: ignore[operator]
