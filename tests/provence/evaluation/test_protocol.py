"""The protocol shows whole sentences: all that is gold once, and at most three passages beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists, sets

from datapipe.errors import ConfigError
from provence.evaluation.baselines import Lead
from provence.evaluation.protocol import (
    PassageScores,
    cut_lengths,
    joined,
    outcome_of,
    passages_of,
    passages_of_set,
)
from provence.evaluation.sets import read_examples
from tests.provence.evaluation.rows import example

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from provence.evaluation.protocol import Passage

LENGTHS = lists(integers(1, 900), max_size=60)


def cost(lengths: Sequence[int]) -> float:
    return sum(length / 4.2 + 1 for length in lengths)


def test_a_passage_closes_before_the_sum_of_characters_over_4_2_plus_one_passes_300() -> None:
    assert cut_lengths([415, 415, 415, 415]) == [(0, 3), (3, 4)]
    assert cut_lengths([416, 416, 416, 416]) == [(0, 2), (2, 4)], "3 * (416 / 4.2 + 1) is 300.1"
    assert cut_lengths([10, 5000, 10]) == [(0, 1), (1, 2), (2, 3)], "a longer sentence stands alone"
    assert cut_lengths([]) == []


@given(lengths=LENGTHS)
def test_cuts_are_a_partition_into_greedy_passages(lengths: list[int]) -> None:
    cuts = cut_lengths(lengths)
    assert [place for first, last in cuts for place in range(first, last)] == list(range(len(lengths)))
    for first, last in cuts:
        assert last == first + 1 or cost(lengths[first:last]) <= 300 + 1e-9
        assert last == len(lengths) or cost(lengths[first : last + 1]) > 300 - 1e-9


@given(lengths=LENGTHS, gold=sets(integers(0, 59), max_size=8), seed=integers(0, 3))
def test_every_gold_sentence_is_shown_once_with_up_to_three_other_passages(
    lengths: list[int], gold: set[int], seed: int
) -> None:
    document = example(lengths, sorted(gold))
    shown = passages_of(document, seed=seed)
    with_gold = [passage for passage in shown if passage.gold.any()]
    assert sum(int(passage.gold.sum()) for passage in shown) == document.relevant.sum()
    cuts = cut_lengths(lengths)
    assert len(shown) - len(with_gold) == min(3, len(cuts) - len(with_gold))
    numbers = [passage.number for passage in shown]
    assert numbers == sorted(set(numbers))
    for passage in shown:
        first, last = cuts[passage.number]
        texts = [passage.text[start:end] for start, end in zip(passage.starts, passage.ends, strict=True)]
        assert texts == [document.context[document.starts[i] : document.ends[i]] for i in range(first, last)]
        assert passage.gold.tolist() == document.relevant[first:last].tolist()


def test_the_other_passages_depend_on_seed_and_question_and_on_nothing_else() -> None:
    document = example([1250] * 40, [7])
    shown = [passage.number for passage in passages_of(document)]
    assert shown == [passage.number for passage in passages_of(document, place=9)]
    others = {tuple(p.number for p in passages_of(example([1250] * 40, [7], name=name))) for name in "abcdefgh"}
    assert len(others) > 4
    assert all(7 in numbers for numbers in others)


@given(lengths=LENGTHS, gold=sets(integers(0, 59), max_size=8), limit=integers(1, 900))
def test_joined_passages_hold_the_same_sentences_in_the_same_order(
    lengths: list[int], gold: set[int], limit: int
) -> None:
    documents = [example(lengths, sorted(gold)), example(lengths[::-1], name="r")]
    passages = passages_of_set(documents)
    for texts in (joined(passages), joined(passages, limit=limit)):
        assert [size for text in texts for size in text.parts] == [passage.starts.size for passage in passages]
        assert sentences(texts) == sentences(passages)
        assert all(len({text.place}) == 1 for text in texts)
    whole = joined(passages)
    assert len(whole) == len({passage.place for passage in passages})
    with_limit = joined(passages, limit=limit)
    assert all(len(text.parts) == 1 or cost((text.ends - text.starts).tolist()) <= limit + 1e-9 for text in with_limit)


def sentences(passages: Sequence[Passage]) -> list[tuple[int, str, bool]]:
    return [
        (passage.place, passage.text[start:end], bool(gold))
        for passage in passages
        for start, end, gold in zip(passage.starts, passage.ends, passage.gold, strict=True)
    ]


def test_what_is_joined_already_is_refused() -> None:
    texts = joined(passages_of(example([1200, 1200], [0])))
    with pytest.raises(ConfigError, match="joined already"):
        joined(texts)


def test_an_outcome_lays_the_scores_flat(data: Path) -> None:
    documents = read_examples(data / "squad20_dev.parquet", split="test", limit=60)
    passages = passages_of_set(documents)
    found = outcome_of(passages, Lead().score(passages), documents)
    assert found.gold.sum() == sum(document.relevant.sum() for document in documents)
    assert found.characters.tolist() == [len(text) for text in found.texts]
    assert (np.diff(found.question) >= 0).all()
    assert set(found.question.tolist()) == set(range(60))
    assert found.holds_gold.sum() == sum(passage.gold.any() for passage in passages)
    assert found.scores.size == found.asked.size == len(passages)


def test_scores_that_do_not_fit_the_sentences_are_refused_by_question_and_passage() -> None:
    document = example([600, 600], [0], name="q7")
    passages = passages_of(document)
    for wrong in ([0.5], [0.5, float("nan")]):
        with pytest.raises(ConfigError, match="question q7, passage 0: 2 sentences"):
            outcome_of(passages, [PassageScores(wrong, 0.0)], [document])
    with pytest.raises(ConfigError, match="question q7, passage 0"):
        outcome_of(passages, [PassageScores([0.5, 0.5], float("inf"))], [document])
    with pytest.raises(ConfigError, match="1 passages, but scores of 0"):
        outcome_of(passages, [], [document])
