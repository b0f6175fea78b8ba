"""The advisor's choice follows the evidence, says so, and obeys what was asked with a warning where it should."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers, none, one_of, sampled_from

from datapipe.errors import SelectionError
from datapipe.metrics.base import METRICS, get_metric
from datapipe.selection.auto import STRATEGIES, balance, choose
from datapipe.selection.evidence import Evidence, published
from datapipe.selection.plan import Plan

if TYPE_CHECKING:
    from datapipe.metrics.base import Metric
    from datapipe.selection.auto import Strategy

KEEP_HARD = Plan(order="hard", strata="group", quota="fill")
KEEP_EASY = Plan(order="easy", strata="group", quota="fill")
BALANCED = Plan(order="random", strata="group")


def settings(**changes: Any) -> dict[str, Any]:
    """An unlabelled million rows scored against a thousand prototypes."""
    return {"rows": 10**6, "classes": None, "k": 1000, "metric": get_metric("prototypes"), **changes}


@pytest.mark.parametrize(
    ("fraction", "changes", "plan", "group_by", "evidence"),
    [
        (0.9, {}, KEEP_HARD, "cluster", "a group has 1000 rows, at least 500"),
        (0.8, {"classes": 10}, KEEP_HARD, "label", "imagenet, 80% kept: matches the full set"),
        (
            0.79,
            {},
            BALANCED,
            "cluster",
            "Random rows of the same number are better than the rows that prototypes scores",
        ),
        (0.5, {"classes": 10}, BALANCED, "label", "60.8 against 70.3"),
        (0.3, {}, BALANCED, "cluster", "provably fails"),
        (0.1, {"classes": 10}, BALANCED, "label", "provably fails"),
        (0.9, {"rows": 10_003, "classes": 77}, BALANCED, "label", "130 rows a group, fewer than 500"),
        (0.9, {"classes": 10, "has_teacher": True}, BALANCED, "label", "With a teacher, random pruning"),
        (0.1, {"has_teacher": True}, BALANCED, "cluster", "With a teacher, random pruning"),
        (0.9, {"metric": get_metric("random"), "k": None}, Plan(order="random"), None, "does not measure difficulty"),
        (0.9, {"metric": get_metric("aum")}, BALANCED, "cluster", "what is known of other metrics says nothing"),
        (0.9, {"classes": 1, "k": 4}, KEEP_HARD, "cluster", "250000 rows"),
        (1.0, {}, Plan(order="random"), None, "Everything is kept"),
    ],
)
def test_auto_follows_the_evidence(
    fraction: float, changes: dict[str, Any], plan: Plan, group_by: str | None, evidence: str
) -> None:
    choice = choose("auto", fraction=fraction, **settings(**changes))
    assert choice.plan == plan
    assert choice.group_by == group_by
    assert evidence in " ".join(choice.reasons)
    assert not choice.warnings


@given(
    fraction=floats(0, 0.3),
    rows=integers(1, 10**9),
    classes=one_of(none(), integers(1, 1000)),
    k=one_of(none(), integers(1, 50_000)),
    metric=sampled_from(METRICS),
    has_teacher=sampled_from([False, True]),
)
def test_auto_never_means_a_pure_score_cut_at_30_percent_kept_or_less(fraction: float, **known: Any) -> None:
    assert choose("auto", fraction=fraction, **known).plan.order == "random"


def test_hard_is_obeyed_and_warned_about_where_random_is_better() -> None:
    choice = choose("hard", fraction=0.5, **settings(classes=10))
    assert choice.plan == KEEP_HARD
    assert len(choice.warnings) == 1
    assert "60.8 against 70.3" in choice.warnings[0]
    assert "class balance of 50 %" in " ".join(choice.reasons)


@pytest.mark.parametrize("strategy", ["auto", "hard"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("metric", [each for each in METRICS if each.name != "prototypes"], ids=lambda each: each.name)
def test_the_losses_of_prototypes_are_not_told_of_another_metric(
    metric: Metric, fraction: float, strategy: Strategy
) -> None:
    choice = choose(strategy, fraction=fraction, **settings(metric=metric))
    told = " ".join((*choice.reasons, *choice.warnings))
    assert "sorscher" not in told.lower()
    assert all(row.told() not in told for row in published() if row.method == "sorscher_hard")


def known(method: str, fraction: float, gain: float) -> Evidence:
    return Evidence(
        source="ours",
        kind="measured",
        dataset="letters",
        modality="text",
        rows=9000,
        classes=9,
        setting="head",
        fraction=fraction,
        method=method,
        accuracy=80.0 + gain,
        half_width=1.0,
        random=80.0,
    )


def test_each_metric_is_judged_by_the_rows_on_its_own_hardest_rows() -> None:
    table = [known("el2n", 0.3, -9), known("el2n", 0.5, -3), known("el2n", 0.7, 2), known("sorscher_hard", 0.9, -5)]
    asked = settings(metric=get_metric("el2n"), table=table)
    assert choose("auto", fraction=0.7, **asked).plan == KEEP_HARD
    assert "letters, 70% kept: 82.0 against 80.0" in choose("auto", fraction=0.8, **asked).reasons[0]
    assert not choose("hard", fraction=0.7, **asked).warnings
    for fraction in (0.5, 0.6):
        assert choose("auto", fraction=fraction, **asked).plan == BALANCED
        assert "letters, 50% kept: 77.0 against 80.0" in choose("auto", fraction=fraction, **asked).reasons[0]
        assert "than the rows that el2n scores highest" in choose("hard", fraction=fraction, **asked).warnings[0]
    assert choose("auto", fraction=0.8, **(asked | {"metric": get_metric("prototypes")})).plan == BALANCED


def test_a_cut_that_ties_with_random_is_not_chosen_and_not_warned_about() -> None:
    asked = settings(metric=get_metric("el2n"), table=[known("el2n", 0.7, 0.5)])
    choice = choose("auto", fraction=0.7, **asked)
    assert choice.plan == BALANCED
    assert "has the rows that el2n scores highest above random rows at 70% kept or less" in choice.reasons[0]
    assert not choose("hard", fraction=0.7, **asked).warnings


def test_hard_without_labels_is_the_pure_cut_that_was_asked_for() -> None:
    choice = choose("hard", fraction=0.3, **settings())
    assert choice.plan == Plan(order="hard")
    assert choice.group_by is None
    assert "provably fails" in choice.warnings[0]


def test_hard_with_light_pruning_of_plenty_of_rows_has_no_warning() -> None:
    assert not choose("hard", fraction=0.8, **settings(classes=10)).warnings


def test_hard_is_warned_about_where_data_are_scarce_and_easy_where_they_are_not() -> None:
    scarce, plenty = settings(rows=1000, classes=10), settings(classes=10)
    assert "easiest rows are the better ones" in " ".join(choose("hard", fraction=0.9, **scarce).warnings)
    assert choose("easy", fraction=0.9, **scarce).plan == KEEP_EASY
    (measured,) = choose("easy", fraction=0.9, **scarce).warnings
    assert "banking77, 90% kept: 91.578 against 92.792" in measured, "what was measured outweighs the rule"
    assert "they are not scarce" in " ".join(choose("easy", fraction=0.9, **plenty).warnings)


def test_a_score_cut_is_warned_about_beside_a_teacher_and_by_a_metric_that_is_no_difficulty() -> None:
    choice = choose("hard", fraction=0.9, **settings(classes=10, metric=get_metric("random"), has_teacher=True))
    assert "With a teacher" in choice.warnings[0]
    assert "random does not measure difficulty; hard means its highest scores" in choice.warnings[1]
    assert len(choice.warnings) == 2


@pytest.mark.parametrize("classes", [10, None])
def test_random_is_the_plain_hash_order_that_was_asked_for(classes: int | None) -> None:
    choice = choose("random", fraction=0.5, **settings(classes=classes))
    assert (choice.plan, choice.group_by) == (Plan(order="random"), None)
    assert "smaller budgets lie inside larger ones" in choice.reasons[0]


def test_a_balance_gives_every_group_a_floor_and_keeps_the_order() -> None:
    for strategy, plan in (("hard", KEEP_HARD), ("easy", KEEP_EASY), ("random", replace(KEEP_HARD, order="random"))):
        choice = choose(strategy, fraction=0.9, **settings())  # type: ignore[arg-type]
        assert balance(choice).plan == plan
        assert balance(choice).reasons[:-1] == choice.reasons
        assert "half of an equal share first" in balance(choice).reasons[-1]


def test_a_balance_and_strata_of_scores_exclude_each_other() -> None:
    with pytest.raises(SelectionError, match="balance column and the strategy strata exclude each other"):
        balance(choose("strata", fraction=0.5, **settings()))


@pytest.mark.parametrize(("fraction", "trim"), [(0.1, 0.3), (0.2, 0.2), (0.3, 0.1), (0.5, 0.0)])
def test_strata_are_ccs_with_its_trims(fraction: float, trim: float) -> None:
    choice = choose("strata", fraction=fraction, **settings())
    assert choice.plan == Plan(order="random", trim_hard=trim, strata="score_width", quota="equal")
    assert f"hardest {trim:.0%} are left out" in choice.reasons[0]
    assert choice.group_by is None
    assert not choice.warnings


@given(strategy=sampled_from(STRATEGIES), fraction=floats(0, 1), classes=one_of(none(), integers(1, 1000)))
def test_every_choice_has_reasons_and_says_what_its_groups_are(
    strategy: Strategy, fraction: float, classes: int | None
) -> None:
    choice = choose(strategy, fraction=fraction, **settings(classes=classes))
    assert choice.reasons
    assert all(sentence.endswith(".") for sentence in (*choice.reasons, *choice.warnings))
    assert (choice.plan.strata == "group") == (choice.group_by is not None)
    assert choice.plan.trim_hard + fraction <= 1 or not choice.plan.trim_hard


def test_an_unknown_strategy_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        SelectionError, match="no strategy 'best'; the strategies are: auto, hard, easy, random, strata"
    ):
        choose("best", fraction=0.5, **settings())  # type: ignore[arg-type]
