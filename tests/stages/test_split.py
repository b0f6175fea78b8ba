"""Only one part of a source is chosen from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

import datapipe

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_of_other_parts_and_of_none_go_out_with_that_reason(tmp_path: Path) -> None:
    parts = ["train"] * 6 + ["test"] * 3 + [None]
    source = pl.DataFrame({"text": [f"text {i}" for i in range(10)], "part": parts})
    result = datapipe.curate(
        source, out=tmp_path / "run", metric="random", keep=1.0, text_column="text", split_column="part"
    )
    assert result.counts == {"kept": 6, "other_split": 4}
    assert set(result.kept.collect()["part"]) == {"train"}


def test_a_row_of_another_part_takes_none_out_for_saying_the_same(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 16))
    near = np.concatenate([vectors, vectors[:39] + 1e-3, vectors[39:]]).astype(np.float32)
    source = pl.DataFrame({"vector": near, "part": ["train"] * 40 + ["test"] * 40})
    result = datapipe.curate(
        source,
        out=tmp_path / "run",
        dedup="semantic",
        embedding_column="vector",
        metric="random",
        keep=1.0,
        split_column="part",
    )
    assert result.counts == {"kept": 39, "protected": 1, "other_split": 40}, "equal vectors are equal rows"


def test_rows_that_equal_a_row_of_another_part_go_too(tmp_path: Path) -> None:
    source = pl.DataFrame({"text": ["one", "two", "Two!", "three"], "part": ["train", "train", "test", "train"]})
    result = datapipe.curate(
        source, out=tmp_path / "run", metric="random", keep=1.0, text_column="text", split_column="part"
    )
    assert result.counts == {"kept": 2, "protected": 1, "other_split": 1}
