"""Each figure against a case counted by hand, a slow definition, or what must hold for any input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import floats, integers, sampled_from

from datapipe.errors import MetricError
from provence.evaluation.metrics import (
    agreement,
    answer_retained,
    interval,
    normalised,
    ranking,
    removed_at_recall,
    resampled_agreement,
    resampled_mean,
    resampled_removed,
    resamples,
    threshold_at_recall,
)

TEN = np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
GOLD = np.array([1, 0, 1, 1, 0, 0, 0, 0, 1, 0], dtype=bool)
CHARACTERS = np.arange(10, 110, 10)


def test_characters_removed_at_a_recall_counted_by_hand() -> None:
    assert threshold_at_recall(TEN, GOLD, 0.5) == 0.8, "of four gold sentences two"
    assert removed_at_recall(TEN, GOLD, CHARACTERS, 0.5) == pytest.approx((40 + 50 + 60 + 70 + 80 + 90 + 100) / 550)
    assert threshold_at_recall(TEN, GOLD, 0.75) == 0.7
    assert threshold_at_recall(TEN, GOLD, 0.76) == 0.2, "three are not enough, so four"
    assert removed_at_recall(TEN, GOLD, CHARACTERS, 1.0) == pytest.approx(100 / 550)


def test_sentences_of_one_score_stay_or_go_together() -> None:
    assert removed_at_recall(np.full(4, 0.5), np.array([1, 0, 0, 0], dtype=bool), np.full(4, 7), 0.9) == 0.0


def test_a_recall_that_is_whole_but_for_rounding_needs_no_sentence_more() -> None:
    probabilities = np.linspace(1, 0, 100)
    for share in (0.07, 0.29, 0.57, 0.9, 0.95, 0.99):
        kept = probabilities >= threshold_at_recall(probabilities, np.ones(100, dtype=bool), share)
        assert kept.sum() == round(100 * share)


@given(
    probabilities=arrays(np.float64, 40, elements=sampled_from(np.linspace(0, 1, 9).tolist())),
    gold=arrays(np.bool_, 40),
    characters=arrays(np.int64, 40, elements=integers(1, 500)),
    recall=floats(0.01, 1),
)
def test_the_threshold_is_the_largest_that_keeps_the_recall(
    probabilities: np.ndarray, gold: np.ndarray, characters: np.ndarray, recall: float
) -> None:
    assume(gold.any())
    threshold = threshold_at_recall(probabilities, gold, recall)
    higher = [value for value in np.unique(probabilities) if value > threshold]
    assert (probabilities[gold] >= threshold).mean() >= recall - 1e-9
    assert all((probabilities[gold] >= value).mean() < recall for value in higher)
    removed = removed_at_recall(probabilities, gold, characters, recall)
    assert removed == pytest.approx(characters[probabilities < threshold].sum() / characters.sum())
    assert removed >= removed_at_recall(probabilities, gold, characters, 1.0)


def test_agreement_counted_by_hand() -> None:
    found = agreement(np.array([1, 1, 1, 0, 0], dtype=bool), np.array([1, 0, 0, 1, 0], dtype=bool))
    assert (found.precision, found.recall) == (1 / 3, 1 / 2)
    assert found.f1 == pytest.approx(2 * 1 / 3 * 1 / 2 / (1 / 3 + 1 / 2))
    assert found.f2 == pytest.approx(5 * 1 / 3 * 1 / 2 / (4 * 1 / 3 + 1 / 2))
    nothing = np.zeros(3, dtype=bool)
    assert agreement(nothing, nothing).f1 == 1.0
    assert agreement(nothing, ~nothing).precision == 1.0
    assert agreement(nothing, ~nothing).f2 == 0.0


def test_answers_are_normalised_as_squad_does_it() -> None:
    assert normalised("The  U.S. Army's\tan apple-tree") == "us armys appletree"


def test_an_answer_is_retained_if_any_of_its_strings_stands_in_the_kept_sentences_as_words() -> None:
    shown = ["The oil crisis began in October 1973.", "It hurt."]
    assert answer_retained(["october 1973", "1973"], shown, shown[:1]) == 1.0
    assert answer_retained(["October 1973"], shown, shown[1:]) == 0.0
    assert answer_retained(["cris"], shown, shown) is None, "part of a word is no answer"
    assert answer_retained(["the"], shown, []) is None, "an article alone is empty"
    assert answer_retained([], shown, shown) is None


def test_ranking_counted_by_hand() -> None:
    scores = np.array([3.0, 2.0, 1.0, 5.0, 4.0, 1.0, 9.0])
    holds = np.array([0, 1, 1, 1, 0, 1, 0], dtype=bool)
    asked = np.array([0, 0, 0, 1, 1, 2, 3])
    found = ranking(scores, holds, asked)
    assert found["question"].tolist() == [0, 1], "questions 2 and 3 show nothing to rank"
    assert found["mrr"].tolist() == [0.5, 1.0]
    assert found["first"].tolist() == [0.0, 1.0]
    gain = (1 / math.log2(3) + 1 / math.log2(4)) / (1 / math.log2(2) + 1 / math.log2(3))
    np.testing.assert_allclose(found["ndcg"], [gain, 1.0])


def test_a_constant_score_ranks_gold_last() -> None:
    found = ranking(np.zeros(4), np.array([1, 0, 0, 0], dtype=bool), np.zeros(4, dtype=np.int64))
    assert found["mrr"].tolist() == [0.25]


@given(
    scores=arrays(np.float64, 30, elements=floats(-5, 5)),
    holds=arrays(np.bool_, 30),
    asked=arrays(np.int64, 30, elements=integers(0, 6)),
)
def test_ranking_does_not_depend_on_the_order_of_passages(
    scores: np.ndarray, holds: np.ndarray, asked: np.ndarray
) -> None:
    order = np.random.default_rng(0).permutation(30)
    plain, shuffled = ranking(scores, holds, asked), ranking(scores[order], holds[order], asked[order])
    for name, values in plain.items():
        np.testing.assert_allclose(values, shuffled[name])
        assert name == "question" or ((values >= 0) & (values <= 1 + 1e-12)).all()
    perfect = ranking(holds.astype(float), holds, asked)
    for name in ("ndcg", "mrr", "first"):
        np.testing.assert_allclose(perfect[name], 1)


def test_each_bootstrap_sample_draws_as_many_questions_as_there_are() -> None:
    weights = resamples(37, count=200, seed=3)
    assert weights.shape == (200, 37)
    assert (weights.sum(axis=1) == 37).all()
    assert np.array_equal(weights, resamples(37, count=200, seed=3))
    assert not np.array_equal(weights, resamples(37, count=200, seed=4))
    assert resamples(0, count=5).shape == (5, 0)


@given(seed=integers(0, 1000), distinct=integers(1, 12))
def test_resampled_figures_are_those_of_the_drawn_questions(seed: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    question = np.sort(rng.integers(8, size=60))
    probabilities = rng.integers(distinct, size=60) / distinct
    gold, characters = rng.random(60) < 0.2, rng.integers(1, 99, size=60)
    kept = probabilities >= 0.5
    weights = resamples(8, count=20, seed=seed)
    removed = resampled_removed(probabilities, gold, characters, question, recalls=(0.5, 0.9, 1.0), weights=weights)
    agreements = resampled_agreement(kept, gold, question, weights)
    for sample, drawn in enumerate(weights):
        rows = np.concatenate(
            [np.zeros(0, int), *(np.flatnonzero(question == q) for q in np.repeat(np.arange(8), drawn))]
        )
        assert agreements[sample] == agreement(kept[rows], gold[rows])
        if not gold[rows].any():
            assert np.isnan(removed[sample]).all()
            continue
        expected = [removed_at_recall(probabilities[rows], gold[rows], characters[rows], r) for r in (0.5, 0.9, 1.0)]
        np.testing.assert_allclose(removed[sample], expected, atol=1e-12)


def test_a_resampled_mean_leaves_out_questions_that_do_not_count() -> None:
    weights = np.array([[2, 0, 1], [0, 3, 0]])
    found = resampled_mean(np.array([1.0, math.nan, 4.0]), weights)
    assert found[0] == pytest.approx(2.0)
    assert math.isnan(found[1])


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = interval(resampled_mean(values, resamples(400, count=4000)))
    error = values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert all(math.isnan(end) for end in interval(np.array([math.nan])))


def test_no_gold_and_recalls_out_of_range_are_refused() -> None:
    with pytest.raises(MetricError, match="no gold sentence"):
        removed_at_recall(TEN, np.zeros(10, dtype=bool), CHARACTERS, 0.9)
    for recall in (0, 1.01):
        with pytest.raises(MetricError, match=r"recall must lie in \(0, 1\]"):
            threshold_at_recall(TEN, GOLD, recall)
