"""What every source promises, whatever its format; formats have files of their own beside this one."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapipe.errors import ColumnError, SourceError
from datapipe.storage.formats.base import BATCH_BYTES
from datapipe.storage.source import Limits, Rejected, SourceFile, open_source
from tests.storage.sources import WRITERS, column_of, cut, digests_of, ordinals_of, rows_of, write, write_jsonl

if TYPE_CHECKING:
    from pathlib import Path

FRAME = pl.DataFrame({"text": ["a", "b", None, "d"], "label": [1, 2, 3, 4], "score": [0.5, None, 1.5, 2.0]})


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_of_any_format_is_read_row_for_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    WRITERS[suffix](FRAME, path)
    source = open_source(path)
    assert source.files == (SourceFile(str(path), path.stat().st_size),)
    assert source.rows == 4
    assert source.schema.names == ["text", "label", "score"]
    assert source.schema.types == [pa.string(), pa.int64(), pa.float64()]
    batches = list(source.batches())
    assert [batch.file for batch in batches] == [0] * len(batches)
    assert pa.concat_tables(batch.table for batch in batches).schema.equals(source.schema)
    assert rows_of(source) == FRAME.to_dicts()
    assert ordinals_of(source) == [(0, 0), (0, 1), (0, 2), (0, 3)]


@pytest.mark.parametrize("files", [1, 7, 64])
def test_the_same_rows_have_the_same_digests_in_any_format_and_cut(tmp_path: Path, data: Path, files: int) -> None:
    frame = pl.read_parquet(data / "banking77.parquet")
    expected = digests_of(open_source(data / "banking77.parquet"))
    for suffix in WRITERS:
        source = open_source(cut(frame, tmp_path / suffix, suffix=suffix, files=files))
        assert len(source.files) == files
        assert source.rows == frame.height
        assert digests_of(source) == expected, suffix


def test_lists_and_objects_have_the_same_digests_in_json(tmp_path: Path, data: Path) -> None:
    frame = pl.read_parquet(data / "squad20_dev.parquet").head(2000)
    frame = frame.with_columns(pair=pl.struct("answerable", "answers", first=pl.col("sent_start").list.first()))
    expected = digests_of(open_source(frame))
    for suffix in ("parquet", "jsonl", "arrow"):
        source = open_source(cut(frame, tmp_path / suffix, suffix=suffix, files=3))
        assert digests_of(source) == expected, suffix


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_text_files_have_one_schema_for_any_cut_and_order(tmp_path: Path, data: Path, suffix: str) -> None:
    frame = pl.read_parquet(data / "banking77.parquet").with_columns(
        mostly_whole=pl.when(pl.int_range(pl.len()) == 5000).then(0.5).otherwise(pl.lit(1.0)),
        late=pl.when(pl.int_range(pl.len()) > 12_000).then(pl.lit("7")).otherwise(None),
    )
    one = open_source(cut(frame, tmp_path / "one", suffix=suffix, files=1))
    many = open_source(cut(frame.sort("text"), tmp_path / "many", suffix=suffix, files=13))
    assert one.schema.equals(many.schema)
    assert digests_of(one) == digests_of(many)


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.one_of(st.none(), _TEXT),
            "whole": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
            "real": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)),
            "flag": st.one_of(st.none(), st.booleans()),
        }
    ),
    min_size=1,
    max_size=30,
)
_SCHEMA = {"text": pl.String, "whole": pl.Int64, "real": pl.Float64, "flag": pl.Boolean}


@settings(max_examples=60)
@given(rows=_ROWS, cut_at=st.integers(0, 30))
def test_any_rows_survive_every_format(tmp_path_factory: Any, rows: list[dict[str, Any]], cut_at: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    frame = pl.DataFrame(rows, schema=_SCHEMA)
    for suffix, writer in WRITERS.items():
        (folder / suffix).mkdir()
        for index, part in enumerate((frame.head(cut_at), frame.slice(cut_at))):
            if part.height:
                writer(part, folder / suffix / f"{index}.{suffix}")
        found = open_source(folder / suffix, text_columns=["text"])
        # A column of nulls has no type in a text format, and -0.0 == 0.0.
        assert rows_of(found) == frame.to_dicts(), suffix


@pytest.mark.parametrize("suffix", WRITERS)
def test_columns_are_projected_in_the_order_asked_for(tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](FRAME, tmp_path / f"rows.{suffix}")
    source = open_source(tmp_path / f"rows.{suffix}")
    table = pa.concat_tables(batch.table for batch in source.batches(["score", "text"]))
    assert table.to_pylist() == FRAME.select("score", "text").to_dicts()
    with pytest.raises(ColumnError, match=r"no column 'nope' in .*rows\.\w+; the columns are 'text', 'label', 'score'"):
        source.batches(["text", "nope"])
    with pytest.raises(ColumnError, match=r"no column was asked for; the columns are 'text', 'label', 'score'"):
        source.batches([])


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_without_any_of_the_columns_still_gives_its_rows(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    WRITERS[suffix](pl.DataFrame({"a": [1, 2]}), folder / f"1.{suffix}")
    WRITERS[suffix](pl.DataFrame({"a": [3], "b": ["x"]}), folder / f"2.{suffix}")
    source = open_source(folder)
    assert source.schema.names == ["a", "b"]
    assert rows_of(source, ["b"]) == [{"b": None}, {"b": None}, {"b": "x"}]


@pytest.mark.parametrize("suffix", WRITERS)
def test_batches_stay_below_sixteen_mebibytes_and_none_is_empty(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame({"text": ["x" * 90_000] * 500, "n": range(500)})
    WRITERS[suffix](frame, tmp_path / f"rows.{suffix}")
    batches = list(open_source(tmp_path / f"rows.{suffix}").batches())
    assert all(0 < batch.table.nbytes <= BATCH_BYTES for batch in batches)
    assert len(batches) >= 3
    assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(500))
    assert [n for batch in batches for n in batch.table["n"].to_pylist()] == list(range(500))


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_value_over_the_limit_refuses_its_row_only(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame({"text": ["a", "b" * 2000, "c", "d" * 3000], "n": [0, 1, 2, 3]})
    WRITERS[suffix](frame, tmp_path / f"rows.{suffix}")
    source = open_source(tmp_path / f"rows.{suffix}", limits=Limits(max_cell_bytes=1000))
    refused: list[Rejected] = []
    rows = [row for batch in source.batches(rejected=refused.append) for row in batch.table["n"].to_pylist()]
    assert rows == [0, 2]
    assert ordinals_of(source) == [(0, 0), (0, 2)]
    assert [(record.file, record.row, record.reason) for record in refused] == [
        (0, 2, "too_large"),
        (0, 4, "too_large"),
    ]
    assert refused[0].detail == "column 'text' holds 2,000 bytes, more than max_cell_bytes=1,000"
    assert refused[0].content == b"b" * 2000
    with pytest.raises(SourceError, match=r"rows\.\w+, row 2: too_large: column 'text' holds 2,000 bytes"):
        list(source.batches())


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_empty_file_or_one_without_rows_is_refused(tmp_path: Path, suffix: str) -> None:
    empty = write(tmp_path / f"empty.{suffix}", b"")
    with pytest.raises(SourceError, match=rf"empty\.{suffix} is empty \(0 bytes\)"):
        open_source(empty)
    WRITERS[suffix](FRAME.head(0), tmp_path / f"none.{suffix}")
    with pytest.raises(SourceError, match=rf"none\.{suffix} (is empty \(0 bytes\)|holds no)"):
        open_source(tmp_path / f"none.{suffix}")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "arrow", "arrows"])
def test_a_file_without_rows_beside_others_is_no_matter(tmp_path: Path, suffix: str) -> None:
    for index, frame in enumerate((FRAME.head(0), FRAME)):
        WRITERS[suffix](frame, tmp_path / f"{index}.{suffix}")
    source = open_source(tmp_path)
    assert rows_of(source) == FRAME.to_dicts()
    assert ordinals_of(source)[0] == (1, 0)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "arrows"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str, share: float) -> None:
    frame = pl.DataFrame({"text": [f"row {n}" for n in range(5000)], "n": range(5000)})
    WRITERS[suffix](frame, tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    cut_off = write(tmp_path / f"cut.{suffix}", whole[: int(len(whole) * share)])
    with pytest.raises(SourceError, match=rf"cut\.{suffix} (cannot be read; it is truncated|is no Parquet file)"):
        list(open_source(cut_off).batches())


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_damaged_byte_is_an_error_or_a_refused_row_but_never_a_crash(tmp_path: Path, suffix: str) -> None:
    kinds = pl.Series(["a", "b", "c"] * 100, dtype=pl.Categorical)  # coded: indices that may point anywhere
    frame = pl.DataFrame({"text": [f"row {n}" for n in range(300)], "tags": [["x", "yy"]] * 300, "kind": kinds})
    WRITERS[suffix](frame, tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        damaged = write(
            tmp_path / f"damaged.{suffix}", whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        )
        with suppress(SourceError):
            rows_of(open_source(damaged))


def test_digests_are_those_of_the_files_and_cached_by_size_and_time(tmp_path: Path) -> None:
    first, second = (write_jsonl(tmp_path / f"{name}.jsonl", [{"a": name}]) for name in "ab")
    expected = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second))
    known: dict[str, str] = {}
    assert open_source(tmp_path).digests(known) == expected
    stat = first.stat()
    key = f"{first}|{stat.st_size}|{stat.st_mtime_ns}"
    assert known[key] == expected[0]
    assert len(known) == 2
    known[key] = "remembered"
    assert open_source(tmp_path).digests(known) == ("remembered", expected[1])
    assert open_source(tmp_path).digests() == expected
    write_jsonl(first, [{"a": "longer"}])
    assert open_source(tmp_path).digests(known)[0] == hashlib.sha256(first.read_bytes()).hexdigest()


def test_rejected_records_come_with_file_row_reason_and_content(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "1.jsonl", [{"a": 1}])
    write(tmp_path / "2.jsonl", b'{"a": 2}\n\n{"a": oops}\n{"a": 3}\n')
    refused: list[Rejected] = []
    source = open_source(tmp_path)
    rows = [row["a"] for batch in source.batches(rejected=refused.append) for row in batch.table.to_pylist()]
    assert rows == [1, 2, 3]
    assert len(refused) == 1
    assert (refused[0].file, refused[0].row, refused[0].reason) == (1, 3, "undecodable")
    assert refused[0].detail.startswith("not JSON: Expecting value")
    assert refused[0].content == b'{"a": oops}'
    assert source.rows == 4
    with pytest.raises(SourceError, match=re.escape("2.jsonl, row 3: undecodable: not JSON: Expecting value")):
        list(source.batches())


def test_text_columns_of_nulls_are_strings(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": [None, None], "n": [1, 2]})
    for suffix, writer in WRITERS.items():
        writer(frame, tmp_path / f"rows.{suffix}")
        source = open_source(tmp_path / f"rows.{suffix}", text_columns=["text"])
        assert source.schema.field("text").type == pa.string(), suffix
        assert column_of(tmp_path / f"rows.{suffix}", "text", text_columns=["text"]) == [None, None]


def test_a_frame_is_a_source_with_a_digest_of_its_content() -> None:
    source = open_source(FRAME)
    assert source.format == "frame"
    assert rows_of(source) == FRAME.to_dicts()
    assert source.files[0].uri == "<DataFrame>"
    lazy = open_source(FRAME.lazy().filter(pl.col("label") > 1))
    assert rows_of(lazy) == FRAME.filter(pl.col("label") > 1).to_dicts()
    same = FRAME.with_columns(pl.col("text").cast(pl.Categorical))
    assert open_source(same).digests() == source.digests()
    assert lazy.digests() != source.digests()
    assert re.fullmatch("[0-9a-f]{64}", source.digests()[0])


def test_frames_that_cannot_be_a_source_say_why() -> None:
    with pytest.raises(SourceError, match="<DataFrame> holds no rows"):
        open_source(FRAME.head(0))
    with pytest.raises(SourceError, match="<DataFrame>: column 'o' holds Python objects; give it a type first"):
        open_source(pl.DataFrame({"o": pl.Series([object()], dtype=pl.Object)}))
    with pytest.raises(SourceError, match="this one holds int"):
        open_source([1, 2])  # type: ignore[list-item]
    with pytest.raises(SourceError, match="the source names no files"):
        open_source([])
