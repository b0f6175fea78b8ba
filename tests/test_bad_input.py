"""Every mistake has a clear message that names file, column or value; a bad row costs itself and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe import errors

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = [f"text number {i}" for i in range(40)]
RANDOM: dict[str, Any] = {"metric": "random", "text_column": "text"}


def vectors(rows: int = 40, dim: int = 8) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).normal(size=(rows, dim)).astype(np.float32)


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        (b"", "parquet", "empty"),
        (b"", "csv", "empty"),
        (b"", "jsonl", "empty"),
        (b"not parquet at all", "parquet", r"rows\.parquet"),
        (b"x", "docx", r"rows\.docx"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, content: bytes, suffix: str, message: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content)
    with pytest.raises(errors.SourceError, match=message):
        datapipe.curate(path, out=tmp_path / "run", **RANDOM)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.SourceError, match=r"nowhere\.parquet"):
        datapipe.curate(tmp_path / "nowhere.parquet", out=tmp_path / "run", **RANDOM)
    assert not (tmp_path / "run").exists()


def test_zero_rows_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"text": pl.Series([], dtype=pl.String)}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(errors.SourceError, match="no row"):
        datapipe.curate(tmp_path / "rows.parquet", out=tmp_path / "run", **RANDOM)


@pytest.mark.parametrize("role", ["text_column", "label_column", "id_column", "balance", "embedding_column"])
def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, role: str) -> None:
    frame = pl.DataFrame({"text": TEXTS, "number": range(40)})
    with pytest.raises(errors.ColumnError, match=f"{role} 'nope' is not in the source; its columns are text, number"):
        options: dict[str, Any] = {role: "nope"}
        datapipe.curate(frame, out=tmp_path / "run", **options)


def test_the_text_column_is_found_only_where_there_is_one_candidate(tmp_path: Path) -> None:
    frame = pl.DataFrame({"question": TEXTS, "answer": TEXTS})
    with pytest.raises(errors.ColumnError, match=r"several columns hold text \(question, answer\)"):
        datapipe.curate(frame, out=tmp_path / "run")
    with pytest.raises(errors.ColumnError, match="no column holds text"):
        datapipe.curate(frame.select(n=pl.lit(1)), out=tmp_path / "run")


def test_a_column_of_nothing_but_nulls_is_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": pl.Series([None] * 5, dtype=pl.String), "n": range(5)})
    with pytest.raises(errors.ColumnError, match="'text' holds nothing but nulls"):
        datapipe.curate(frame, out=tmp_path / "run", **RANDOM)


def test_repeated_ids_name_the_value_and_two_places(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": TEXTS, "id": [*range(39), 7]})
    with pytest.raises(errors.RowIdError, match="7") as caught:
        datapipe.curate(frame, out=tmp_path / "run", id_column="id", **RANDOM)
    assert "8" in str(caught.value)
    assert "40" in str(caught.value)


def test_rows_without_text_are_rejected_with_their_place_and_the_rest_goes_on(tmp_path: Path) -> None:
    texts: list[str | None] = [*TEXTS]
    texts[3], texts[17], texts[20] = None, "", "   "
    pl.DataFrame({"text": texts, "n": range(40)}).write_parquet(tmp_path / "rows.parquet")
    result = datapipe.curate(tmp_path / "rows.parquet", out=tmp_path / "run", keep=1.0, **RANDOM)
    assert result.counts == {"kept": 37, "rejected_null_text": 1, "rejected_empty_text": 2}
    rejected = pl.read_parquet(tmp_path / "run" / "rejected.parquet")
    assert rejected["row"].to_list() == [4, 18, 21]
    assert rejected["reason"].to_list() == ["null_text", "empty_text", "empty_text"]
    assert rejected["file"][0].endswith("rows.parquet")
    assert json.loads(rejected["content"][0])["n"] == 3


def test_undecodable_lines_are_rejected_and_counted(tmp_path: Path) -> None:
    good = [json.dumps({"text": text}) for text in TEXTS]
    good[5], good[9] = '{"text": "cut off', '{"text": 12}'
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(good).encode() + b'\n{"text": "\xff\xfe"}\n')
    result = datapipe.curate(path, out=tmp_path / "run", keep=1.0, **RANDOM)
    assert result.counts == {"kept": 38, "rejected_undecodable": 2, "rejected_wrong_type": 1}
    assert pl.read_parquet(tmp_path / "run" / "rejected.parquet")["row"].to_list() == [6, 10, 41]


@pytest.mark.parametrize("options", [{"text_column": "text"}, {}], ids=["named", "by default"])
def test_the_text_column_holds_text_whether_it_is_named_or_not(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": 12}\n')
    result = datapipe.curate(tmp_path / "rows.jsonl", out=tmp_path / "a", metric="random", keep=1.0, **options)
    assert result.counts == {"kept": 1, "rejected_wrong_type": 1}
    (tmp_path / "rows.csv").write_text("text,other\n007,a\n1.50,b\n")
    result = datapipe.curate(tmp_path / "rows.csv", out=tmp_path / "b", metric="random", keep=1.0, **options)
    assert sorted(result.kept.collect()["text"]) == ["007", "1.50"]


def test_too_many_rejected_rows_stop_the_run_and_say_where_they_are(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": [None, None, *TEXTS]})
    with pytest.raises(
        errors.RejectedError, match=r"2 rows were rejected \(2 null_text\), max_rejected is 1"
    ) as caught:
        datapipe.curate(frame, out=tmp_path / "run", max_rejected=1, **RANDOM)
    assert "rejected.parquet" in str(caught.value)
    assert datapipe.curate(frame, out=tmp_path / "run", max_rejected=2, **RANDOM).counts["rejected_null_text"] == 2


def test_vectors_that_are_not_finite_zero_or_of_another_length_are_rejected(tmp_path: Path) -> None:
    rows = vectors().tolist()
    rows[1][2], rows[2], rows[3] = float("nan"), [0.0] * 8, rows[3][:5]
    frame = pl.DataFrame({"v": rows, "n": range(40)})
    result = datapipe.curate(frame, out=tmp_path / "run", embedding_column="v", prototypes=4, keep=1.0)
    assert result.counts == {
        "kept": 37,
        "rejected_not_finite": 1,
        "rejected_wrong_length": 1,
        "rejected_zero_vector": 1,
    }


def test_a_budget_over_the_rows_says_how_many_there_are(tmp_path: Path) -> None:
    with pytest.raises(errors.BudgetError, match="41 rows, but there are only 40"):
        datapipe.curate(pl.DataFrame({"text": TEXTS}), out=tmp_path / "run", keep_rows=41, **RANDOM)
    assert [path.name.split("-")[0] for path in (tmp_path / "run" / "stages").iterdir()] == ["ingest"]


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.OutputError, match="file"):
        datapipe.curate(pl.DataFrame({"text": TEXTS}), out=tmp_path / "file", **RANDOM)
    with pytest.raises(errors.OutputError, match="/proc/nowhere"):
        datapipe.curate(pl.DataFrame({"text": TEXTS}), out="/proc/nowhere/run", **RANDOM)


def test_a_source_that_changes_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"text": TEXTS}).write_parquet(path)
    first = datapipe.curate(path, out=tmp_path / "run", keep=1.0, **RANDOM)
    pl.DataFrame({"text": [*TEXTS, "one more"]}).write_parquet(path)
    second = datapipe.curate(path, out=tmp_path / "run", keep=1.0, **RANDOM)
    assert (first.counts["kept"], second.counts["kept"]) == (40, 41)
    assert second.kept.collect().height == 41


@pytest.mark.parametrize("model", ["no-such-folder/model", "embedded:none"])
def test_a_model_that_is_not_there_is_named(tmp_path: Path, model: str) -> None:
    with pytest.raises(errors.ModelNotFoundError, match=model.rsplit(":", maxsplit=1)[-1]):
        datapipe.curate(pl.DataFrame({"text": TEXTS}), out=tmp_path / "run", text_column="text", model=model)
