"""Rows that say the same go out of a run, each with the row that stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

import datapipe

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_near_another_by_their_vectors_go_and_no_text_is_needed(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(100, 16))
    both = np.concatenate([vectors, vectors[:30] + 1e-3]).astype(np.float32)
    source = pl.DataFrame({"vector": both})
    options = {"embedding_column": "vector", "metric": "random", "keep": 1.0}
    runs = [
        datapipe.curate(source, out=tmp_path / f"{n}", dedup="semantic", shard_rows=n, **options) for n in (32, 500)
    ]
    assert runs[0].counts == {"kept": 100, "duplicate": 30}
    assert runs[0].kept.collect()["row_id"].to_list() == runs[1].kept.collect()["row_id"].to_list()
    found = pl.concat([pl.read_parquet(path) for path in (tmp_path / "32").glob("stages/screen-*/excluded-*.parquet")])
    assert set(found["rule"]) == {"semantic"}
    assert found["similarity"].min() > 0.99


def test_repeats_of_a_text_go_first_and_texts_are_embedded(tmp_path: Path, data: Path) -> None:
    rows = pl.read_parquet(data / "banking77.parquet").select("text").unique(maintain_order=True).head(80)
    more = pl.DataFrame({"text": [rows["text"][3].upper(), rows["text"][9].replace("card", "cards")]})
    result = datapipe.curate(
        pl.concat([rows, more]), out=tmp_path / "run", dedup="semantic", text_column="text", metric="random", keep=1.0
    )
    found = pl.concat([pl.read_parquet(path) for path in (tmp_path / "run").glob("stages/screen-*/excluded-*.parquet")])
    assert "exact" in set(found["rule"])
    assert result.counts["duplicate"] == found.height
