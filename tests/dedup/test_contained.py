"""Containment is checked against a plain search for runs of words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.dedup.contained import COMMON_TEXTS, gram_index, protect_contained
from datapipe.errors import ConfigError

QUESTION = "Why was my card payment declined at the supermarket today?"  # ten words
REVIEW = (
    "The values that have held the crew together through previous adventures and perils do so again: courage, "
    "self-sacrifice and patience under pressure."
)

sentences = st.lists(st.sampled_from("abc"), max_size=40).map(" ".join)


def runs_of(words: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def plain_share(row: str, evaluation: str) -> float:
    words = evaluation.split()
    size = min(len(words), 13)
    wanted = runs_of(words, size) if size >= 8 else set()
    return len(wanted & runs_of(row.split(), size)) / len(wanted) if wanted else 0.0


def test_an_evaluation_text_inside_a_prompt_is_found() -> None:
    index = gram_index(["Something else that nobody ever asked in all these years?", REVIEW, QUESTION])
    rows = [
        f"Classify the sentiment.\n\nReview: {REVIEW.upper()}\nSentiment: positive",
        "Intent of: why was my card payment declined, at the supermarket, today -> card",
        "Why was my card payment declined today?",
    ]
    found, best, share = protect_contained(rows, index)
    assert found.tolist() == [True, True, False]
    assert best.tolist() == [1, 2, -1]
    assert share.tolist() == [1, 1, 0]


def test_one_changed_word_breaks_the_runs_that_hold_it() -> None:
    words = [f"w{place}" for place in range(40)]
    row = " ".join([*words[:20], "other", *words[21:]])
    found, _, share = protect_contained([row], gram_index([" ".join(words)]))
    assert share[0] == pytest.approx(15 / 28)
    assert found[0]
    assert not protect_contained([row], gram_index([" ".join(words)]), share=0.6)[0][0]


def test_short_evaluation_texts_are_left_to_the_other_rules() -> None:
    index = gram_index(["How do I change my PIN now?", "", "?!"])
    assert index.totals.tolist() == [0, 0, 0]
    assert protect_contained(["How do I change my PIN now? Thanks!", ""], index)[1].tolist() == [-1, -1]


def test_boilerplate_of_the_evaluation_set_proves_nothing() -> None:
    preface = "Answer the following question as truthfully as you can and give one short reason for it:"
    asked = [f"{preface} question number {place} about topic {place}" for place in range(COMMON_TEXTS + 1)]
    own = protect_contained([f"{preface} what is the boiling point of water at sea level"], gram_index(asked))
    assert own[2].tolist() == [0]
    quoted = protect_contained([asked[3]], gram_index(asked))
    assert (quoted[0].tolist(), quoted[1].tolist(), quoted[2].tolist()) == ([True], [3], [1])


def test_characters_of_chinese_count_as_words() -> None:
    text = "\u6211\u7684\u94f6\u884c\u5361\u4ec0\u4e48\u65f6\u5019\u5230"
    found, best, _ = protect_contained([f"\u8bf7\u95ee\uff1a{text}\uff1f\u8c22\u8c22"], gram_index([text]))
    assert (found.tolist(), best.tolist()) == ([True], [0])


@given(rows=st.lists(sentences, max_size=6), evaluation=st.lists(sentences, max_size=6))
def test_shares_are_those_of_a_plain_search(rows: list[str], evaluation: list[str]) -> None:
    found, best, share = protect_contained(rows, gram_index(evaluation), share=0.4)
    for place, row in enumerate(rows):
        shares = [plain_share(row, text) for text in evaluation]
        most = max(shares, default=0)
        assert share[place] == pytest.approx(most)
        assert best[place] == (shares.index(most) if most else -1)
        assert found[place] == (np.float32(most) >= np.float32(0.4))


def test_many_rows_give_what_each_gives_alone() -> None:
    rows = [f"{REVIEW} {place}" if place % 7 == 0 else f"nothing of that kind {place}" for place in range(5000)]
    found, best, share = protect_contained(rows, gram_index([QUESTION, REVIEW]))
    assert found.tolist() == [place % 7 == 0 for place in range(5000)]
    assert set(best[found].tolist()) == {1}
    assert set(share[~found].tolist()) == {0}


def test_no_rows_and_no_evaluation_texts_give_no_match() -> None:
    assert [part.tolist() for part in protect_contained([], gram_index([QUESTION]))] == [[], [], []]
    assert [part.tolist() for part in protect_contained([QUESTION], gram_index([]))] == [[False], [-1], [0]]


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="share is a part of a text's runs of words"):
        protect_contained([], gram_index([]), share=share)
