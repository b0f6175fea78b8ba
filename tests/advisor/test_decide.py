"""Advice never goes against the evidence, says what it rests on, and prints a command that the options accept."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis.strategies import booleans, floats, integers, none, one_of, sampled_from

from datapipe.advisor.decide import Advice, available, decide
from datapipe.advisor.look import Facts
from datapipe.config import CurateConfig
from datapipe.errors import BudgetError
from datapipe.selection.evidence import Evidence, nearest, published

RANDOM = {"random", "random_stratified"}


def facts(**changes: Any) -> Facts:
    """CIFAR-10 with labels."""
    known = {"labelled": 50_000, "classes": 10, "smallest_class": 5000, "largest_class": 5000}
    return Facts(**{"rows": 50_000, "modality": "images", **known, **changes})


def unlabelled(**changes: Any) -> Facts:
    return facts(labelled=None, classes=None, smallest_class=None, largest_class=None, **changes)


@pytest.mark.parametrize("row", published(), ids=lambda row: f"{row.dataset}-{row.fraction}-{row.method}")
def test_the_choice_at_every_row_of_the_evidence_is_not_below_random_by_more_than_the_interval(row: Evidence) -> None:
    for labels, teacher in product([True, False], [True, False]):
        classes = row.classes if labels else None
        known = facts(rows=row.rows, modality=row.modality, labelled=row.rows if labels else None, classes=classes)
        advice = decide(known, keep=row.fraction, has_teacher=teacher)
        if advice.preset in RANDOM:
            continue
        here = [each for each in published() if (each.dataset, each.fraction) == (row.dataset, row.fraction)]
        same = [each for each in here if each.method == advice.preset]
        assert same or all(each.gain is None for each in here), f"{advice.preset} is advised without a row of its own"
        assert not any(each.loses for each in same)
        assert advice.preset in available(known)


def test_our_own_measurement_of_a_method_replaces_published_rows_of_it_on_that_data_set() -> None:
    figures = [row for row in published() if row.kind != "measured"]
    assert decide(unlabelled(), keep=0.1, table=figures).preset == "elfs"
    (gain,) = [row for row in figures if (row.dataset, row.fraction, row.method) == ("cifar10", 0.1, "elfs")]
    ours = replace(gain, kind="measured", accuracy=79.2, half_width=0.5)
    assert decide(unlabelled(), keep=0.1, table=[*figures, ours]).preset == "random"


def test_without_labels_no_set_of_as_many_rows_speaks_for_the_others() -> None:
    near = {row.dataset for row in nearest(published(), modality="images", size=50_000, classes=None, fraction=0.3)}
    assert near == {"cifar10", "cifar100"}
    assert decide(unlabelled(), keep=0.3).preset == "random"


@pytest.mark.parametrize("method", ["elfs", "ccs"])
def test_a_method_is_not_advised_where_it_has_no_row_beside_those_of_others(method: str) -> None:
    table = [row for row in published() if row.method != method or row.fraction == 0.1]
    for fraction in (0.15, 0.3, 0.7, 0.9):
        assert decide(facts(rows=1_281_167, classes=1000), keep=fraction, table=table).preset != method


@given(
    rows=integers(1, 10**10),
    modality=sampled_from(["images", "text", "other"]),
    classes=one_of(none(), integers(1, 10_000)),
    keep=one_of(none(), floats(0.001, 1)),
    teacher=booleans(),
    repeats=sampled_from([0.0, 0.2]),
)
def test_advice_has_reasons_and_a_command_that_the_options_accept(
    *, rows: int, modality: Any, classes: int | None, keep: float | None, teacher: bool, repeats: float
) -> None:
    known = unlabelled(rows=rows, modality=modality, repeats=repeats)
    if classes is not None:
        known = facts(rows=rows, modality=modality, classes=classes, labelled=rows, smallest_class=1, repeats=repeats)
    advice = decide(known, keep=keep, has_teacher=teacher, options={"source": "my rows.parquet"})
    assert advice.why
    assert all(sentence.endswith((".", ")")) for sentence in (*advice.why, *advice.warnings))
    words = shlex.split(advice.command)
    assert words[:5] == ["datapipe", "curate", "my rows.parquet", "--out", "OUT"]
    options = {name.removeprefix("--"): value for name, value in zip(words[5::2], words[6::2], strict=True)}
    options["keep"] = float(options["keep"])  # type: ignore[assignment]
    assert CurateConfig.from_mapping(options).preset == advice.preset
    assert ("dedup" in options) == (repeats > 0)


@pytest.mark.parametrize(
    ("known", "keep", "preset", "reason"),
    [
        (facts(), 0.1, "default_labels", "cifar10, 10% kept: 84.384 against 80.868"),
        (facts(), 0.3, "default_labels", "cifar10, 30% kept: 89.296 against 87.198"),
        (unlabelled(), 0.1, "random", "sorscher_hard on cifar10, 10% kept: 74.01 against 80.868"),
        (unlabelled(), 0.05, "random", "el2n on cifar10, 5% kept: 20.478 against 73.55"),
        (facts(rows=1_281_167, classes=1000), 0.1, "ccs", "imagenet, 10% kept: 57.3 against 52.3"),
        (unlabelled(rows=1_281_167), 0.2, "elfs", "imagenet, 20% kept: 63.4 against 62.5"),
        (unlabelled(rows=1_281_167), 0.3, "random", "sorscher_hard on imagenet, 30% kept: 54.6 against 66.7"),
        (facts(), 1.0, "random", "Everything is kept"),
    ],
)
def test_the_nearest_setting_decides(known: Facts, keep: float, preset: str, reason: str) -> None:
    advice = decide(known, keep=keep)
    assert advice.preset == preset
    assert reason in " ".join(advice.why)


def test_with_a_teacher_random_rows_are_advised_within_classes() -> None:
    advice = decide(facts(), keep=0.1, has_teacher=True)
    assert advice.preset == "random_stratified"
    assert "comparable or superior to every score" in advice.why[0]
    assert not advice.evidence


def test_without_a_budget_the_advice_says_how_far_to_go_and_what_it_cost() -> None:
    advice = decide(facts(), keep=None)
    assert advice.keep == 0.5
    assert "50% cost nothing there" in advice.why[0]
    assert decide(facts(rows=5000), keep=None).keep in {0.5, 0.7}


def test_evidence_of_our_own_outweighs_nothing_but_takes_part() -> None:
    own = Evidence(
        source="own benchmark",
        kind="measured",
        dataset="reviews",
        modality="text",
        rows=10_000,
        classes=5,
        setting="MiniLM",
        fraction=0.1,
        method="default_labels",
        accuracy=80.0,
        half_width=0.5,
        random=70.0,
    )
    known = facts(rows=9000, modality="text", classes=5)
    assert decide(known, keep=0.1, table=(*published(), own)).preset == "default_labels"
    worse = Evidence(**{**{name: getattr(own, name) for name in own.__dataclass_fields__}, "accuracy": 60.0})
    assert decide(known, keep=0.1, table=(*published(), worse)).preset == "random_stratified"


def warned(advice: Advice) -> str:
    return " ".join(advice.warnings)


def test_warnings_say_what_the_evidence_does_not_cover() -> None:
    images = tuple(row for row in published() if row.modality == "images" and row.kind == "figure")
    assert "about images, not other" in warned(decide(facts(modality="other"), keep=0.1, table=images))
    assert "keeps as little as 5%" in warned(decide(unlabelled(rows=1_281_167), keep=0.05))
    assert "another size" in warned(decide(facts(rows=100), keep=0.1))
    assert "100 of 50,000 rows have no label" in warned(decide(facts(labelled=49_900), keep=0.1))
    assert "50 rows for 10 classes are fewer than 10 a class" in warned(decide(facts(), keep=0.001))
    assert "smallest class has 3 rows" in warned(decide(facts(smallest_class=3), keep=0.1))
    assert "1 value, which is as good as none" in warned(decide(facts(classes=1), keep=0.1))
    assert "2.0% of 1,000 sampled rows" in warned(decide(facts(near_repeats=0.02, sampled=1000), keep=0.1))
    assert "1.5 effective dimensions only" in warned(decide(facts(dimensions=1.5), keep=0.1))
    assert "Larger models need less" in warned(decide(facts(), keep=0.1, parameters=7 * 10**9))
    assert "No image was embedded" in warned(decide(facts(), keep=0.1))
    assert not decide(facts(sampled=1000), keep=0.1).warnings


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.1, float("nan")])
def test_a_fraction_that_is_none_is_refused(keep: float) -> None:
    with pytest.raises(BudgetError, match="keep must be a fraction above 0 and at most 1"):
        decide(facts(), keep=keep)
