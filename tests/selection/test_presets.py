"""A preset is a name for settings: it exists for metrics that exist, fits every budget, and is told in the docs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, none, one_of, sampled_from

from datapipe.config import CurateConfig
from datapipe.errors import ConfigError, SelectionError
from datapipe.metrics.base import METRICS
from datapipe.selection.auto import by_preset
from datapipe.selection.budget import Budget
from datapipe.selection.engine import select
from datapipe.selection.plan import Plan
from datapipe.selection.presets import PRESETS, Preset, get_preset, table
from datapipe.selection.result import ScoreBatch

DOCS = Path(__file__).parents[2] / "docs" / "presets.md"
ROWS = 400
IDS = np.column_stack([np.arange(ROWS, dtype=np.uint64), np.zeros(ROWS, np.uint64)])
RNG = np.random.default_rng(3)
SCORES = RNG.random(ROWS).astype(np.float32)
GROUPS = RNG.integers(0, 4, ROWS).astype(np.int32)
NAMES = ["a", "b", "c", "d"]


def kept_by(preset: Preset, budget: Budget, fraction: float, tokens: int = 1) -> set[int]:
    plan, _ = preset.settings(fraction, groups=("label", "cluster"))
    batch = ScoreBatch(ids=IDS, scores=SCORES, groups=GROUPS, tokens=np.full(ROWS, tokens, np.int32))
    weights = np.arange(1.0, 5.0) if plan.quota == "given" else None
    with (
        tempfile.TemporaryDirectory() as scratch,
        select(
            lambda: iter([batch]), plan, budget, seed=1, scratch=Path(scratch), groups=NAMES, weights=weights
        ) as selection,
    ):
        return set(np.flatnonzero(np.concatenate([part["kept"].to_numpy() for part in selection])).tolist())


def test_the_table_in_the_docs_is_the_one_of_the_code() -> None:
    assert DOCS.read_text() == table(), "write it again with python -m datapipe.selection.presets > docs/presets.md"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_scores_by_a_metric_that_exists_and_names_its_source(preset: Preset) -> None:
    assert preset.metric in {metric.name for metric in METRICS}
    assert preset.source
    assert preset.told.endswith(".")
    assert get_preset(preset.name) is preset


@settings(max_examples=60)
@given(preset=sampled_from(PRESETS), fraction=floats(0.01, 1.0))
def test_a_preset_keeps_exactly_what_the_budget_says_at_any_fraction(preset: Preset, fraction: float) -> None:
    assert len(kept_by(preset, Budget(fraction=fraction), fraction)) == Budget(fraction=fraction).rows_of(ROWS)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_keeps_no_more_tokens_than_the_budget_says(preset: Preset) -> None:
    kept = kept_by(preset, Budget(tokens=350), 350 / (ROWS * 7), tokens=7)
    assert 50 - len(NAMES) * 13 <= len(kept) <= 50
    assert kept


@pytest.mark.parametrize("name", ["random", "random_balanced", "zcore"])
@settings(max_examples=15)
@given(small=floats(0.02, 0.5), large=floats(0.5, 0.9))
def test_presets_whose_settings_do_not_move_with_the_budget_nest(name: str, small: float, large: float) -> None:
    preset = get_preset(name)
    assert kept_by(preset, Budget(fraction=small), small) <= kept_by(preset, Budget(fraction=large), large)


@given(preset=sampled_from(PRESETS), fraction=floats(0.01, 1), classes=one_of(none(), integers(1, 9)), k=integers(0, 9))
def test_a_choice_says_its_source_and_its_groups_or_that_they_are_missing(
    preset: Preset, fraction: float, classes: int | None, k: int
) -> None:
    if preset.needs_groups and (classes is None or classes < 2):
        with pytest.raises(SelectionError, match=f"preset {preset.name} needs labels"):
            by_preset(preset, fraction=fraction, classes=classes, k=k)
        return
    choice = by_preset(preset, fraction=fraction, classes=classes, k=k)
    assert preset.source in choice.reasons[0]
    assert (choice.plan.strata == "group") == (choice.group_by is not None)


def test_keep_hard_is_warned_about_where_figures_show_that_it_loses() -> None:
    warnings = by_preset(get_preset("sorscher_hard"), fraction=0.5, classes=10, k=None).warnings
    assert "imagenet, 50% kept: 60.8 against 70.3" in warnings[0]
    elfs = by_preset(get_preset("elfs"), fraction=0.1, classes=None, k=None).warnings
    assert "banking77, 10% kept: 77.998 against 83.018" in elfs[0]
    assert not by_preset(get_preset("ccs"), fraction=0.1, classes=10, k=None).warnings


def test_the_default_without_labels_keeps_random_rows_where_no_cut_beats_them() -> None:
    preset = get_preset("default_label_free")
    few = by_preset(preset, fraction=0.1, classes=None, k=None)
    assert few.plan == Plan(order="random")
    assert not few.warnings, "random rows do not lose to random rows"
    more = by_preset(preset, fraction=0.3, classes=None, k=None)
    assert more.plan == Plan(order="hard", trim_hard=0.3)
    assert "trec6, 30% kept: 77.88 against 79.712" in more.warnings[0]


def test_dual_draws_harder_rows_the_more_is_kept() -> None:
    preset = get_preset("dual")
    means = [SCORES[list(kept_by(preset, Budget(rows=40), f))].mean() for f in (0.01, 0.1, 0.5, 0.95)]
    assert means == sorted(means)
    assert means[0] < 0.2
    assert means[-1] > 0.6


def test_a_window_begins_where_it_is_told_and_must_fit() -> None:
    plan, _ = get_preset("bws").settings(0.3, groups=(), window_start=0.2)
    assert plan == Plan(order="hard", trim_hard=0.2)
    with pytest.raises(SelectionError, match=r"starts at 0.8 holds 0.2 of the rows, not 0.3"):
        get_preset("bws").settings(0.3, groups=(), window_start=0.8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "css"}, "no preset 'css'; did you mean 'ccs'"),
        ({"preset": "ccs", "metric": "el2n"}, "preset 'ccs' and metric 'el2n' contradict each other.*scores by aum"),
        ({"preset": "ccs", "metric": "prototypes"}, "preset 'ccs' and metric 'prototypes' contradict each other"),
        ({"preset": "ccs", "strategy": "hard"}, "preset 'ccs' and strategy 'hard' contradict each other"),
        ({"preset": "ccs", "balance": "kind"}, "preset 'ccs' and balance 'kind' contradict each other"),
        ({"preset": "ccs", "window_start": 0.1}, "window_start belongs to the preset bws"),
        ({"window_start": 0.1}, "window_start belongs to the preset bws"),
        ({"preset": "bws", "window_start": 1.0}, "window_start must be a fraction from 0 and below 1, got 1.0"),
        ({"preset": 3}, "preset must be a string, got 3"),
    ],
)
def test_options_that_contradict_a_preset_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CurateConfig.from_mapping(options)


def test_a_preset_sets_the_metric_of_the_run() -> None:
    assert CurateConfig.from_mapping({"preset": "elfs"}).metric == "pseudo_label_aum"
    assert CurateConfig.from_mapping({"preset": "elfs", "metric": "pseudo_label_aum"}).metric == "pseudo_label_aum"
    assert CurateConfig(preset="bws", window_start=0).window_start == 0
