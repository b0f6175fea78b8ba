"""Scores from files and from heads, as runs use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.errors import ConfigError, MetricError, RowIdError

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 300


def rows() -> pl.DataFrame:
    draws = np.random.default_rng(3)
    labels = np.arange(ROWS) % 3
    vectors = (np.eye(8)[labels] + draws.normal(0, 0.2, (ROWS, 8))).astype(np.float32)
    names = [f"n{i}" for i in range(ROWS)]
    marks = [f"class {label}" if i >= 5 else None for i, label in enumerate(labels)]
    return pl.DataFrame({"name": names, "vector": vectors, "label": marks})


OPTIONS: dict[str, Any] = {"embedding_column": "vector", "id_column": "name"}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "ndjson"])
def test_imported_scores_are_joined_by_id_and_turned(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"scores.{suffix.replace('nd', '')}{'l' if suffix == 'ndjson' else ''}"
    scores = pl.DataFrame({"key": [f"n{i}" for i in range(20, ROWS + 7)], "ease": np.arange(20, ROWS + 7) / 7})
    getattr(scores, f"write_{suffix}")(file)
    result = datapipe.curate(
        rows(),
        out=tmp_path / "run",
        metric="imported",
        scores=str(file),
        scores_id="key",
        scores_column="ease",
        scores_higher="easier",
        strategy="hard",
        keep_rows=10,
        **OPTIONS,
    )
    assert result.counts == {"kept": 10, "over_budget": 270, "unscored": 20}
    assert set(result.kept.collect()["name"]) == {f"n{i}" for i in range(20, 30)}
    facts = next(stage["facts"] for stage in result.manifest["stages"] if stage["name"] == "score")
    assert facts == {"rows": ROWS, "scored": 280, "unknown_ids": 7, "higher": "easier"}


def test_ids_that_collide_are_named_with_file_and_rows(tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    pl.DataFrame({"key": ["n1", "n2", "n1"], "score": [1.0, 2.0, 3.0]}).write_csv(file)
    with pytest.raises(RowIdError, match=r"the id 'n1' stands twice in column 'key' of .*scores.csv, in rows 1 and 3"):
        datapipe.curate(rows(), out=tmp_path / "a", metric="imported", scores=str(file), scores_id="key", **OPTIONS)
    pl.DataFrame({"key": ["x"], "score": [1.0]}).write_csv(file)
    with pytest.raises(MetricError, match="none of the 1 ids in column 'key'"):
        datapipe.curate(rows(), out=tmp_path / "b", metric="imported", scores=str(file), scores_id="key", **OPTIONS)


def test_options_that_do_not_fit_the_metric_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the metric imported reads a file of scores"):
        datapipe.curate(rows(), out=tmp_path, metric="imported")
    with pytest.raises(ConfigError, match="scores belongs to the metric imported; the metric is prototypes"):
        datapipe.curate(rows(), out=tmp_path, scores="x.csv")
    with pytest.raises(ConfigError, match="the metric grand is not made of them"):
        datapipe.curate(rows(), out=tmp_path, metric="grand", dynamics="x.parquet")


def test_a_second_metric_of_the_dynamics_trains_nothing(tmp_path: Path) -> None:
    for metric, reused in (("aum", False), ("el2n", True)):
        options: dict[str, Any] = {"metric": metric, "label_column": "label", "shard_rows": 64, **OPTIONS}
        result = datapipe.curate(rows(), out=tmp_path, **options)
        assert result.counts["unscored"] == 5
        assert {each.stage: each.reused for each in result.timings}["dynamics"] is reused


@pytest.mark.parametrize("metric", ["memorization", "pseudo_label_aum"])
def test_heads_give_the_same_scores_for_any_shards(tmp_path: Path, metric: Any) -> None:
    found = []
    for shard_rows in (64, 4096):
        out = tmp_path / str(shard_rows)
        options: dict[str, Any] = {"label_column": "label", "shard_rows": shard_rows, **OPTIONS}
        datapipe.curate(rows(), out=out, metric=metric, **options)
        found.append(pl.read_parquet(out / "scores.parquet").drop("cluster", strict=False))
    assert found[0].equals(found[1], null_equal=True)
