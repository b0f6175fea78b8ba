"""Every metric and every preset, from rows to the rows kept; and what each of them does with rows that are no good."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.errors import BudgetError, ConfigError, MetricError, RowIdError, SelectionError
from datapipe.metrics import coverage
from datapipe.metrics.base import METRICS, get_metric
from datapipe.report.facts import facts_from_json
from datapipe.selection.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from datapipe.runs import CurateResult

ROWS, KEPT, DIM = 160, 40, 24
COLUMNS: dict[str, Any] = {"text_column": "text", "embedding_column": "vector", "label_column": "label"}
TRAINED = [metric.name for metric in METRICS if "dynamics" in metric.needs]


def vectors_of(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Counts of trigrams, hashed: vectors that say something of the texts and cost no model."""
    counts = np.zeros((len(texts), DIM), np.float32)
    for row, text in enumerate(texts):
        for at in range(len(text) - 2):
            counts[row, zlib.crc32(text[at : at + 3].encode()) % DIM] += 1
    return counts


@pytest.fixture(scope="module")
def frame(data: Path) -> pl.DataFrame:
    rows = pl.read_parquet(data / "banking77.parquet").unique("text", maintain_order=True)
    some = rows.filter(pl.col("label") < 4).head(300).sample(ROWS, seed=1).select("text", label="label_name")
    return some.with_columns(vector=vectors_of(some["text"].to_list()))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders that all runs of a kind share, so that what one has scored the next one takes up."""
    return {name: tmp_path_factory.mktemp(name) for name in ("cut", "whole")}


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "DRAWS", 20_000)
    monkeypatch.setattr(coverage, "PLANES", 32)


@pytest.fixture
def scores(frame: pl.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "scores.parquet"
    pl.DataFrame({"text": frame["text"], "score": np.arange(ROWS) % 97 / 7}).write_parquet(path)
    return path


def imported(scores: Path) -> dict[str, Any]:
    return {"metric": "imported", "scores": str(scores), "scores_id": "text", "id_column": "text"}


def ids(result: CurateResult) -> list[bytes]:
    found: list[bytes] = result.kept.select("row_id").collect()["row_id"].to_list()
    return found


def twice(frame: pl.DataFrame, folders: dict[str, Path], **options: Any) -> CurateResult:
    """Run with many shards and one worker, and with one shard and two; both must keep the same rows."""
    cut = datapipe.curate(frame, out=folders["cut"], shard_rows=32, workers=1, **COLUMNS, **options)
    whole = datapipe.curate(frame, out=folders["whole"], shard_rows=4096, workers=2, **COLUMNS, **options)
    assert ids(cut) == ids(whole)
    assert cut.counts == whole.counts
    assert sum(whole.counts.values()) == frame.height
    return whole


@pytest.mark.parametrize("metric", [metric.name for metric in METRICS])
def test_every_metric_scores_all_rows_within_its_range_and_the_budget_is_met(
    metric: str, frame: pl.DataFrame, folders: dict[str, Path], scores: Path
) -> None:
    options = imported(scores) if metric == "imported" else {"metric": metric}
    result = twice(frame, folders, strategy="hard", keep=0.25, **options)
    assert result.counts == {"kept": KEPT, "over_budget": ROWS - KEPT}
    found = result.scores.collect()[metric].to_numpy()
    declared = get_metric(metric)
    assert np.isfinite(found).all()
    assert declared.low <= found.min() <= found.max() <= declared.high
    assert len(np.unique(found)) > 3


@pytest.mark.parametrize("preset", [preset.name for preset in PRESETS])
def test_every_preset_meets_the_budget_and_says_its_source(
    preset: str, frame: pl.DataFrame, folders: dict[str, Path]
) -> None:
    result = twice(frame, folders, preset=preset, keep=0.25)
    assert result.counts["kept"] == KEPT
    assert f"The preset {preset} was asked for." in result.reasons[0]
    assert result.manifest["config"]["metric"] == next(p.metric for p in PRESETS if p.name == preset)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["sorscher_hard", "default_label_free", "default_labels", "zcore"])
def test_presets_choose_alike_for_any_cut_on_the_embedded_models_vectors(
    preset: str, data: Path, tmp_path: Path
) -> None:
    rows = pl.read_parquet(data / "banking77.parquet").head(600).select("text", label="label_name")
    kept = []
    for shard_rows, workers in ((64, 1), (4096, 2)):
        options: dict[str, Any] = {"shard_rows": shard_rows, "workers": workers, "label_column": "label"}
        kept.append(ids(datapipe.curate(rows, out=tmp_path / str(shard_rows), preset=preset, keep=0.2, **options)))
    assert kept[0] == kept[1]
    assert len(kept[0]) == 120


@pytest.mark.parametrize(
    "preset", ["random_balanced", "drop_quotas", "ccs", "dual", "elfs", "supervised_prototypes", "bws"]
)
def test_a_frame_scored_and_chosen_from_by_a_preset_keeps_the_rows_of_the_run(
    preset: str, frame: pl.DataFrame, folders: dict[str, Path]
) -> None:
    run = datapipe.curate(frame, out=folders["cut"], shard_rows=32, workers=1, preset=preset, keep=0.25, **COLUMNS)
    scored = datapipe.score(frame.lazy(), preset=preset, **COLUMNS)
    chosen = datapipe.select(scored, preset=preset, label_column="label", keep=0.25).collect()
    assert set(chosen.filter("kept")["text"]) == set(run.kept.collect()["text"])
    assert chosen["text"].to_list() == frame["text"].to_list()


def test_a_preset_of_a_frame_asks_for_its_own_scores_and_its_groups(frame: pl.DataFrame) -> None:
    scored = frame.with_columns(score_aum=pl.lit(0.5))
    with pytest.raises(ConfigError, match="contradict each other: the preset scores by aum"):
        datapipe.select(scored, preset="ccs", metric="el2n")
    with pytest.raises(datapipe.errors.ColumnError, match="no column 'score_dual' to select by"):
        datapipe.select(scored, preset="dual")
    with pytest.raises(SelectionError, match="preset random_balanced needs labels of at least two values"):
        datapipe.select(frame.with_columns(score_random=pl.lit(0.5)), preset="random_balanced")


DIRECTIONS = [(None, "harder"), ("harder", "harder"), ("easier", "harder"), ("rarer", "rarer"), ("better", "better")]


@pytest.mark.parametrize(("told", "meant"), DIRECTIONS)
def test_what_imported_scores_mean_reaches_the_rules_and_the_page(
    told: Any, meant: str, frame: pl.DataFrame, scores: Path, tmp_path: Path
) -> None:
    options = {**imported(scores), "scores_higher": told, "strategy": "hard", "keep": 0.9}
    run = datapipe.curate(frame, out=tmp_path / "run", **COLUMNS, **options)
    warned = "imported does not measure difficulty" in " ".join(run.warnings)
    assert warned == (meant != "harder")
    page = next((tmp_path / "run" / "stages").glob("report-*/facts.json"))
    shown = facts_from_json(page.read_bytes()).scores
    assert shown is not None
    assert shown.higher == meant
    assert f"a higher one means {meant}" in run.report.read_text()


def test_imported_scores_of_a_frame_are_turned_and_chosen_from(frame: pl.DataFrame, scores: Path) -> None:
    values = pl.read_parquet(scores)["score"].cast(pl.Float32)
    scored = datapipe.score(frame, scores_higher="easier", **imported(scores), **COLUMNS)
    assert scored["score_imported"].to_list() == (-values).to_list()
    chosen = datapipe.select(scored, metric="imported", scores_higher="harder", strategy="hard", keep_rows=3)
    assert sorted(chosen.filter("kept")["score_imported"], reverse=True) == pytest.approx([0, 0, -1 / 7])


def test_rows_without_a_score_are_told_apart_on_the_page(frame: pl.DataFrame, tmp_path: Path) -> None:
    part = frame.with_columns(label=pl.when(pl.int_range(ROWS) % 4 > 0).then("label"))
    datapipe.curate(part, out=tmp_path, metric="prototypes_supervised", **COLUMNS)
    shown = facts_from_json(next((tmp_path / "stages").glob("report-*/facts.json")).read_bytes()).scores
    assert shown is not None
    assert shown.missing == ROWS / 4
    assert sum(shown.kept) + sum(shown.dropped) == ROWS - ROWS / 4
    assert "40 rows have no score" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("metric", ["prototypes", "typicality", "coverage", "pseudo_label_aum", "aum", "memorization"])
def test_vectors_that_are_no_directions_are_refused_with_a_reason(
    metric: Any, frame: pl.DataFrame, folders: dict[str, Path]
) -> None:
    vectors = frame["vector"].to_numpy().copy()
    vectors[3], vectors[5], vectors[7] = np.nan, 0, np.inf
    bad = frame.with_columns(vector=vectors)
    counts = datapipe.curate(bad, out=folders["whole"], metric=metric, strategy="hard", keep_rows=10, **COLUMNS).counts
    assert counts == {"kept": 10, "over_budget": 147, "rejected_not_finite": 2, "rejected_zero_vector": 1}


@pytest.mark.parametrize("metric", ["el2n", "aum", "memorization"])
def test_one_class_only_is_refused_where_heads_would_learn_it(metric: Any, frame: pl.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="at least two classes, the 160 labelled rows have 1: take a metric that"):
        datapipe.curate(frame.with_columns(label=pl.lit("only")), out=tmp_path, metric=metric, **COLUMNS)


def test_one_class_only_is_one_prototype_and_no_strata(frame: pl.DataFrame, tmp_path: Path) -> None:
    one = frame.with_columns(label=pl.lit("only"))
    run = datapipe.curate(one, out=tmp_path, metric="prototypes_supervised", strategy="hard", keep=0.25, **COLUMNS)
    assert run.counts == {"kept": KEPT, "over_budget": ROWS - KEPT}
    assert run.selection.collect()["stratum"].n_unique() == 1
    for preset in ("random_balanced", "supervised_prototypes"):
        with pytest.raises(SelectionError, match=f"preset {preset} needs labels of at least two values"):
            datapipe.curate(one, out=tmp_path, preset=preset, **COLUMNS)


@pytest.mark.parametrize("preset", ["random_balanced", "supervised_prototypes", "default_labels", "drop_quotas"])
def test_a_class_of_one_row_is_a_class(preset: str, frame: pl.DataFrame, folders: dict[str, Path]) -> None:
    label = pl.when(pl.int_range(ROWS) == 4).then(pl.lit("alone")).otherwise("label")
    run = datapipe.curate(frame.with_columns(label=label), out=folders["whole"], preset=preset, keep=0.5, **COLUMNS)
    assert run.counts["kept"] == ROWS / 2
    alone = next(each for each in run.manifest["selection"]["strata"] if each["name"] == "alone")
    assert alone["rows"] == 1
    if preset == "random_balanced":
        assert alone["kept"] == 1


CONSTANT = [m.name for m in METRICS if "vectors" in m.needs and m.name not in {*TRAINED, "pseudo_label_aum"}]


@pytest.mark.parametrize("metric", CONSTANT)
def test_equal_vectors_score_alike_and_the_hash_order_decides(
    metric: Any, frame: pl.DataFrame, folders: dict[str, Path]
) -> None:
    same = frame.with_columns(vector=np.tile(frame["vector"].to_numpy()[:1], (ROWS, 1)))
    assert twice(same, folders, metric=metric, strategy="hard", keep=0.25).counts["kept"] == KEPT


def test_equal_vectors_have_no_clusters_to_learn(frame: pl.DataFrame, tmp_path: Path) -> None:
    same = frame.with_columns(vector=np.tile(frame["vector"].to_numpy()[:1], (ROWS, 1)))
    with pytest.raises(MetricError, match="the vectors of 160 rows make up one cluster"):
        datapipe.curate(same, out=tmp_path, metric="pseudo_label_aum", **COLUMNS)


@pytest.mark.parametrize("preset", [preset.name for preset in PRESETS])
def test_constant_scores_leave_every_preset_its_exact_budget(preset: str, frame: pl.DataFrame) -> None:
    names = [*(metric.name for metric in METRICS), "mean_probability"]
    scored = frame.with_columns(pl.lit(0.25).alias(f"score_{name}") for name in names)
    for keep in (0.05, 0.9):
        chosen = datapipe.select(scored, preset=preset, label_column="label", keep=keep)
        assert chosen["kept"].sum() == ROWS * keep


@pytest.mark.parametrize("metric", ["prototypes", "pseudo_label_aum"])
def test_more_clusters_than_rows_are_as_many_as_the_rows_bear(
    metric: Any, frame: pl.DataFrame, folders: dict[str, Path]
) -> None:
    result = twice(frame.head(20), folders, metric=metric, prototypes=1000, strategy="hard", keep=0.5)
    assert result.counts == {"kept": 10, "over_budget": 10}


@pytest.mark.parametrize("metric", ["prototypes_supervised", "el2n", "forgetting", "memorization"])
def test_rows_without_a_label_have_no_score_where_the_label_is_what_is_scored(
    metric: Any, frame: pl.DataFrame, folders: dict[str, Path]
) -> None:
    part = frame.with_columns(label=pl.when(pl.int_range(ROWS) % 4 > 0).then("label"))
    counts = twice(part, folders, metric=metric, strategy="hard", keep=0.25).counts
    assert counts == {"kept": 30, "over_budget": 90, "unscored": 40}


def test_rows_without_a_label_are_a_group_of_their_own_elsewhere(frame: pl.DataFrame, tmp_path: Path) -> None:
    part = frame.with_columns(label=pl.when(pl.int_range(ROWS) % 4 > 0).then("label"))
    run = datapipe.curate(part, out=tmp_path, preset="random_stratified", keep=0.25, **COLUMNS)
    strata = {each["name"]: each for each in run.manifest["selection"]["strata"]}
    assert (strata["(none)"]["rows"], strata["(none)"]["kept"]) == (40, 10)


def test_ids_that_collide_are_refused_for_any_metric(frame: pl.DataFrame, tmp_path: Path) -> None:
    named = frame.with_columns(name=pl.int_range(ROWS) % (ROWS - 1))
    with pytest.raises(RowIdError, match=r"id column 'name' is not unique: 0 stands in .* row 1 and .* row 160"):
        datapipe.curate(named, out=tmp_path, metric="knn_density", id_column="name", **COLUMNS)


def test_a_budget_of_rows_that_dedup_does_not_leave_is_refused_and_a_fraction_counts_what_is_left(
    frame: pl.DataFrame, tmp_path: Path
) -> None:
    repeated = pl.concat([frame.head(30)] * 4).with_columns(at=pl.int_range(120))
    run = datapipe.curate(repeated, out=tmp_path, metric="knn_density", dedup="exact", keep=0.5, **COLUMNS)
    assert run.counts == {"kept": 15, "over_budget": 15, "duplicate": 90}
    with pytest.raises(BudgetError, match=r"31 .* 30"):
        datapipe.curate(repeated, out=tmp_path, metric="knn_density", dedup="exact", keep_rows=31, **COLUMNS)


def test_where_no_row_of_the_run_has_a_score_there_is_nothing_to_choose(frame: pl.DataFrame, tmp_path: Path) -> None:
    empty = pl.DataFrame({"text": frame["text"], "score": pl.Series([None] * ROWS, dtype=pl.Float64)})
    empty.write_parquet(tmp_path / "scores.parquet")
    with pytest.raises(SelectionError, match="none of 160 rows has a score by imported"):
        datapipe.curate(frame, out=tmp_path / "run", **imported(tmp_path / "scores.parquet"), **COLUMNS)
    scored = frame.with_columns(score_prototypes=pl.lit(None, pl.Float32))
    with pytest.raises(SelectionError, match="none of 160 rows has a score in 'score_prototypes'"):
        datapipe.select(scored)
