"""Curves through pilots, and budgets at equal marginal gain against all splits there are."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapipe.errors import BudgetError
from datapipe.paser.recoverability import Curves, allocate_by_gain, fit_curves

SMALL = st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.3, 30), st.integers(0, 9)), min_size=1, max_size=4)


def curves(most: list[float], scale: list[float]) -> Curves:
    nothing = np.full(len(most), np.nan)
    return Curves(np.array(most), np.array(scale), nothing, nothing, nothing, nothing)


def fitted(tokens: list[float], gains: np.ndarray, **options: Any) -> Curves:
    labels = np.zeros(len(tokens), np.int64)
    return fit_curves(labels, np.array(tokens), np.full(len(tokens), 3.0), 3.0 - gains, clusters=1, **options)


def test_a_curve_is_found_again_from_three_pilots() -> None:
    tokens = np.array([1e4, 4e4, 2e5])
    found = fitted(tokens.tolist(), 0.8 * -np.expm1(-tokens / 5e4))
    assert found.most[0] == pytest.approx(0.8, rel=1e-3)
    assert found.scale[0] == pytest.approx(5e4, rel=1e-2)
    assert found.gain(np.array([5e4]))[0] == pytest.approx(0.8 * (1 - np.exp(-1)), rel=1e-3)


def test_the_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    draws, tokens = np.random.default_rng(0), np.repeat([1e4, 3e4, 1e5, 3e5], 3)
    truth = 0.8 * -np.expm1(-tokens / 5e4)
    held = []
    for _ in range(200):
        found = fitted(tokens.tolist(), truth + 0.02 * draws.normal(size=12))
        held.append(
            (
                found.most_low[0] <= 0.8 <= found.most_high[0],
                found.scale_low[0] <= 5e4 <= found.scale_high[0],
            )
        )
    assert (np.mean(held, axis=0) > 0.9).all()


def test_pilots_too_short_to_bend_say_that_they_do_not_know() -> None:
    found = fitted([1e4, 2e4, 3e4], np.array([0.1, 0.2, 0.3]), noise=0.01)
    assert found.most_high[0] > 3
    assert found.scale_high[0] > 1e5
    two = fitted([1e4, 2e4], np.array([0.1, 0.15]))
    assert (two.most_low[0], two.most_high[0]) == (0, np.inf)


def test_a_cluster_that_got_worse_gains_nothing_and_one_without_a_pilot_is_unknown() -> None:
    labels = np.array([0, 0, 2, 2])
    after = np.array([2.0, 1.8, 3.2, 3.4])
    found = fit_curves(labels, np.array([1e3, 1e4, 1e3, 1e4]), np.full(4, 3.0), after, clusters=3)
    assert found.most[0] > 1
    assert found.most[2] == 0
    assert np.isnan(found.most[1])
    given_ = allocate_by_gain(found, budget=1_500, available=np.array([1_000, 300, 300]))
    assert given_.tolist() == [1_000, 250, 250]


def test_the_marginal_gain_is_the_same_wherever_a_cluster_is_neither_empty_nor_full() -> None:
    some = curves([1.0, 0.5, 0.01, 2.0], [4e4, 1e4, 1e6, 5e4])
    given_ = allocate_by_gain(some, budget=100_000, available=np.array([10**6, 10**6, 10**6, 20_000]))
    assert given_.sum() == 100_000
    assert given_[2] == 0
    assert given_[3] == 20_000
    slope = some.most / some.scale * np.exp(-given_ / some.scale)
    assert slope[0] == pytest.approx(slope[1], rel=1e-3)


@settings(max_examples=60)
@given(SMALL, st.integers(0, 14))
def test_no_split_in_whole_tokens_gives_back_more(clusters: list[tuple[float, float, int]], budget: int) -> None:
    some = curves([each[0] for each in clusters], [each[1] for each in clusters])
    available = np.array([each[2] for each in clusters])
    given_ = allocate_by_gain(some, budget=budget, available=available)
    wanted = min(budget, int(available.sum()))
    assert given_.sum() == wanted
    assert (given_ <= available).all()
    splits = (each for each in itertools.product(*(range(n + 1) for n in available)) if sum(each) == wanted)
    best = max(some.gain(np.array(each)).sum() for each in splits)
    assert some.gain(given_).sum() == pytest.approx(best, abs=1e-9)


def test_what_a_gain_is_worth_moves_the_budget() -> None:
    some = curves([1.0, 1.0], [1e4, 1e4])
    given_ = allocate_by_gain(some, budget=10_000, available=np.array([9_000, 9_000]), worth=np.array([np.e, 1.0]))
    assert given_.tolist() == [9_000, 1_000]
    free = allocate_by_gain(some, budget=30_000, available=np.array([90_000, 90_000]), worth=np.array([np.e, 1.0]))
    assert free[0] - free[1] == pytest.approx(10_000, abs=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fitted([1e4], np.array([0.1])), "cluster 0 has pilots of one length"),
        (lambda: fitted([1e4, 0.0], np.array([0.1, 0.2])), "number of tokens of pilot 1 cannot be used: 0.0"),
        (lambda: fitted([1e4, 2e4], np.array([0.1, np.nan])), "loss of pilot 1 cannot be used: nan"),
        (
            lambda: allocate_by_gain(curves([0.0], [1.0]), budget=3, available=np.array([5])),
            "no cluster gains anything",
        ),
        (
            lambda: allocate_by_gain(curves([1.0], [1.0]), budget=-1, available=np.array([5])),
            "budget of -1 do not go together",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(call: Any, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        call()
