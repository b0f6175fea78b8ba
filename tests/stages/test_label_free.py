"""Runs scored by neighbours, coverage and class means: the same for any cut, and without the rows taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.errors import DatapipeError

if TYPE_CHECKING:
    from pathlib import Path

METRICS = ("knn_density", "typicality", "coverage", "prototypes_supervised")


def frame(rows: int = 300) -> pl.DataFrame:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(rows, 8)).astype(np.float32)
    labels = [None if i % 50 == 7 else f"class {i % 3}" for i in range(rows)]
    texts = [f"text {i if i % 20 else 0}" for i in range(rows)]
    return pl.DataFrame({"text": texts, "vector": vectors, "label": labels})


def run(out: Path, metric: Any, **options: Any) -> Any:
    columns: dict[str, Any] = {"text_column": "text", "embedding_column": "vector", "label_column": "label"}
    return datapipe.curate(options.pop("source", frame()), out=out, metric=metric, **columns, **options)


@pytest.mark.parametrize("metric", METRICS)
def test_the_cut_into_shards_changes_no_kept_row(tmp_path: Path, metric: str) -> None:
    kept = [run(tmp_path / f"{n}", metric, shard_rows=n, strategy="hard").kept.collect() for n in (64, 1000)]
    assert kept[0]["row_id"].to_list() == kept[1]["row_id"].to_list()


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_screening_takes_out_have_no_score(tmp_path: Path, metric: str) -> None:
    result = run(tmp_path / "run", metric, dedup="exact", keep=0.5)
    assert result.counts["duplicate"] == 14
    assert result.counts.get("unscored", 0) == (6 if metric == "prototypes_supervised" else 0)


def test_without_any_label_the_supervised_metric_is_refused(tmp_path: Path) -> None:
    source = frame().with_columns(label=pl.lit(None, pl.String))
    with pytest.raises(DatapipeError, match="label"):
        run(tmp_path / "run", "prototypes_supervised", source=source)
