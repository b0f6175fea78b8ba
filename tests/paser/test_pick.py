"""Which rows are kept: budgets to the row, the published rule by hand, baselines, and what cannot be meant."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapipe.errors import BudgetError, ConfigError
from datapipe.paser.pick import METHODS, REASONS, PickConfig, PickRows, Picks, pick
from datapipe.selection.budget import Budget


def some_rows(count: int = 60, *, clusters: int = 4, seed: int = 0) -> PickRows:
    draws = np.random.default_rng(seed)
    answers = draws.normal(size=(count, 8)).astype(np.float32)
    answers[1::7] = -answers[: len(answers[1::7])]
    asked = np.arange(count, dtype=np.uint64)
    asked[1::7] = asked[: len(asked[1::7])]
    labels = draws.integers(0, clusters, count)
    return PickRows(
        labels=labels,
        clusters=clusters,
        order=draws.permutation(count),
        tokens=draws.integers(1, 60, count),
        prompt_tokens=draws.integers(1, 40, count),
        jsd=draws.random(count) * 0.1 * (1 + labels),
        nll=draws.random(count) + 1,
        alone=draws.random(count) + 1.5,
        asked=asked,
        answers=answers / np.linalg.norm(answers, axis=1, keepdims=True),
        texts=[(f"word{at % 9} of word{at % 4}", "", f"answer{at % 6}") for at in range(count)],
        sources=labels % 2,
        source_names=("code", "chat"),
    )


def taken(rows: PickRows, which: np.ndarray) -> PickRows:
    """The same rows in another order, or some of them."""
    arrays = ("labels", "order", "tokens", "prompt_tokens", "jsd", "nll", "alone", "asked", "answers", "sources")
    texts = [rows.texts[row] for row in which] if rows.texts is not None else None
    return replace(rows, texts=texts, **{name: getattr(rows, name)[which] for name in arrays})


def picks(rows: PickRows, budget: Budget | int, method: Any = "ours", **options: Any) -> Picks:
    given_ = Budget(rows=budget) if isinstance(budget, int) else budget
    return pick(rows, PickConfig(budget=given_, method=method, **options))


def test_a_cluster_with_twice_the_damage_gets_twice_the_rows() -> None:
    labels = np.repeat([0, 1], [300, 300])
    rows = replace(some_rows(600, clusters=2), labels=labels, jsd=np.where(labels == 0, 0.1, 0.2))
    found = picks(rows, 90, conflicts="off", prior_rows=0.0)
    assert found.clusters.taken.tolist() == [30, 60]
    assert found.clusters.share == pytest.approx([1 / 3, 2 / 3])
    assert found.counts == {"kept": 90, "over_budget": 510}
    assert found.warnings == ()


def test_inside_a_cluster_the_rule_decides_and_ties_go_by_hash_order() -> None:
    rows = PickRows(
        labels=np.zeros(4, np.int64),
        clusters=1,
        order=np.array([3, 2, 1, 0]),
        tokens=np.array([10, 10, 40, 2]),
        prompt_tokens=np.array([10, 10, 10, 10]),
        jsd=np.array([0.2, 0.2, 0.21, 0.19]),
    )
    first = {
        rule: picks(rows, 1, conflicts="off", rule=rule).kept.tolist().index(True)
        for rule in ("ies", "jsd", "length", "random", "power:0", "power:1", "power:2")
    }
    assert first == {"ies": 3, "jsd": 2, "length": 2, "random": 3, "power:0": 2, "power:1": 2, "power:2": 3}
    assert picks(rows, 3, conflicts="off", rule="jsd").rank.tolist() == [2, 1, 0, 3]


def test_the_published_rule_as_worked_out_by_hand() -> None:
    """B = 5, CDS .3 and .1 -> n = floor(3.75), floor(1.25) = 3, 1; IES = JSD / ln(L^2), L = 100 for every row.

    Cluster 0 by IES: rows 0, 1, 2, 3. Row 0 brings {sort numbers, python}, row 1 {count apples, oranges}; row 2 joins
    `sort numbers` to `oranges`, both known and never together: refused. Row 3 brings {draw maps, paper}: the third.
    Cluster 1: row 4 joins `draw maps` to `python`: refused; row 5 brings {sing songs, music}: accepted, n = 1 is met.
    Four rows of five are kept. Row 6 is never asked.
    """
    rows = PickRows(
        labels=np.array([0, 0, 0, 0, 1, 1, 1]),
        clusters=2,
        order=np.arange(7),
        tokens=np.full(7, 60),
        prompt_tokens=np.full(7, 40),
        jsd=np.array([0.36, 0.33, 0.27, 0.24, 0.12, 0.10, 0.08]),
        texts=[
            ("Sort numbers", "", "Python"),
            ("Count apples", "", "oranges"),
            ("Sort numbers", "", "oranges"),
            ("Draw maps", "", "paper"),
            ("Draw maps", "", "Python"),
            ("Sing songs", "", "music"),
            ("Fly", "", "kites"),
        ],
    )
    found = picks(rows, 5, "paper")
    assert [REASONS[each] for each in found.reason] == [
        *("kept", "kept", "conflicting_concepts", "kept"),
        *("conflicting_concepts", "kept", "over_budget"),
    ]
    assert found.against.tolist() == [-1, -1, 1, -1, 3, -1, -1]
    assert found.clusters.budget.tolist() == [3, 1]
    assert found.clusters.damage.score == pytest.approx([0.3, 0.1])
    assert found.ies[0] == pytest.approx(0.36 / (2 * np.log(100)))
    assert found.clusters.acceptance.tolist() == [0.75, 0.5]
    assert [each.split(": ")[0] for each in found.warnings] == ["4 rows are kept of the 5 asked for"]
    assert found.warnings[0].endswith("the published rule rounds shares down and replaces no row; conflicts refuse 2")


def test_a_cluster_too_small_for_its_share_leaves_it_to_the_others() -> None:
    labels = np.repeat([0, 1, 2], [3, 50, 47])
    rows = replace(some_rows(100, clusters=3), labels=labels, jsd=np.where(labels == 0, 0.6, 0.1))
    found = picks(rows, 40, conflicts="off", prior_rows=0.0)
    assert found.clusters.taken[0] == 3
    assert found.kept.sum() == 40


def test_contradictions_are_refused_with_the_row_they_contradict_and_the_budget_is_met() -> None:
    rows = some_rows()
    found = picks(rows, 45)
    refused = found.reason == REASONS.index("contradicts")
    assert refused.sum() > 3
    assert found.kept.sum() == 45
    assert rows.asked is not None
    assert (rows.asked[refused] == rows.asked[found.against[refused]]).all()
    assert (found.against[~refused] == -1).all()
    assert (found.clusters.acceptance < 1).any()


def test_what_rows_ask_is_read_from_their_texts_where_no_key_is_given() -> None:
    rows = some_rows(4)
    texts = [("Name a fruit.", "", "x"), ("name fruit", "", "x"), ("Name two fruits", "", "x"), ("Sing", "", "x")]
    found = picks(replace(rows, texts=texts, asked=None, answers=np.eye(8, dtype=np.float32)[:4]), 4)
    assert found.counts == {"kept": 3, "contradicts": 1}
    assert found.against[:2].max() in {0, 1}


def test_where_conflicts_leave_too_few_rows_the_result_says_so() -> None:
    found = picks(some_rows(), 60)
    assert found.kept.sum() == 60 - found.counts["contradicts"]
    assert f"{found.kept.sum()} rows are kept of the 60 asked for: conflicts refuse" in found.warnings[0]


@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_never_more_than_asked_for_and_hardly_fewer(method: str) -> None:
    rows = some_rows(300)
    found = picks(rows, Budget(tokens=2_000), method)
    spent = int(rows.length[found.kept].sum())
    assert spent <= 2_000
    assert spent == found.clusters.tokens_taken.sum()
    if method != "paper":
        left = found.reason == REASONS.index("over_budget")
        assert spent + rows.length[left].min() > 2_000


def test_random_and_stratified_choices_for_a_larger_budget_hold_those_for_a_smaller_one() -> None:
    rows = some_rows(200)
    for method in ("random", "stratified", "longest", "ifd", "top_jsd"):
        kept = [picks(rows, budget, method).kept for budget in (7, 20, 81, 200)]
        assert all((small <= large).all() for small, large in pairwise(kept))


def test_a_stratified_choice_holds_the_clusters_in_proportion() -> None:
    rows = replace(some_rows(100, clusters=3), labels=np.repeat([0, 1, 2], [60, 30, 10]))
    assert picks(rows, 20, "stratified").clusters.taken.tolist() == [12, 6, 2]


def test_the_instruction_following_difficulty_leaves_out_what_no_instruction_helps() -> None:
    rows = replace(some_rows(4), nll=np.array([1.0, 2.0, 1.5, 3.0]), alone=np.array([2.0, 1.0, 1.6, 3.0]))
    assert np.argsort(picks(rows, 2, "ifd").rank)[:2].tolist() == [2, 0]


def test_priors_over_clusters_and_sources_move_the_budget() -> None:
    rows = replace(some_rows(400), jsd=np.full(400, 0.1))
    plain = picks(rows, 100, conflicts="off").clusters.share
    assert plain == pytest.approx(np.full(4, 0.25))
    by_number = picks(rows, 100, conflicts="off", cluster_prior=((0, 3.0), (1, 0.0))).clusters
    assert by_number.share == pytest.approx([0.6, 0.0, 0.2, 0.2])
    assert by_number.taken[1] == 0
    by_source = picks(rows, 100, conflicts="off", source_prior=(("code", 4.0),)).clusters
    assert by_source.share == pytest.approx([0.4, 0.1, 0.4, 0.1])


def test_floors_and_ceilings_bound_what_a_cluster_gets() -> None:
    labels = np.repeat([0, 1, 2, 3], 50)
    rows = replace(some_rows(200), labels=labels, jsd=np.array([0.5, 0.01, 0.01, 0.01])[labels])
    free = picks(rows, 40, conflicts="off", prior_rows=0.0).clusters.taken
    bound = picks(rows, 40, conflicts="off", prior_rows=0.0, floor=0.1, ceiling=0.5).clusters.taken
    assert free[0] > 35
    assert bound[0] == 20
    assert bound.min() >= 4
    assert bound.sum() == 40


def test_two_identical_models_give_a_stratified_choice_and_a_warning() -> None:
    rows = replace(some_rows(100), jsd=np.zeros(100))
    found = picks(rows, 20, conflicts="off")
    assert found.kept.tolist() == picks(rows, 20, "stratified").kept.tolist()
    assert found.warnings == ("the models do not differ on any cluster: the budget follows the clusters' sizes",)


def test_a_budget_over_the_pool_keeps_all_rows_and_says_so() -> None:
    found = picks(some_rows(30), 31, conflicts="off")
    assert found.kept.all()
    assert found.warnings == ("the budget is 31 rows, but the pool holds 30: it leaves nothing out",)


def test_rows_not_measured_stand_at_the_mean_of_their_cluster_in_random_order() -> None:
    rows = some_rows(40, clusters=1)
    jsd = np.full(40, np.nan)
    jsd[:10] = np.linspace(0.1, 0.2, 10)
    found = picks(replace(rows, jsd=jsd), 12, conflicts="off", rule="jsd")
    assert np.flatnonzero(found.kept[:10]).tolist() == [5, 6, 7, 8, 9]
    assert set(np.flatnonzero(found.kept[10:])) == set(np.argsort(rows.order[10:])[:7])
    assert found.warnings == (
        "the damage of 30 of 40 rows is not known: they count as the mean of their cluster, at random",
    )
    assert np.isnan(found.ies[10:]).all()
    assert picks(replace(rows, jsd=jsd), 9, "top_jsd").kept[1:10].all()


def test_a_row_without_a_token_of_response_comes_last() -> None:
    rows = some_rows(20, clusters=1)
    tokens, jsd = rows.tokens.copy(), np.full(20, 0.3)
    tokens[3], jsd[3] = 0, np.nan
    assert not picks(replace(rows, tokens=tokens, jsd=jsd), 19, conflicts="off", rule="random").kept[3]


def test_a_pool_of_one_cluster_is_a_pool() -> None:
    assert picks(some_rows(30, clusters=1), 10).kept.sum() == 10


def test_settings_without_effect_are_not_told() -> None:
    budget = Budget(rows=3)
    assert (
        PickConfig(budget=budget, method="random").told()
        == PickConfig(budget=budget, method="random", power=3.0).told()
    )
    assert PickConfig(budget=budget).told() != PickConfig(budget=budget, power=3.0).told()


@settings(max_examples=50)
@given(
    st.integers(1, 80),
    st.integers(1, 6),
    st.integers(1, 90),
    st.sampled_from([each for each in METHODS if each != "paper"]),
    st.integers(0, 50),
)
def test_a_budget_is_met_to_the_row(count: int, clusters: int, budget: int, method: str, seed: int) -> None:
    found = picks(some_rows(count, clusters=clusters, seed=seed), budget, method, conflicts="off")
    assert found.kept.sum() == min(budget, count)
    assert found.clusters.taken.sum() == found.kept.sum()


@settings(max_examples=50)
@given(st.sampled_from(METHODS), st.integers(0, 30), st.integers(5, 60), st.sampled_from([1, 40]))
def test_the_order_of_the_rows_changes_nothing(method: str, seed: int, budget: int, tokens: int) -> None:
    rows = some_rows(seed=seed)
    turned = np.random.default_rng(seed + 1).permutation(60)
    asked = Budget(tokens=tokens * budget) if tokens > 1 else Budget(rows=budget)
    found, again = picks(rows, asked, method), picks(taken(rows, turned), asked, method)
    for name in ("kept", "reason", "rank", "ies"):
        assert (getattr(again, name) == getattr(found, name)[turned]).all()
    before = np.where(found.against >= 0, found.against, -1)[turned]
    assert (np.where(again.against >= 0, turned[again.against], -1) == before).all()
    assert again.warnings == found.warnings


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Budget(rows=0), BudgetError, "at least 1; got 0"),
        (lambda: picks(some_rows(), 5, rule="best"), ConfigError, "rule must be one of ies, jsd.*Got 'best'"),
        (lambda: picks(some_rows(), 5, rule="power:x"), ConfigError, "ALPHA a number. Got 'power:x'"),
        (lambda: picks(some_rows(), 5, "best"), ConfigError, "method must be one of ours, paper.*Got 'best'"),
        (lambda: picks(some_rows(), 5, even=2.0), ConfigError, "even is a part of the budget"),
        (lambda: picks(some_rows(), 5, power=-1.0), ConfigError, "power must be finite and at least 0"),
        (lambda: picks(some_rows(), 5, floor=0.5), BudgetError, "floors of the clusters add up to 8, more than the"),
        (lambda: picks(some_rows(), 5, cluster_prior=((9, 1.0),)), ConfigError, "no cluster 9; .* 0 to 3"),
        (lambda: picks(some_rows(), 5, source_prior=(("x", 1.0),)), ConfigError, "source 'x'; sources are code, chat"),
        (lambda: picks(replace(some_rows(), answers=None), 5), ConfigError, "ours with .* needs answers of the rows"),
        (lambda: picks(replace(some_rows(), asked=None, texts=None), 5), ConfigError, "needs texts of the rows"),
        (lambda: picks(replace(some_rows(), alone=None), 5, "ifd"), ConfigError, "needs alone"),
        (lambda: picks(replace(some_rows(), tokens=np.ones(3, np.int64)), 5), ConfigError, "60 labels, but 3 tokens"),
        (lambda: picks(replace(some_rows(), jsd=np.full(60, np.nan)), 5), BudgetError, "no row's damage was measured"),
        (lambda: picks(replace(some_rows(), clusters=2), 5), ConfigError, "labels run from 0 to 3; clusters are 2"),
        (lambda: picks(replace(some_rows(), order=np.zeros(60, np.int64)), 5), ConfigError, "place of its own"),
        (lambda: picks(some_rows(), Budget(tokens=1)), BudgetError, "1 tokens keeps none of 60 rows"),
        (lambda: picks(taken(some_rows(), np.zeros(0, np.int64)), 5), BudgetError, "no rows to choose from"),
        (lambda: picks(some_rows(4), 1, "paper"), BudgetError, "keeps none of 4 rows: each share rounds down"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
