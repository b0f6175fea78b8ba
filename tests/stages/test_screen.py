"""Rows that an evaluation set holds go out of a run, each with its evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

import datapipe
from datapipe.errors import SelectionError, StageError

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_that_equal_quote_or_nearly_match_an_evaluation_row_go_out_with_that_reason(
    tmp_path: Path, data: Path
) -> None:
    rows = pl.read_parquet(data / "banking77.parquet").select("text").unique(maintain_order=True).head(60)
    long = "Please tell me in which of the countries that you support I can use a card that was issued to me abroad"
    rows = pl.concat([rows, pl.DataFrame({"text": [f"A customer wrote: {long}, and nobody answered."]})])
    equal, near = rows["text"][7], rows["text"][20]
    questions = [f"  {equal.upper()}!! ", near.replace("card", "cards"), long, "Whales sing in the sea at night"]
    pl.DataFrame({"text": questions}).write_csv(tmp_path / "evaluation.csv")
    out = tmp_path / "run"
    result = datapipe.curate(
        rows,
        out=out,
        keep=1.0,
        text_column="text",
        metric="random",
        protect=str(tmp_path / "evaluation.csv"),
        protect_threshold=0.9,
    )
    assert result.counts == {"kept": 58, "protected": 3}
    found = pl.concat([pl.read_parquet(path) for path in out.glob("stages/screen-*/excluded-*.parquet")])
    assert dict(found.select("rule", "match").iter_rows()) == {
        "exact": questions[0],
        "near": questions[1],
        "contained": questions[2],
    }
    gone = result.selection.filter(pl.col("reason") == "protected").collect()
    assert set(gone["row_id"]) == set(found["row_id"])
    assert not gone["kept"].any()
    screened = next(timing for timing in result.timings if timing.stage == "screen")
    assert screened.rows == rows.height


def test_where_no_row_is_left_to_choose_from_the_run_says_what_took_them_out(tmp_path: Path) -> None:
    rows = pl.DataFrame({"text": [f"text number {i}" for i in range(9)], "part": ["train"] * 8 + ["test"]})
    rows.head(8).write_csv(tmp_path / "evaluation.csv")
    options: dict[str, Any] = {"out": tmp_path / "run", "text_column": "text", "metric": "random"}
    with pytest.raises(
        (SelectionError, StageError), match=r"all 9 rows were taken out .* \(1 other_split, 8 protected\)"
    ):
        datapipe.curate(rows, protect=str(tmp_path / "evaluation.csv"), split_column="part", **options)
    with pytest.raises((SelectionError, StageError), match=r"all 9 rows were taken out .* \(9 other_split\)"):
        datapipe.curate(rows, split_column="part", split="trian", **options)
