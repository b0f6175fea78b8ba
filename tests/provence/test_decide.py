"""Decisions from scores alone: thresholds, one budget over all texts, obligations, pins and repair."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import ConfigError
from provence.calibration import calibrate
from provence.decide import decide, ranked
from provence.policy import PINS, Policy, pin_of
from provence.repair import CHEAP_TOKENS, leans_back
from provence.task import PruneScores
from provence.units.unit import UNIT_KINDS


def scores_of(
    probabilities: list[float],
    *,
    lengths: list[int] | None = None,
    kinds: list[Any] | None = None,
    parents: list[int] | None = None,
    shares: list[float] | None = None,
    threshold: float = 0.5,
    score: float = 0.0,
) -> PruneScores:
    """Scores of a text whose units are ten characters long, with a space between them."""
    n = len(probabilities)
    starts = np.arange(n, dtype=np.int32) * 11
    return PruneScores(
        starts=starts,
        ends=starts + 10,
        kinds=kinds or ["sentence"] * n,
        parents=np.array(parents or [-1] * n, np.int32),
        lengths=np.array(lengths or [5] * n, np.int32),
        probabilities=np.array(probabilities, np.float32),
        shares=None if shares is None else np.array(shares, np.float32),
        score=score,
        tokens=0,
        truncated=False,
        rule="mean" if shares is None else "share",
        threshold=threshold,
    )


def reasons(*scores: PruneScores, text: str = "", **options: Any) -> list[tuple[str, ...]]:
    texts = [text or " " * 11 * len(each.starts) for each in scores]
    return [decision.reasons for decision in decide(texts, scores, Policy(**options))]


def test_left_alone_a_model_decides_by_its_own_threshold_and_rule() -> None:
    assert reasons(scores_of([0.4, 0.6, 0.5])) == [("", "threshold", "")]
    assert reasons(scores_of([0.9, 0.1], shares=[0.2, 0.8])) == [("", "threshold")]
    assert reasons(scores_of([0.9, 0.1], shares=[0.2, 0.8]), rule="mean") == [("threshold", "")]
    assert reasons(scores_of([0.4, 0.6]), threshold=0.3) == [("threshold", "threshold")]
    assert reasons(scores_of([0.0, 1.0]), threshold=0) == [("", "threshold")]


def test_probabilities_are_compared_with_thresholds_as_float32() -> None:
    assert reasons(scores_of([0.1, np.nextafter(np.float32(0.1), 1)]), threshold=0.1) == [("", "threshold")]


def test_a_recall_takes_its_threshold_from_a_calibration() -> None:
    gold = [[p] for p in np.linspace(0.1, 0.9, 99)]
    calibration = calibrate(gold, model="m", digest="a" * 64, domain="d")
    share_model = scores_of([0.15, 0.2, 0.5], shares=[0.9, 0.9, 0.0])
    (decision,) = decide([""], [share_model], Policy(target_recall=0.9), calibration=calibration)
    assert decision.reasons == ("", "recall", "recall")
    assert decision.kept == (False, True, True)
    with pytest.raises(ConfigError, match="target_recall needs a calibration of this model"):
        decide([""], [share_model], Policy(target_recall=0.9))


def test_a_budget_goes_to_the_most_probable_units_of_all_texts_that_fit() -> None:
    one = scores_of([0.9, 0.2, 0.7], lengths=[10, 3, 10])
    two = scores_of([0.8, 0.6], lengths=[30, 10])
    assert reasons(one, two, budget_tokens=33) == [("budget", "budget", "budget"), ("", "budget")]
    assert reasons(one, two, budget_tokens=40) == [("budget", "", ""), ("budget", "")]
    assert reasons(one, two, budget_tokens=2) == [("", "", ""), ("", "")]


def test_ties_in_a_budget_go_by_place_and_units_of_no_probability_are_never_bought() -> None:
    assert reasons(scores_of([0.5] * 3), scores_of([0.5] * 3), budget_tokens=20) == [
        ("budget",) * 3,
        ("budget", "", ""),
    ]
    assert reasons(scores_of([0.0, 0.1]), budget_tokens=100) == [("", "budget")]


@given(
    units=st.lists(st.tuples(st.floats(0.001, 1), st.integers(1, 20)), min_size=1, max_size=9),
    cut=st.integers(0, 9),
    budget=st.integers(1, 80),
)
def test_a_budget_is_kept_and_falls_short_of_the_best_choice_by_less_than_one_unit(
    units: list[tuple[float, int]], cut: int, budget: int
) -> None:
    parts = [units[:cut], units[cut:]]
    texts = [scores_of([p for p, _ in part], lengths=[n for _, n in part]) for part in parts]
    kept = np.array([bool(reason) for found in reasons(*texts, budget_tokens=budget) for reason in found])
    p, n = (np.array(values, np.float64) for values in zip(*units, strict=True))
    assert (n * kept).sum() <= budget
    best = max(
        sum(p * n * chosen) for chosen in map(np.array, product([0, 1], repeat=len(units))) if n @ chosen <= budget
    )
    passed_over = p[~kept] * n[~kept]
    assert (p * n * kept).sum() > best - passed_over.max(initial=0) - 1e-6 or kept.all()
    order = np.argsort(-p.astype(np.float32), kind="stable")
    left = budget
    for unit in order:
        assert kept[unit] == (n[unit] <= left)
        left -= n[unit] * kept[unit]


def test_the_least_number_and_the_first_are_kept_whatever_the_aim_says() -> None:
    scores = scores_of([0.1, 0.3, 0.2])
    assert reasons(scores, min_keep=2) == [("", "min_keep", "min_keep")]
    assert reasons(scores, threshold=0.25, min_keep=1) == [("", "threshold", "")]
    assert reasons(scores, always_keep_first=True) == [("first", "", "")]
    assert reasons(scores, always_keep_first=True, min_keep=1) == [("first", "", "")]
    assert reasons(scores, min_keep=9) == [("min_keep",) * 3]
    assert reasons(scores_of([]), min_keep=1, always_keep_first=True) == [()]
    assert reasons(scores, scores, budget_tokens=10, always_keep_first=True) == [("first", "", "")] * 2
    assert reasons(scores, scores, budget_tokens=12, min_keep=1) == [("", "min_keep", "")] * 2


def test_pins_bring_what_a_kept_unit_stands_under() -> None:
    scores = scores_of(
        [0.1, 0.1, 0.1, 0.9, 0.1],
        kinds=["heading", "heading", "sentence", "item", "table_header"],
        parents=[-1, 0, 1, 2, 1],
    )
    assert reasons(scores) == [("", "", "", "threshold", "")]
    assert reasons(scores, pin=["headings"]) == [("pinned", "pinned", "", "threshold", "")]
    assert reasons(scores, pin=["lead_ins"]) == [("", "", "pinned", "threshold", "")]
    assert reasons(scores, pin=["title"]) == [("pinned", "", "", "threshold", "")]
    assert reasons(scores, pin="title", threshold=0.95) == [("",) * 5]
    assert reasons(scores, pin=PINS) == [("pinned", "pinned", "pinned", "threshold", "")]


def test_a_budget_counts_what_units_bring() -> None:
    scores = scores_of(
        [0.1, 0.9, 0.2], lengths=[10, 10, 5], kinds=["heading", "sentence", "sentence"], parents=[-1, 0, -1]
    )
    assert reasons(scores, pin=["headings"], budget_tokens=20) == [("pinned", "budget", "")]
    assert reasons(scores, pin=["headings"], budget_tokens=19) == [("budget", "", "budget")]
    assert reasons(scores, budget_tokens=19) == [("", "budget", "budget")]


@given(
    probabilities=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20),
    budget=st.integers(1, 60),
    seed=st.integers(0, 99),
    flags=st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)),
)
def test_kept_tokens_never_exceed_the_budget_whatever_is_pinned_repaired_or_obliged(
    probabilities: list[float], budget: int, seed: int, flags: tuple[bool, bool, int]
) -> None:
    rng = np.random.default_rng(seed)
    n = len(probabilities)
    parents = [int(rng.integers(-1, place)) if place else -1 for place in range(n)]
    lengths = rng.integers(0, 20, n).tolist()
    scores = scores_of(probabilities, lengths=lengths, kinds=rng.choice(UNIT_KINDS, n).tolist(), parents=parents)
    repair, first, least = flags
    options: dict[str, Any] = {"repair": repair, "always_keep_first": first, "min_keep": least, "pin": PINS}
    (found,) = reasons(scores, text="It rained. " * n, budget_tokens=budget, **options)
    assert sum(length for length, reason in zip(lengths, found, strict=True) if reason) <= budget
    for unit, reason in enumerate(found):
        above = parents[unit]
        if reason and above >= 0 and pin_of(scores.kinds[above]):
            assert found[above]


def test_repair_brings_the_sentence_that_a_pronoun_leans_on_if_it_is_short() -> None:
    text = "Ada wrote. She slept. It rained. Dogs bark."
    starts, ends = [0, 11, 22, 33], [10, 21, 32, 43]
    scores = scores_of([0.1, 0.1, 0.9, 0.1])
    assert [text[a:b] for a, b in zip(starts, ends, strict=True)] == text.replace(". ", ".|").split("|")
    assert scores.starts.tolist() == starts
    assert reasons(scores, text=text, repair=True) == [("repair", "repair", "threshold", "")]
    assert reasons(scores, text=text) == [("", "", "threshold", "")]
    dear = scores_of([0.1, 0.1, 0.9, 0.1], lengths=[5, CHEAP_TOKENS + 1, 5, 5])
    assert reasons(dear, text=text, repair=True) == [("", "", "threshold", "")]
    headed = scores_of([0.1, 0.1, 0.9, 0.1], kinds=["sentence", "heading", "sentence", "sentence"])
    assert reasons(headed, text=text, repair=True) == [("", "", "threshold", "")]
    assert reasons(scores_of([0.1, 0.1, 0.1, 0.9]), text=text, repair=True) == [("", "", "", "threshold")]


@pytest.mark.parametrize(
    ("sentence", "leans"),
    [
        ("This was new.", True),
        ("“However, it failed.", True),
        ("Diese Regel gilt.", True),
        ("Cependant, il pleut.", True),
        ("Además llovió.", True),
        ("但是他来了。", True),
        ("しかし、雨が降った。", True),
        ("Thisbe loved Pyramus.", False),
        ("Paris is a city.", False),
        ("!!!", False),
        ("", False),
    ],
)
def test_openers_that_point_back_are_known_in_a_few_languages(sentence: str, leans: bool) -> None:  # noqa: FBT001
    assert leans_back(sentence) is leans


def test_the_best_texts_come_first_and_ties_keep_their_order() -> None:
    scores = [scores_of([0.5], score=score) for score in (1.0, 3.0, 2.0, 3.0)]
    assert ranked(scores, None) == [0, 1, 2, 3]
    assert ranked(scores, 3) == [1, 3, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.1, "budget_tokens": 9}, "threshold and budget_tokens exclude each other"),
        ({"threshold": 0.1, "target_recall": 0.9}, "threshold and target_recall exclude each other"),
        ({"threshold": 1.1}, "'threshold' option of pruning must lie between 0 and 1. Got 1.1"),
        ({"threshold": "0.5"}, "'threshold' option of pruning must be a number. Got '0.5'"),
        ({"threshold": float("nan")}, "must lie between 0 and 1. Got nan"),
        ({"target_recall": 1.0}, "'target_recall' option of pruning must lie between 0 and 1"),
        ({"budget_tokens": 0}, "'budget_tokens' option of pruning must be a whole number of at least 1. Got 0"),
        ({"budget_tokens": 2.5}, "must be a whole number of at least 1. Got 2.5"),
        ({"min_keep": -1}, "'min_keep' option of pruning must be a whole number of at least 0"),
        ({"top_n": 0}, "'top_n' option of pruning must be a whole number of at least 1"),
        ({"rule": "median"}, "'rule' option of pruning must be one of own, mean. Got 'median'"),
        ({"empty": "leave"}, "must be one of empty, drop, keep"),
        ({"pin": ["footers"]}, "'pin' option of pruning must hold nothing but headings, .* Got 'footers'"),
        ({"budget_tokens": 9, "empty": "keep"}, "keeps whole texts, which budget_tokens does not allow"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Policy(**options)


def test_an_option_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="there is no option 'treshold'; there are threshold, target_recall"):
        Policy.of({"treshold": 0.1})
    assert Policy.of({"pin": ["title", "headings", "title"]}).pin == ("headings", "title")


def test_numbers_of_numpy_are_numbers() -> None:
    policy = Policy.of({"threshold": np.float32(0.5), "top_n": np.int64(2)})
    assert (policy.threshold, policy.top_n) == (0.5, 2)
