"""Parquet: what it keeps, and files that are hostile. The bombs, kilobytes that decode to gigabytes, are made here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datapipe.errors import LimitError, SourceError
from datapipe.storage.source import Limits, open_source
from tests.storage.sources import ordinals_of, refused_by, rows_of, write

if TYPE_CHECKING:
    from pathlib import Path

MEBIBYTE = 1 << 20


def repeated(text: str, rows: int) -> pa.DictionaryArray:
    """One string, pointed to from every row."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))


def write_bomb(path: Path, *, text: str, rows: int) -> Path:
    """A dictionary bomb that was written by row group, as plain strings."""
    group = 250_000
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), compression="zstd") as writer:
        part = pa.table({"text": repeated(text, group).dictionary_decode()})
        for _ in range(rows // group):
            writer.write_table(part)
    return path


def outcome_of(path: Path, **limits: Any) -> tuple[str, float]:
    """Read a file; returns what came of it, and the most MiB that Arrow held at a time."""
    usual = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counting)
    try:
        source = open_source(path, limits=Limits(**limits))
        outcome = f"{sum(batch.table.num_rows for batch in source.batches(rejected=lambda _: None))} rows"
    except LimitError as error:
        outcome = str(error)
    finally:
        pa.set_memory_pool(usual)
    return outcome, counting.max_memory() / MEBIBYTE


def test_a_dictionary_of_one_string_over_four_million_rows_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = write_bomb(tmp_path / "bomb.parquet", text="x" * 1024, rows=4_000_000)
    assert path.stat().st_size < MEBIBYTE
    outcome, held = outcome_of(path)
    assert "bomb.parquet: its" in outcome
    assert "decode to more than 1,073,741,824 bytes, beyond max_expansion=100" in outcome
    assert "raise it: Limits(max_expansion=…) or DATAPIPE_LIMITS__MAX_EXPANSION=…" in outcome
    assert 1 < held < 200


def test_a_bomb_below_the_floor_streams_in_bounded_batches(tmp_path: Path) -> None:
    path = write_bomb(tmp_path / "small.parquet", text="x" * 1024, rows=500_000)
    outcome, held = outcome_of(path)
    assert outcome == "500000 rows"
    assert 1 < held < 200


@pytest.mark.parametrize("text", ["x" * 100, "x" * 100_000])
def test_a_tighter_limit_refuses_a_smaller_bomb(tmp_path: Path, text: str) -> None:
    rows = 40_000_000 // len(text)
    pq.write_table(pa.table({"text": repeated(text, rows).dictionary_decode()}), tmp_path / "bomb.parquet")
    limits = Limits(decoded_floor=MEBIBYTE)
    with pytest.raises(LimitError, match=r"bomb\.parquet: its [\d,]+ bytes decode to more than"):
        list(open_source(tmp_path / "bomb.parquet", limits=limits).batches())
    loose = open_source(tmp_path / "bomb.parquet", limits=Limits(decoded_floor=MEBIBYTE, max_expansion=1e6))
    assert sum(len(batch.rows) for batch in loose.batches()) == rows


def test_what_the_columns_not_read_would_decode_to_does_not_count(tmp_path: Path) -> None:
    table = pa.table({"text": repeated("x" * 1000, 50_000).dictionary_decode(), "n": np.arange(50_000)})
    pq.write_table(table, tmp_path / "bomb.parquet")
    source = open_source(tmp_path / "bomb.parquet", limits=Limits(decoded_floor=MEBIBYTE, max_expansion=10))
    assert sum(len(batch.rows) for batch in source.batches(["n"])) == 50_000
    with pytest.raises(LimitError):
        list(source.batches(["text"]))


def test_one_row_that_repeats_a_string_many_times_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    inner = repeated("x" * 1024, 200_000).cast(pa.string())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 199_999, 200_000], pa.int32()), inner)
    pq.write_table(pa.table({"tags": lists, "n": [0, 1, 2]}), tmp_path / "lists.parquet", compression="zstd")
    del inner, lists
    outcome, held = outcome_of(tmp_path / "lists.parquet", max_expansion=1e9)
    assert outcome == "2 rows"
    assert 1 < held < 200
    source = open_source(tmp_path / "lists.parquet", limits=Limits(max_expansion=1e9))
    assert [(record.row, record.reason) for record in refused_by(source)] == [(2, "too_large")]


@pytest.mark.parametrize("codec", ["zstd", "none"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_cell_of_fifty_megabytes_refuses_its_row(tmp_path: Path, codec: str, *, use_dictionary: bool) -> None:
    table = pa.table({"text": ["a", "x" * 50_000_000, "b"]})
    pq.write_table(table, tmp_path / "cell.parquet", compression=codec, use_dictionary=use_dictionary)
    source = open_source(tmp_path / "cell.parquet")
    assert rows_of(source) == [{"text": "a"}, {"text": "b"}]
    assert ordinals_of(source) == [(0, 0), (0, 2)]
    (refused,) = refused_by(source)
    assert (refused.row, refused.reason) == (2, "too_large")
    assert refused.detail == "column 'text' holds 50,000,000 bytes, more than max_cell_bytes=16,777,216"
    assert refused.content == b"x" * 65_536


def test_strings_coded_by_shared_prefixes_are_read_in_small_batches(tmp_path: Path) -> None:
    table = pa.table({"text": ["x" * 1024] * 200_000})
    options: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    pq.write_table(table, tmp_path / "prefixes.parquet", compression="zstd", **options)
    source = open_source(tmp_path / "prefixes.parquet", limits=Limits(decoded_floor=8 * MEBIBYTE))
    with pytest.raises(LimitError, match=r"prefixes\.parquet: its"):
        list(source.batches())
    assert sum(len(batch.rows) for batch in open_source(tmp_path / "prefixes.parquet").batches()) == 200_000


def test_numbers_that_decode_out_of_proportion_are_refused_by_the_footer(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": np.zeros(4_000_000, np.int64)}), tmp_path / "zeros.parquet", compression="zstd")
    with pytest.raises(LimitError, match=r"zeros\.parquet: its [\d,]+ bytes decode to more than [\d,]+ bytes"):
        open_source(tmp_path / "zeros.parquet", limits=Limits(decoded_floor=MEBIBYTE))


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        ("max_rows", "1,000 rows"),
        ("max_columns", "2 columns"),
        ("max_row_group_rows", "1,000 rows in one row group"),
        ("max_row_group_bytes", "uncompressed bytes in one row group"),
        ("max_footer_bytes", "bytes of footer or header"),
    ],
)
def test_each_cap_of_the_footer_is_named_with_its_remedy(tmp_path: Path, limit: str, found: str) -> None:
    pq.write_table(pa.table({"a": range(1000), "b": range(1000)}), tmp_path / "rows.parquet")
    with pytest.raises(LimitError, match=rf"rows\.parquet: .*{found}.* more than {limit}=1; .*Limits\({limit}=…\)"):
        open_source(tmp_path / "rows.parquet", limits=Limits(**{limit: 1}))


def test_rows_of_all_files_count_together(tmp_path: Path) -> None:
    for name in "ab":
        pq.write_table(pa.table({"a": range(10)}), tmp_path / f"{name}.parquet")
    with pytest.raises(LimitError, match=r"20 rows, more than max_rows=15"):
        open_source(tmp_path, limits=Limits(max_rows=15))


def test_text_that_is_not_utf8_refuses_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9", None, b"\xff", "grün".encode()])
    table = pa.table(
        {
            "text": raw.cast(pa.binary()).view(pa.string()),
            "tags": pa.array([[b"a"], [b"b"], [b"c", b"\xfe"], [], None]).cast(pa.list_(pa.binary())),
            "n": range(5),
        }
    )
    table = table.set_column(1, "tags", table["tags"].combine_chunks().view(pa.list_(pa.string())))
    pq.write_table(table, tmp_path / "latin.parquet")
    source = open_source(tmp_path / "latin.parquet")
    assert [row["n"] for row in rows_of(source)] == [0, 4]
    assert ordinals_of(source) == [(0, 0), (0, 4)]
    found = [(record.row, record.reason, record.detail, record.content) for record in refused_by(source)]
    assert found == [
        (2, "undecodable", "column 'text' holds text that is not UTF-8", b"caf\xe9"),
        (3, "undecodable", "column 'tags' holds text that is not UTF-8", None),
        (4, "undecodable", "column 'text' holds text that is not UTF-8", b"\xff"),
    ]
    assert [row["n"] for row in rows_of(source, ["n"])] == [0, 1, 2, 3, 4]


def test_row_groups_of_any_size_give_the_same_rows(tmp_path: Path) -> None:
    table = pa.table({"text": [f"row {n % 37}" for n in range(5000)], "n": range(5000)})
    for size in (1, 7, 4096, 5000):
        pq.write_table(table.slice(0, 200 if size == 1 else 5000), tmp_path / "rows.parquet", row_group_size=size)
        rows = rows_of(open_source(tmp_path / "rows.parquet"))
        assert rows == table.slice(0, len(rows)).to_pylist()
        assert len(rows) == (200 if size == 1 else 5000)


@pytest.mark.parametrize(
    "column",
    [
        pa.FixedSizeListArray.from_arrays(pa.array(np.arange(60, dtype=np.float32)), 6),
        pa.array([[1.0, 2.0], None, [], [3.0]] + [[4.0]] * 6, pa.list_(pa.float32())),
        pa.array([bytes([n] * 8) for n in range(10)], pa.binary(8)),
        pa.array([{"a": n, "b": [str(n)]} for n in range(10)]),
        pa.array([[("k", n)] for n in range(10)], pa.map_(pa.string(), pa.int64())),
        pa.array(["a", "b"] * 5).dictionary_encode(),
        pa.array([["a", "b"]] * 10, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        pa.array(["a"] * 10, pa.large_string()),
        pa.array([b"a"] * 10, pa.large_binary()),
        pa.array([None] * 10),
        pa.array(range(10), pa.timestamp("us", tz="UTC")),
        pa.array(range(10), pa.decimal128(9, 2)),
    ],
    ids=lambda column: str(column.type)[:30],
)
def test_every_type_of_column_keeps_its_values(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"column": column}), tmp_path / "rows.parquet", row_group_size=4)
    rows = rows_of(open_source(tmp_path / "rows.parquet"))
    assert [row["column"] for row in rows] == column.to_pylist()


def test_metadata_of_a_field_stays_and_that_of_storage_goes(tmp_path: Path) -> None:
    field = pa.field("vector", pa.binary(4), metadata={"dtype": "bfloat16", "PARQUET:field_id": "7"})
    table = pa.table([pa.array([b"abcd"])], schema=pa.schema([field]).with_metadata({"pandas": "{}"}))
    pq.write_table(table.cast(pa.schema([field])), tmp_path / "rows.parquet")
    source = open_source(tmp_path / "rows.parquet")
    assert source.schema.field("vector").metadata == {b"dtype": b"bfloat16"}
    assert source.schema.metadata is None
    (batch,) = source.batches()
    assert batch.table.schema.field("vector").metadata == {b"dtype": b"bfloat16"}


def test_types_of_all_files_are_united(tmp_path: Path) -> None:
    first = {
        "n": pa.array([1], pa.int16()),
        "x": pa.array([1], pa.int32()),
        "s": pa.array([{"a": 1}]),
        "e": pa.nulls(1),
    }
    second = {
        "n": pa.array([70_000], pa.int32()),
        "x": pa.array([0.5]),
        "s": pa.array([{"b": "x"}]),
        "e": pa.array(["e"]),
    }
    pq.write_table(pa.table(first), tmp_path / "1.parquet")
    pq.write_table(pa.table(second), tmp_path / "2.parquet")
    source = open_source(tmp_path)
    assert source.schema.types == [
        pa.int32(),
        pa.float64(),
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
        pa.string(),
    ]
    assert rows_of(source) == [
        {"n": 1, "x": 1.0, "s": {"a": 1, "b": None}, "e": None},
        {"n": 70_000, "x": 0.5, "s": {"a": None, "b": "x"}, "e": "e"},
    ]


def test_types_without_a_common_one_are_refused_with_both_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"label": ["one"]}), tmp_path / "2.parquet")
    expected = r"column 'label' is int64 in .*1\.parquet and string in .*2\.parquet: no type holds both"
    with pytest.raises(SourceError, match=expected):
        open_source(tmp_path)


def test_what_is_no_parquet_is_said_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"text\.parquet is no Parquet file: it does not end in PAR1"):
        open_source(write(tmp_path / "text.parquet", "hello, this is text\n"))
    with pytest.raises(SourceError, match=r"short\.parquet is no Parquet file"):
        open_source(write(tmp_path / "short.parquet", "PAR1"))
    with pytest.raises(SourceError, match=r"lies\.parquet is no Parquet file"):
        open_source(write(tmp_path / "lies.parquet", b"PAR1" + b"\xff\xff\xff\x7fPAR1"))
    with pytest.raises(SourceError, match=r"locked\.parquet is an encrypted Parquet file"):
        open_source(write(tmp_path / "locked.parquet", b"PARE" + b"\0" * 20 + b"\x04\0\0\0PARE"))
    with pytest.raises(SourceError, match=r"twice\.parquet: two columns are called 'a'; rename one of them"):
        pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), tmp_path / "twice.parquet")
        open_source(tmp_path / "twice.parquet")
