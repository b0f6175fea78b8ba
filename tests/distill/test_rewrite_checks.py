"""Which of a model's answers may stand for the human ones: each reason by an example, then what holds for all texts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists, sampled_from, text

from datapipe.distill.rewrite_checks import BANNED, REASONS, Limits, check, final_answer
from datapipe.distill.rewrite_prompt import prompt

PROSE = "Prune roses in late winter, when the buds begin to swell, and cut above a bud that looks outwards."
OTHER = (
    "Late in winter, as soon as buds swell, is the time to cut a rose back to a bud that points away from its middle."
)
SUM = "She sold 48 clips in April and 24 in May, so 48 + 24 = 72 clips.\n#### 72"
CODE = "def double(x):\n    return 2 * x"


def judged(candidate: str, reference: str = PROSE, **options: Any) -> str | None:
    return check(candidate, reference=reference, instruction="When does one prune roses?", **options)


def test_an_answer_in_other_words_is_taken() -> None:
    assert judged(OTHER) is None


@pytest.mark.parametrize(
    ("candidate", "reference", "reason"),
    [
        ("", PROSE, "empty"),
        (" -- ... ", PROSE, "empty"),
        (PROSE.replace(" ", "\n"), PROSE, "unchanged"),
        (f"In my own words: {OTHER}", PROSE, "banned_phrase"),
        (f"The Reference Answer says: {OTHER}", PROSE, "banned_phrase"),
        ("Winter.", PROSE * 3, "too_short"),
        (" ".join(f"{OTHER} {n}" for n in range(20)), PROSE, "too_long"),
        ("cut the rose above the bud " * 10, PROSE, "repeats"),
        ("April and May together make 70 clips.", SUM, "final_answer"),
        ("48 and 24 are 72, and then there are 3 more.", SUM, "final_answer"),
        ("The capital is Lyon.", "Paris", "final_answer"),
        ("It has 12 legs.", "8", "final_answer"),
        ("The parisian one.", "Paris", "final_answer"),
        ("The peaks are Everest, Lhotse and Makalu.", "Everest 8849 m, Lhotse 8516 m, Makalu 8485 m.", "numbers"),
        ("Multiply by two.", f"```python\n{CODE}\n```", "code"),
        ('{"a": 1', '{"a": 1, "names": ["first", "second", "third", "fourth"]}', "code"),
        ("Розы обрезают в конце зимы, когда почки начинают набухать.", PROSE, "language"),
        ("I am here for whatever you would like to ask, so go on and tell me about it.", PROSE, "unrelated"),
        ("冬の終わりにバラを剪定し、外を向いた芽の上で切ります。", PROSE, "language"),
    ],
)
def test_each_reason_has_its_answer(candidate: str, reference: str, reason: str) -> None:
    assert judged(candidate, reference) == reason


def test_an_answer_that_the_model_did_not_end_is_not_taken() -> None:
    assert judged(OTHER, ended=False) == "unfinished"


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        ("In April 48, in May half of it, 24. The answer is 72.", SUM),
        ("48 + 24 = 72", SUM),
        ("All in all it comes to \\boxed{72.0}, of which 24 in May.", SUM),
        ("It costs $1,250.00.", "The sum of all of these is 1250.\n#### 1250"),
        ("The capital of France is Paris, on the Seine.", "Paris"),
        ("A spider walks on 8 legs.", "8"),
        ("Makalu has 8485 m, Everest 8,849.", "Everest 8849 m, Lhotse 8516 m, Makalu 8485 m are peaks."),
        ("Three of four: 6/8.", "What is left is 0.75 of it all in the end.\n#### 0.75"),
        (f"Like this:\n```python\n{CODE.replace('x', 'n')}\n```", f"```python\n{CODE}\n```"),
        (f"{CODE}\n", CODE.replace("double", "twice")),
        ('Here it is:\n```json\n{"names": ["first"], "a": 1}\n```', '{"a": 1, "names": ["first", "second", "third"]}'),
        ("The answer is in the winter months, before the buds open, above a bud.", PROSE),
        ("Ja.", "Nein, das glaube ich nicht, denn im Winter ruhen die Rosen, und man schneidet sie."),
    ],
)
def test_an_answer_that_comes_to_the_same_is_taken(candidate: str, reference: str) -> None:
    assert judged(candidate, reference) is None


def test_a_phrase_that_the_human_texts_hold_too_is_allowed() -> None:
    assert check(f"To rewrite: {OTHER}", reference=PROSE, instruction="What does rewrite mean?") is None
    assert judged(f"To rewrite: {OTHER}") == "banned_phrase"


def test_limits_of_the_length_can_be_set() -> None:
    wide = " ".join(f"{word}{n}" for n, word in enumerate(8 * OTHER.split()))
    assert judged(wide) == "too_long"
    assert judged(wide, limits=Limits(longest=100.0)) is None
    assert judged("Prune them in winter.", PROSE * 3, limits=Limits(shortest=0.0)) is None


@pytest.mark.parametrize(
    ("told", "result"),
    [
        (SUM, "72"),
        ("So we get \\boxed{3/4}", "3/4"),
        ("The answer is 5. No: the answer is 6.", "6"),
        ("The final answer is: yes, because it rains", "yes"),
        ("#### A heading\nand text", None),
        ("The answer is that one has to look at all of the roses in the garden before one knows", None),
        ("Nothing is marked here, 12", None),
    ],
)
def test_a_marked_result_is_found(told: str, result: str | None) -> None:
    assert final_answer(told) == result


@given(candidate=text(max_size=200), reference=text(max_size=200), instruction=text(max_size=50))
def test_any_texts_are_judged(candidate: str, reference: str, instruction: str) -> None:
    assert check(candidate, reference=reference, instruction=instruction) in {None, *REASONS}
    assert check(reference, reference=reference, instruction=instruction) in {"unchanged", "empty"}


@given(phrase=sampled_from(BANNED), place=integers(0, 5))
def test_a_banned_phrase_is_found_anywhere(phrase: str, place: int) -> None:
    words = OTHER.split()
    words.insert(place, phrase.upper())
    assert judged(" ".join(words)) == "banned_phrase"


@given(numbers=lists(integers(-999_999, 999_999), min_size=1, max_size=5))
def test_the_last_number_is_the_result_where_none_is_marked(numbers: list[int]) -> None:
    candidate = "We count " + " and then ".join(map(str, numbers))
    same = f"Somebody counts all of it, step after step.\n#### {numbers[-1]}"
    other = f"Somebody counts all of it, step after step.\n#### {numbers[-1] + 1}"
    assert judged(candidate, same) is None
    assert judged(candidate, other) == "final_answer"


def test_the_prompt_shows_the_answer_and_asks_for_the_result_where_one_is_marked() -> None:
    system, asked = prompt("How many clips?", "April: 48", SUM)
    assert "own words" in system
    for part in ("How many clips?", "April: 48", "48 + 24 = 72", 'end with: "The answer is 72."'):
        assert part in asked
    _, plain = prompt("When?", "", PROSE)
    assert "Question:\nWhen?\n\nAnswer:" in plain
    assert "end with" not in plain


def test_json_of_any_depth_does_not_break_the_check() -> None:
    deep = "[" * 100_000 + "a"
    wide = Limits(longest=1e6)
    assert judged(deep, json.dumps({"a": ["roses"] * 20}), limits=wide) == "code"
    assert judged("9" * 5000, "8", limits=wide) == "final_answer"
