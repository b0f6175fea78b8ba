"""What the prototypes are fit to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.errors import SelectionError, StageError

if TYPE_CHECKING:
    from pathlib import Path

DISTINCT, REPEATS = 17**2, 22**2 - 17**2  # few enough for a map without UMAP


def fit_facts(result: Any) -> dict[str, Any]:
    return next(dict(stage["facts"]) for stage in result.manifest["stages"] if stage["name"] == "fit")


def repeated() -> pl.DataFrame:
    vectors = np.random.default_rng(2).normal(size=(DISTINCT, 8)).astype(np.float32)
    place = [*range(DISTINCT), *[0] * REPEATS]
    return pl.DataFrame({"text": [f"text number {i}" for i in place], "vector": vectors[place]})


def test_rows_that_screening_takes_out_are_neither_counted_nor_fit_to(tmp_path: Path) -> None:
    options: dict[str, Any] = {"text_column": "text", "embedding_column": "vector", "shard_rows": 256}
    every = datapipe.curate(repeated(), out=tmp_path / "every", **options)
    assert fit_facts(every) == {"prototypes": 22, "sample": DISTINCT + REPEATS, "dim": 8, "rows": DISTINCT + REPEATS}
    left = datapipe.curate(repeated(), out=tmp_path / "left", dedup="exact", **options)
    assert fit_facts(left) == {"prototypes": 17, "sample": DISTINCT, "dim": 8, "rows": DISTINCT}
    assert left.counts == {"kept": 87, "over_budget": DISTINCT - 87, "duplicate": REPEATS}


def test_a_run_whose_rows_all_go_out_is_refused_before_they_are_scored(tmp_path: Path) -> None:
    source = repeated().head(50)
    source.write_parquet(tmp_path / "evaluation.parquet")
    options: dict[str, Any] = {"text_column": "text", "embedding_column": "vector"}
    options["protect"] = str(tmp_path / "evaluation.parquet")
    with pytest.raises((SelectionError, StageError), match=r"all 50 rows were taken out .* \(50 protected\)"):
        datapipe.curate(source, out=tmp_path / "run", **options)
