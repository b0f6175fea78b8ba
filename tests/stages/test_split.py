"""Only one part of a source is chosen from."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def test_rows_that_equal_a_row_of_another_part_go_too(tmp_path: Path) -> None:
    source = pl.DataFrame({"text": ["one", "two", "Two!", "three"], "part": ["train", "train", "test", "train"]})
    options = {"metric": "random", "keep": 1.0, "text_column": "text", "split_column": "part"}
    result = datapipe.curate(source, out=tmp_path / "run", **options)
    assert result.counts == {"kept": 2, "protected": 1, "other_split": 1}
