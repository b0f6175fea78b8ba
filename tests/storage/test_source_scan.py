"""`scan`: a source as a LazyFrame with the ids that ingest gives, duplicates included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import ColumnError
from datapipe.storage.formats.lazy import _Seen
from datapipe.storage.rowid import apply_counters, content_digests, count_duplicates, ids_to_arrow, value_digests
from datapipe.storage.source import open_source, scan
from tests.storage.sources import WRITERS, cut, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from datapipe.storage.source import Source


def expected_ids(frame: pl.DataFrame) -> list[bytes]:
    """The ids of content, by the definition: sort, number the duplicates, apply the counters."""
    digests = content_digests(frame.to_arrow())
    ranked = digests[np.lexsort((digests[:, 1], digests[:, 0]))]
    return sorted(ids_to_arrow(apply_counters(ranked, count_duplicates(ranked))).to_pylist())


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_come_with_the_ids_of_ingest_in_any_cut(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame({"text": [f"row {n % 40}" for n in range(300)], "n": [n % 20 for n in range(300)]})
    for files in (1, 5):
        lazy = scan(cut(frame, tmp_path / str(files), suffix=suffix, files=files))
        assert lazy.collect_schema() == pl.Schema({"text": pl.String, "n": pl.Int64, "row_id": pl.Binary})
        found = lazy.collect()
        assert found.drop("row_id").sort("text", "n").equals(frame.sort("text", "n"))
        assert sorted(found["row_id"].to_list()) == expected_ids(frame)
        assert found["row_id"].n_unique() == 300


def test_queries_are_answered_as_on_the_collected_frame(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"text": [f"row {n}" for n in range(1000)], "n": range(1000), "x": [n / 3 for n in range(1000)]}
    )
    lazy = scan(cut(frame, tmp_path / "rows", suffix="csv", files=3))
    whole = lazy.collect()
    queries: list[Callable[[Any], Any]] = [
        lambda rows: rows.filter(pl.col("n") > 990).select("row_id", "x"),
        lambda rows: rows.select("n"),
        lambda rows: rows.select("row_id"),
        lambda rows: rows.head(7),
        lambda rows: rows.select(pl.len()),
        lambda rows: rows.filter(pl.col("text") == "row 5"),
        lambda rows: rows.select(pl.col("x").sum()),
    ]
    for query in queries:
        assert query(lazy).collect().equals(query(whole.lazy()).collect())


def test_nothing_is_read_before_the_frame_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"a": 1, "b": 2}])
    asked: list[Any] = []
    source_type = type(open_source(path))
    original = source_type.batches

    def noted(self: Source, columns: Any = None, **given: Any) -> Any:
        asked.append(columns)
        return original(self, columns, **given)

    monkeypatch.setattr(source_type, "batches", noted)
    lazy = scan(path).filter(pl.col("a") > 0)
    assert asked == []
    lazy.select("b").collect()
    assert [sorted(columns) for columns in asked] == [["a", "b"]]


def test_ids_of_a_column_are_those_of_its_values(tmp_path: Path) -> None:
    frame = pl.DataFrame({"key": ["a", "b", "c"], "n": [1, 1, 1]})
    frame.write_parquet(tmp_path / "rows.parquet")
    found = scan(tmp_path / "rows.parquet", id_column="key").collect()
    expected = ids_to_arrow(value_digests(frame["key"].to_arrow())).to_pylist()
    assert found["row_id"].to_list() == expected
    frame.vstack(frame.head(1)).write_parquet(tmp_path / "twice.parquet")
    with pytest.raises(Exception, match=r"twice\.parquet, row 4: 'a' was in column 'key' before; ids must be unique"):
        scan(tmp_path / "twice.parquet", id_column="key").collect()


def test_columns_that_cannot_be_are_refused_at_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}])
    with pytest.raises(ColumnError, match=r"no column 'b' in .*rows\.jsonl; the columns are 'a'"):
        scan(path, id_column="b")
    path = write_jsonl(tmp_path / "rows.jsonl", [{"row_id": 1}])
    with pytest.raises(ColumnError, match=r"has a column 'row_id' of its own; rename it, or leave it out"):
        scan(path)


def test_a_record_that_cannot_be_decoded_stops_the_query(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\noops\n')
    with pytest.raises(Exception, match=r"rows\.jsonl, row 2: undecodable: not JSON"):
        scan(path).collect()


def test_a_frame_can_be_scanned_too() -> None:
    frame = pl.DataFrame({"a": [1, 1, 2]})
    found = scan(frame).collect()
    assert found.drop("row_id").equals(frame)
    assert sorted(found["row_id"].to_list()) == expected_ids(frame)


@given(st.lists(st.lists(st.integers(0, 6), max_size=20), max_size=12))
def test_counters_are_the_number_of_equal_rows_before(batches: list[list[int]]) -> None:
    seen = _Seen()
    before: dict[int, int] = {}
    for batch in batches:
        expected = []
        for value in batch:
            expected.append(before.get(value, 0))
            before[value] = before.get(value, 0) + 1
        digests = np.array([[value // 3, value] for value in batch], np.uint64).reshape(-1, 2)
        assert seen.count(digests).tolist() == expected
