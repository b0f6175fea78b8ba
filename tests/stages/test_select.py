"""Rows without a score leave the pool with a reason, whatever else takes rows out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.errors import BudgetError, SelectionError, StageError
from datapipe.metrics import random as metric

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.storage.arrays import Float32, Ids

ROWS = 300
FRAME = pl.DataFrame(
    {"text": [f"text number {at}" for at in range(ROWS)], "kind": [f"k{at % 3}" for at in range(ROWS)]}
)


def without_scores(monkeypatch: pytest.MonkeyPatch, *, share: int) -> None:
    """Every `share`-th row of a shard gets no score."""
    whole = metric.random_scores

    def holed(ids: Ids, *, seed: int) -> Float32:
        scores = whole(ids, seed=seed).copy()
        scores[::share] = np.nan
        return scores

    monkeypatch.setattr(metric, "random_scores", holed)


@pytest.mark.parametrize("strategy", ["hard", "strata", "random", "auto"])
def test_rows_without_a_score_are_not_kept_and_the_budget_counts_the_others(
    strategy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_scores(monkeypatch, share=4)
    run = datapipe.curate(
        FRAME, out=tmp_path, metric="random", strategy=strategy, keep=0.2, workers=1, label_column="kind"
    )
    assert run.counts["unscored"] == ROWS / 4
    assert sum(run.counts.values()) == ROWS
    assert run.counts["kept"] == 45


def test_a_row_that_screening_takes_out_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_scores(monkeypatch, share=2)
    double = pl.concat([FRAME.head(50), FRAME])
    run = datapipe.curate(double, out=tmp_path, metric="random", keep=0.2, workers=1, dedup="exact")
    assert run.counts["duplicate"] == 50
    assert sum(run.counts.values()) == ROWS + 50


def test_where_no_row_has_a_score_the_run_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_scores(monkeypatch, share=1)
    with pytest.raises((SelectionError, StageError), match="none of 300 rows has a score by random"):
        datapipe.curate(FRAME, out=tmp_path, metric="random", keep=0.2, workers=1)


def test_a_preset_decides_the_run_and_is_told(tmp_path: Path) -> None:
    run = datapipe.curate(FRAME, out=tmp_path, preset="random_balanced", keep=0.1, label_column="kind")
    facts = next(stage["facts"] for stage in run.manifest["stages"] if stage["name"] == "select")
    assert {stratum["name"]: stratum["kept"] for stratum in facts["strata"]} == {"k0": 10, "k1": 10, "k2": 10}
    assert "The preset random_balanced was asked for." in facts["reasons"][0]


def test_hard_prototypes_by_preset_are_those_of_the_strategy(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
    frame = FRAME.with_columns(vector=vectors)
    options: dict[str, Any] = {"embedding_column": "vector", "label_column": "kind", "keep": 0.4}
    preset = datapipe.curate(frame, out=tmp_path / "preset", preset="sorscher_hard", **options)
    strategy = datapipe.curate(frame, out=tmp_path / "strategy", strategy="hard", **options)
    ids = [run.kept.select("row_id").collect()["row_id"].to_list() for run in (preset, strategy)]
    assert ids[0] == ids[1]
    assert "loses to random" in " ".join(preset.warnings)


def test_a_preset_without_the_groups_it_needs_is_refused(tmp_path: Path) -> None:
    with pytest.raises((SelectionError, StageError), match="preset random_balanced needs labels"):
        datapipe.curate(FRAME, out=tmp_path, preset="random_balanced", keep=0.1)


def test_a_fraction_that_screening_leaves_less_than_half_a_row_keeps_one_and_says_so(tmp_path: Path) -> None:
    repeats = pl.DataFrame({"text": ["one text", "One text!", "one  TEXT", "another"] * 10})
    run = datapipe.curate(repeats, out=tmp_path, metric="random", keep=0.2, dedup="exact")
    assert run.counts == {"kept": 1, "over_budget": 1, "duplicate": 38}
    assert "0.2 of 2 rows to choose from are less than half a row; one is kept." in run.warnings


def test_tokens_that_no_row_fits_into_are_refused(tmp_path: Path) -> None:
    texts = pl.DataFrame({"text": [f"a text of quite some words, number {i}" for i in range(20)]})
    with pytest.raises((BudgetError, StageError), match="budget of 2 tokens keeps none of 20 rows"):
        datapipe.curate(texts, out=tmp_path, metric="random", keep_tokens=2)
