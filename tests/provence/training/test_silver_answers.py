"""What replies of language models mean, by table and by property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provence.training.silver_answers import Passage, cited, judge, prompt_of

TEXT = "Aspirin thins the blood. It was first made in 1897. Bayer sold it."
SPANS = ((0, 24), (25, 51), (52, 66))
TITLED = Passage("When was aspirin made?", "Aspirin", TEXT, SPANS)
PLAIN = Passage("When was aspirin made?", "", TEXT, SPANS)


def test_a_prompt_numbers_the_title_first_and_then_every_sentence() -> None:
    assert prompt_of(TITLED).endswith(
        "turn.\n[0] Aspirin\n[1] Aspirin thins the blood.\n[2] It was first made in 1897.\n[3] Bayer sold it.\n"
        "Question: When was aspirin made?"
    )
    assert "[0] Aspirin thins the blood." in prompt_of(PLAIN)


def test_line_breaks_in_a_sentence_cannot_forge_a_numbered_line() -> None:
    passage = Passage("q", "", "One\n[7] two.", ((0, 12),))
    assert "\n[7]" not in prompt_of(passage)


@pytest.mark.parametrize(
    ("reply", "numbers"),
    [
        ("It was made in 1897 [2].", {2}),
        ("In 1897 [2], and sold by Bayer [3].", {2, 3}),
        ("In 1897 [2][3].", {2, 3}),
        ("In 1897 [2, 3].", {2, 3}),
        ("In 1897 [2 and 3]", {2, 3}),
        ("All of it [1-3].", {1, 2, 3}),
        ("All of it [1\u20133].", {1, 2, 3}),
        ("Odd [3-1].", {1, 3}),
        ("Odd [1-999999].", {1, 999999}),
        ("See [sentence 2].", {2}),
        ("[[2]]", {2}),
        ("[2", None),
        ("In 1897.", None),
        ("", None),
        ("[]", None),
        ("[\u0662]", None),
        ("No answer", set()),
        ("no answer.", set()),
        ('  "No answer"', set()),
        ("**No answer**", set()),
        ("No answer is given in [2].", set()),
        ("The sentences hold no answer.", set()),
        ("There is no answer to why, but in 1897 [2].", {2}),
        ("No answers are needed [2]", {2}),
        ("<think>maybe [1]</think>In 1897 [2].", {2}),
        ("<think>maybe [1]</think>No answer", set()),
        ("a number [" + "9" * 5000 + "]", {1_000_000}),
    ],
)
def test_a_reply_cites(reply: str, numbers: set[int] | None) -> None:
    assert cited(reply) == numbers


@pytest.mark.parametrize(
    ("reply", "passage", "reason", "relevant"),
    [
        ("In 1897 [2].", TITLED, "", (0, 1, 0)),
        ("In 1897 [1].", PLAIN, "", (0, 1, 0)),
        ("In 1897 [0][2].", TITLED, "", (0, 1, 0)),
        ("It thins [0].", PLAIN, "", (1, 0, 0)),
        ("It thins [0].", TITLED, "only_title", ()),
        ("It thins [0][9].", TITLED, "", (0, 0, 0)),
        ("In 1897 [2][9].", TITLED, "", (0, 1, 0)),
        ("In 1897 [9].", TITLED, "out_of_range", ()),
        ("In 1897 [3].", PLAIN, "out_of_range", ()),
        ("In 1897.", TITLED, "uncited", ()),
        ("No answer", TITLED, "", (0, 0, 0)),
    ],
)
def test_a_reply_labels_or_is_refused(reply: str, passage: Passage, reason: str, relevant: tuple[int, ...]) -> None:
    verdict = judge(reply, passage)
    assert (verdict.reason, verdict.relevant) == (reason, relevant)


def test_numbers_that_no_line_has_are_counted() -> None:
    verdict = judge("In 1897 [2][8][9].", TITLED)
    assert (verdict.citations, verdict.out_of_range) == (3, 2)


def test_a_reply_that_was_cut_off_is_refused_unless_it_is_no_answer() -> None:
    assert judge("In 1897 [2] and then", TITLED, finished=False).reason == "cut_off"
    assert judge("No answer, because", TITLED, finished=False).relevant == (0, 0, 0)


def test_a_reply_that_gives_the_numbered_lines_back_is_refused() -> None:
    lines = "[0] Aspirin\n[1] Aspirin thins the blood.\n[2] It was first made in 1897."
    assert judge(lines, TITLED).reason == "copied"
    assert judge(lines, TITLED, finished=False).reason == "copied"
    assert judge("[2] It was first made in 1897.", TITLED).relevant == (0, 1, 0)


@given(reply=st.text(alphabet=st.sampled_from("[]0123456789 -,no answer\u2013x"), max_size=80), titled=st.booleans())
def test_any_reply_gives_one_label_a_sentence_or_a_reason(reply: str, titled: bool) -> None:  # noqa: FBT001
    passage = TITLED if titled else PLAIN
    verdict = judge(reply, passage)
    assert (len(verdict.relevant) == len(SPANS)) != bool(verdict.reason)
    assert set(verdict.relevant) <= {0, 1}
    assert verdict.out_of_range <= verdict.citations


@given(numbers=st.frozensets(st.integers(0, 2), min_size=1), joined=st.sampled_from([", ", "][", " and ", ";"]))
def test_what_is_cited_is_what_is_kept(numbers: frozenset[int], joined: str) -> None:
    reply = "So it is [" + joined.join(str(number) for number in sorted(numbers)) + "]."
    assert judge(reply, PLAIN).relevant == tuple(int(place in numbers) for place in range(3))


@pytest.mark.parametrize("part", ["[", "[1", "[1-", "no answer ", "<think>", "9", "[]", "[1]"])
def test_a_megabyte_of_anything_is_read_in_one_go(part: str) -> None:
    cited(part * (1_000_000 // len(part)))
