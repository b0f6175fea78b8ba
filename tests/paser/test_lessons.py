"""Rows to learn from: what is read, what is learnt, and how rows lie side by side without seeing each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapipe.errors import ConfigError, ItemError
from datapipe.paser.lesson_batches import packed, steps_of
from datapipe.paser.lessons import Lessons, lessons_of
from datapipe.workers.folder import ModelFolder
from datapipe.workers.tasks.causal import PlainTokenizer
from tests.workers.tiny import text_folder

if TYPE_CHECKING:
    from pathlib import Path

lengths_of_rows = st.lists(st.integers(2, 40), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    root: Path = tmp_path_factory.mktemp("model")
    text_folder(root, "llama", mapping="MODEL_FOR_CAUSAL_LM_MAPPING")
    return ModelFolder("llama", root)


def some(lengths: list[int], seed: int = 0) -> Lessons:
    draws = np.random.default_rng(seed)
    sizes = np.array(lengths, np.int64)
    prompts = np.array([int(draws.integers(1, size)) for size in lengths], np.int64)
    return Lessons(draws.integers(5, 99, sizes.sum()).astype(np.int32), sizes, prompts)


def test_a_row_is_its_prompt_its_answer_and_the_token_that_ends_it(folder: ModelFolder) -> None:
    found = lessons_of(["Name a tool.", "And another?"], ["A saw.", "A plane."], folder=folder, max_length=30)
    tokenizer = PlainTokenizer(folder)
    answer = tokenizer.plain(["A plane."], first=0)[0].tolist()
    row = found.row(1).tolist()
    assert row[int(found.prompts[1]) :][: len(answer)] == answer
    assert tokenizer.text(found.row(1)[: int(found.prompts[1])]) == "and another?"
    assert found.answers.sum() + found.prompts.sum() == len(found.ids)
    open_ended = lessons_of(["Name a tool."], ["A saw."], folder=folder, max_length=30, ended=False)
    assert len(open_ended.ids) == found.lengths[0] - (len(found.row(1)) - found.prompts[1] - len(answer))


def test_what_is_over_long_loses_the_beginning_of_its_prompt_and_then_the_end_of_its_answer(
    folder: ModelFolder,
) -> None:
    prompt, answer = "one two three four five six", "seven eight nine"
    whole = lessons_of([prompt], [answer], folder=folder, max_length=40)
    cut = lessons_of([prompt], [answer], folder=folder, max_length=len(whole.ids) - 2)
    assert (whole.truncated, cut.truncated) == (0, 1)
    assert cut.answers.tolist() == whole.answers.tolist()
    shortest = lessons_of([prompt], [answer], folder=folder, max_length=3)
    assert shortest.lengths.tolist() == [3]
    assert shortest.prompts[0] >= 1


def test_rows_without_anything_to_learn_are_refused_by_number(folder: ModelFolder) -> None:
    with pytest.raises(ItemError, match="row 1 has no tokens"):
        lessons_of(["a", "b"], ["c", ""], folder=folder, max_length=9)
    with pytest.raises(ConfigError, match="2 prompts and 1 answers"):
        lessons_of(["a", "b"], ["c"], folder=folder, max_length=9)
    with pytest.raises(ConfigError, match="max_length must be 2 or more"):
        lessons_of(["a"], ["c"], folder=folder, max_length=1)


@given(lengths=lengths_of_rows, tokens=st.integers(1, 3000), seed=st.integers(0, 9))
@settings(deadline=None)
def test_every_set_is_read_for_the_same_steps_and_tokens(lengths: list[int], tokens: int, seed: int) -> None:
    sizes = np.array(lengths, np.int64)
    plan = steps_of(sizes, tokens=tokens, batch_tokens=50, seed=seed)
    assert len(plan) == max(1, tokens // 50)
    read = np.cumsum([sizes[rows].sum() for rows in plan])
    marks = np.arange(1, len(plan) + 1) * tokens // len(plan)
    assert ((read >= marks) & (read < marks + sizes.max())).all()
    assert all(len(rows) for rows in plan)
    seen = np.bincount(np.concatenate(plan), minlength=len(sizes))
    assert seen.max() - seen.min() <= 1


def test_another_seed_is_another_order_and_the_same_seed_the_same() -> None:
    sizes = np.full(40, 5, np.int64)
    one, again, other = (np.concatenate(steps_of(sizes, tokens=200, batch_tokens=20, seed=s)) for s in (1, 1, 2))
    assert one.tolist() == again.tolist() != other.tolist()


def test_a_row_longer_than_a_batch_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="row 1 has 9 tokens, more than the 8 of a batch"):
        steps_of(np.array([2, 9]), tokens=10, batch_tokens=8, seed=0)
    with pytest.raises(ConfigError, match="no rows to learn from"):
        steps_of(np.array([], np.int64), tokens=10, batch_tokens=8, seed=0)


@given(lengths=lengths_of_rows, width=st.integers(1, 64))
@settings(deadline=None)
def test_packed_rows_are_whole_and_their_answers_are_asked_for_once(lengths: list[int], width: int) -> None:
    lessons = some(lengths)
    rows = np.arange(len(lengths))[::-1].copy()
    found = packed(lessons, rows, width=width)
    assert (found.segments >= 0).sum() == sum(lengths)
    seen = []
    for ids, places, segments in zip(found.ids, found.places, found.segments, strict=True):
        for number in range(segments.max() + 1):
            own = np.flatnonzero(segments == number)
            assert places[own].tolist() == list(range(len(own)))
            assert np.diff(own).tolist() == [1] * (len(own) - 1)
            seen.append(tuple(ids[own].tolist()))
    assert sorted(seen) == sorted(tuple(lessons.row(number).tolist()) for number in rows)
    assert len(found.targets) == lessons.answers.sum()
    halves = [found.bins(0, 1), found.bins(1, len(found.ids))]
    assert np.concatenate([half.targets for half in halves]).tolist() == found.targets.tolist()
    assert (halves[0].ids.ravel()[halves[0].asked + 1] == halves[0].targets).all()


def test_chosen_rows_are_taken_in_their_order_and_as_often_as_named() -> None:
    lessons = some([3, 7, 2])
    found = lessons.take(np.array([2, 0, 2]))
    assert found.row(0).tolist() == found.row(2).tolist() == lessons.row(2).tolist()
    assert found.row(1).tolist() == lessons.row(0).tolist()
    assert found.prompts.tolist() == lessons.prompts[[2, 0, 2]].tolist()
