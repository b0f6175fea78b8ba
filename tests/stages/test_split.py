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
