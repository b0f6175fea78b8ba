"""Contradictions by answers, and the published rule on concepts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datapipe.errors import ConfigError
from datapipe.paser.conflicts import acceptance, asked_keys, by_concepts, by_contradiction, concepts


def unit(rows: Any) -> np.ndarray:
    vectors = np.array(rows, np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_of_two_answers_to_one_question_the_better_ranked_stays() -> None:
    asked = asked_keys([["Name a fruit."], ["name a fruit"], ["Name two fruits"]])
    answers = unit([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    verdict = by_contradiction(asked, answers, np.array([2, 1, 0]))
    assert verdict.kept.tolist() == [False, True, True]
    assert verdict.against.tolist() == [1, -1, -1]


def test_the_answer_that_more_rows_agree_with_stays_whatever_its_rank() -> None:
    answers = unit([[1, 0, 0], [0, 1, 0], [0, 1, 0.1], [0, 1, 0.2]])
    asked = np.zeros(4, np.uint64)
    assert by_contradiction(asked, answers, np.arange(4)).kept.tolist() == [False, True, True, True]


def test_answers_that_say_the_same_are_all_kept() -> None:
    asked = np.zeros(2, np.uint64)
    assert by_contradiction(asked, unit([[1, 0.1], [1, 0]]), np.arange(2)).kept.all()


def test_a_task_with_many_answers_is_no_question() -> None:
    asked, answers = np.zeros(65, np.uint64), np.eye(65, dtype=np.float32)
    assert by_contradiction(asked, answers, np.arange(65)).kept.all()
    assert by_contradiction(asked[:64], answers[:64], np.arange(64)).kept.tolist() == [True, *[False] * 63]


def test_the_order_of_the_rows_decides_nothing() -> None:
    draws = np.random.default_rng(3)
    asked = draws.integers(0, 40, 120).astype(np.uint64)
    answers = unit(draws.normal(size=(120, 8)).tolist())
    rank = draws.permutation(120)
    verdict, turned = by_contradiction(asked, answers, rank), draws.permutation(120)
    again = by_contradiction(asked[turned], answers[turned], rank[turned])
    assert 30 <= verdict.kept.sum() < 120
    assert (again.kept == verdict.kept[turned]).all()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is the capital of France?", "what is capital of france", True),
        ("Please, could you name a fruit?", "Name a fruit", True),
        ("What is 2+3?", "What is 2-3?", False),
        ("Is 2.5 large?", "Is 25 large?", False),
        ("Convert miles to kilometres", "Convert kilometres to miles", False),
        ("Is it hot?", "Is it not hot?", False),
        ("A passage. Who won?", "A passage. Who lost?", False),
        ("???", "!!!", True),
        ("水是什么?", "火是什么?", False),
    ],
)
def test_two_rows_ask_the_same_where_the_same_words_stand_in_the_same_order(one: str, other: str, same: bool) -> None:  # noqa: FBT001
    first, second = asked_keys([[one, ""], [other, ""]])
    assert (first == second) == same


def test_what_was_said_before_is_part_of_the_question() -> None:
    keys = asked_keys([["About cats", "Go on"], ["About dogs", "Go on"], ["About cats", "Go on"]])
    assert keys[0] == keys[2] != keys[1]


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
    assert by_contradiction(np.zeros(1, np.uint64), unit([[0, 1]]), np.array([0])).kept.tolist() == [True]


def test_arrays_of_different_pools_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 questions, 2 answers and 1 ranks"):
        by_contradiction(np.zeros(1, np.uint64), unit([[0, 1], [1, 0]]), np.array([0]))
