"""Contradictions by answers, and the published rule on concepts."""

from __future__ import annotations

import numpy as np
import pytest

from datapipe.errors import ConfigError
from datapipe.paser.conflicts import acceptance, by_concepts, by_contradiction, concepts


def unit(rows: list[list[float]]) -> np.ndarray:
    vectors = np.array(rows, np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_of_two_answers_to_one_question_the_better_ranked_stays() -> None:
    questions = unit([[1, 0, 0], [1, 0.01, 0], [0, 1, 0]])
    answers = unit([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    verdict = by_contradiction(questions, answers, np.array([2, 1, 0]))
    assert verdict.kept.tolist() == [False, True, True]
    assert verdict.against.tolist() == [1, -1, -1]


def test_the_answer_that_more_rows_agree_with_stays_whatever_its_rank() -> None:
    questions = unit([[1, 0, 0.001 * at] for at in range(4)])
    answers = unit([[1, 0, 0], [0, 1, 0], [0, 1, 0.1], [0, 1, 0.2]])
    assert by_contradiction(questions, answers, np.arange(4)).kept.tolist() == [False, True, True, True]


def test_the_order_of_the_rows_decides_nothing() -> None:
    draws = np.random.default_rng(3)
    questions = unit(np.repeat(draws.normal(size=(30, 8)), 4, axis=0) + 0.02 * draws.normal(size=(120, 8)))
    answers = unit(draws.normal(size=(120, 8)).tolist())
    rank = draws.permutation(120)
    verdict, turned = by_contradiction(questions, answers, rank), draws.permutation(120)
    again = by_contradiction(questions[turned], answers[turned], rank[turned])
    assert 30 <= verdict.kept.sum() < 120
    assert (again.kept == verdict.kept[turned]).all()


def test_concepts_are_runs_of_words_between_stop_words_and_punctuation() -> None:
    assert concepts("Write the quick sort algorithm, and explain it in Python.") == {
        "write",
        "quick sort algorithm",
        "explain",
        "python",
    }


def test_the_published_rule_refuses_a_row_that_joins_known_concepts_anew() -> None:
    rows = [
        ("Sort numbers", "", "Python"),
        ("Count apples", "", "oranges"),
        ("Sort numbers", "", "oranges"),
        ("Sort numbers", "", "Python"),
    ]
    verdict = by_concepts(rows)
    assert verdict.kept.tolist() == [True, True, False, True]
    assert verdict.against[2] in {0, 1}


def test_acceptance_is_told_cluster_by_cluster() -> None:
    kept = np.array([True, False, True])
    assert acceptance(kept, np.array([0, 0, 1]), clusters=3) == [0.5, 1.0, 1.0]


def test_pools_of_nobody_and_of_one_row_have_no_conflicts() -> None:
    assert by_concepts([]).kept.tolist() == []
    assert by_contradiction(unit([[1, 0]]), unit([[0, 1]]), np.array([0])).kept.tolist() == [True]


def test_arrays_of_different_pools_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 questions, 2 answers and 1 ranks"):
        by_contradiction(unit([[1, 0]]), unit([[0, 1], [1, 0]]), np.array([0]))
