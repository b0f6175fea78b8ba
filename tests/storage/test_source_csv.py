"""CSV: the types of columns, what is null, what is refused, and where records end."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datapipe.errors import LimitError, SourceError
from datapipe.storage.formats import records
from datapipe.storage.source import Limits, open_source
from tests.storage.sources import column_of, ordinals_of, refused_by, rows_of, write

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("fields", "kind", "values"),
    [
        (["1", "-2", "0"], pa.int64(), [1, -2, 0]),
        (["1", "", "3"], pa.int64(), [1, None, 3]),
        (["1", "2.5"], pa.float64(), [1.0, 2.5]),
        (["1e5", "-.5", "1E-3"], pa.float64(), [1e5, -0.5, 1e-3]),
        (["inf", "-inf", "1"], pa.float64(), [float("inf"), float("-inf"), 1.0]),
        (["true", "false", ""], pa.bool_(), [True, False, None]),
        (["True", "False"], pa.bool_(), [True, False]),
        (["TRUE", "FALSE"], pa.bool_(), [True, False]),
        (["007", "12"], pa.string(), ["007", "12"]),
        (["+5"], pa.string(), ["+5"]),
        ([" 5"], pa.string(), [" 5"]),
        (["5 "], pa.string(), ["5 "]),
        (["1."], pa.string(), ["1."]),
        (["0x1f"], pa.string(), ["0x1f"]),
        (["1_000"], pa.string(), ["1_000"]),
        (["00.5"], pa.string(), ["00.5"]),
        (["٣"], pa.string(), ["٣"]),
        (["true", "1"], pa.string(), ["true", "1"]),
        (["true", "yes"], pa.string(), ["true", "yes"]),
        (["2020-01-01"], pa.string(), ["2020-01-01"]),
        (["1", '""', "3"], pa.string(), ["1", "", "3"]),
        (["", ""], pa.null(), [None, None]),
        (["9223372036854775807", "-9223372036854775808"], pa.int64(), [2**63 - 1, -(2**63)]),
        (["9223372036854775808", "1"], pa.uint64(), [2**63, 1]),
        (["18446744073709551615"], pa.uint64(), [2**64 - 1]),
        (["18446744073709551616"], pa.string(), ["18446744073709551616"]),
        (["9223372036854775808", "-1"], pa.string(), ["9223372036854775808", "-1"]),
        (["9223372036854775808", "0.5"], pa.float64(), [2.0**63, 0.5]),
        (["1" + "0" * 400, "0.5"], pa.string(), ["1" + "0" * 400, "0.5"]),
        (["1e400"], pa.string(), ["1e400"]),
    ],
    ids=str,
)
def test_a_column_is_of_the_narrowest_type_that_holds_it(
    tmp_path: Path, fields: list[str], kind: pa.DataType, values: list[Any]
) -> None:
    path = write(tmp_path / "rows.csv", "a,b\n" + "".join(f"{field},x\n" for field in fields))
    assert open_source(path).schema.field("a").type == kind
    assert column_of(path, "a") == values
    assert column_of(path, "a", text_columns=["a"]) == [
        None if field == "" else field.replace('""', "") for field in fields
    ]


def test_types_are_found_over_all_values_of_all_files(tmp_path: Path) -> None:
    write(tmp_path / "1.csv", "a,b\n" + "1,1\n" * 70_000)
    write(tmp_path / "2.csv", "b,a\nx,2.5\n")
    source = open_source(tmp_path)
    assert source.schema == pa.schema([("a", pa.float64()), ("b", pa.string())])
    assert source.rows == 70_001
    assert rows_of(source)[-1] == {"a": 2.5, "b": "x"}


def test_polars_and_pandas_write_the_same_rows(tmp_path: Path) -> None:
    columns = {"text": ["a,b", 'say "hi"', "two\nlines", None], "x": [1.5, float("inf"), None, 1e300]}
    flags = {"flag": [True, False, True, False], "n": [1, 2, 3, 2**62]}
    pl.DataFrame(columns | flags).write_csv(tmp_path / "polars.csv")
    pandas = """text,x,flag,n
"a,b",1.5,True,1
"say ""hi\""",inf,False,2
"two
lines",,True,3
,1e+300,False,4611686018427387904
"""
    assert rows_of(open_source(tmp_path / "polars.csv")) == pl.DataFrame(columns | flags).to_dicts()
    assert rows_of(open_source(write(tmp_path / "pandas.csv", pandas))) == pl.DataFrame(columns | flags).to_dicts()


def test_nan_is_a_number(tmp_path: Path) -> None:
    path = write(tmp_path / "nan.csv", "a,b\nNaN,1\nnan,2\n")
    assert all(math.isnan(value) for value in column_of(path, "a"))


def test_rows_that_cannot_be_decoded_are_refused_and_reading_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", b"a,b\n1,x\n2\n3,y,z\n\n4,caf\xe9\n5,ok\n")
    source = open_source(path)
    assert source.rows == 5
    assert rows_of(source) == [{"a": 1, "b": "x"}, {"a": 5, "b": "ok"}]
    assert ordinals_of(source) == [(0, 0), (0, 4)]
    found = [(record.row, record.reason, record.detail, record.content) for record in refused_by(source)]
    assert sorted(found) == [
        (2, "undecodable", "1 fields instead of 2", b"2"),
        (3, "undecodable", "3 fields instead of 2", b"3,y,z"),
        (4, "undecodable", "not UTF-8", b"4,caf\xe9"),
    ]
    assert sorted(refused_by(source, ["b"]), key=lambda record: record.row) == sorted(
        refused_by(source), key=lambda record: record.row
    )
    with pytest.raises(SourceError, match=r"rows\.csv, row \d: undecodable: "):
        list(source.batches())


def test_values_of_refused_rows_decide_no_type(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "a,b\n1,2\nword,3,4\n5,6\n")
    assert open_source(path).schema.types == [pa.int64(), pa.int64()]


def test_line_breaks_of_any_kind_and_no_last_one(tmp_path: Path) -> None:
    for text in (
        "a,b\n1,x\n2,y\n",
        "a,b\r\n1,x\r\n2,y\r\n",
        "a,b\r1,x\r2,y\r",
        "a,b\n1,x\n2,y",
        "\ufeffa,b\n\n1,x\n\n2,y",
    ):
        assert rows_of(open_source(write(tmp_path / "rows.csv", text))) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], (
            text
        )


def test_a_blank_line_is_null_where_there_is_one_column(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": ["x", None, "", "y"]})
    frame.write_csv(tmp_path / "one.csv")
    source = open_source(tmp_path / "one.csv")
    assert rows_of(source) == frame.to_dicts()
    assert source.rows == 4


def test_quotes_in_the_middle_of_a_field_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'a,b\n5" pipe,x\n"6"" pipe",y\n"7"" pi"pe,z\n')
    assert column_of(path, "a") == ['5" pipe', '6" pipe', '7" pipe']


def test_a_quote_that_is_never_closed_costs_its_line_only(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'a,b\n1,x\n2,"open\n3,y\n"4",z\n5,w')
    source = open_source(path)
    # The quote of line 3 swallows what follows up to the next quote; that is what the format says.
    assert {"a": 1, "b": "x"} in [{"a": int(row["a"]), "b": row["b"]} for row in rows_of(source)]
    path = write(tmp_path / "last.csv", 'a,b\n1,x\n2,"open\n3,y\n4,z\n')
    source = open_source(path)
    assert rows_of(source) == [{"a": 1, "b": "x"}, {"a": 3, "b": "y"}, {"a": 4, "b": "z"}]
    assert ordinals_of(source) == [(0, 0), (0, 2), (0, 3)]
    (refused,) = refused_by(source)
    assert (refused.row, refused.detail) == (2, "a quote is opened and never closed")
    assert refused.content == b'2,"open\n'


def test_many_quotes_that_are_never_closed_cost_no_quadratic_time(tmp_path: Path) -> None:
    lines = 30_000
    path = write(tmp_path / "rows.csv", 'a,b\n1,x\n"\n' + 'a","\n' * lines)
    source = open_source(path)
    assert rows_of(source)[0] == {"a": 1, "b": "x"}
    assert {record.detail for record in refused_by(source)} == {"a quote is opened and never closed"}
    assert len(refused_by(source)) <= 30


@pytest.mark.parametrize("block", [16, 64, 1 << 20])
def test_a_record_over_the_limit_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", block)
    long = "z" * 300 + "\n" + 'z""' * 40 + "\n,"
    path = write(tmp_path / "rows.csv", f'a,b\n1,x\n2,{"y" * 300}\n3,"{long}"\n4,z\r\n5,"{"w" * 150}"\n6,"q"\n')
    source = open_source(path, limits=Limits(max_line_bytes=120))
    assert rows_of(source) == [{"a": 1, "b": "x"}, {"a": 4, "b": "z"}, {"a": 6, "b": "q"}]
    assert ordinals_of(source) == [(0, 0), (0, 3), (0, 5)]
    refused = refused_by(source)
    assert [(record.row, record.reason) for record in refused] == [(2, "too_large"), (3, "too_large"), (5, "too_large")]
    assert refused[0].detail == "a record of 303 bytes, more than max_line_bytes=120"
    assert (refused[0].content or b"").startswith(b"2,yyy")


def test_a_long_cell_takes_time_in_proportion(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", b'a,b\n1,"' + b"x" * 12_000_000 + b'"\n2,y\n')
    assert [len(row["b"]) for row in rows_of(open_source(path))] == [12_000_000, 1]


def test_a_long_quote_that_is_never_closed_costs_its_line_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", 50)
    path = write(tmp_path / "rows.csv", 'a,b\n1,x\n2,"open\n' + "".join(f"{n},y\n" for n in range(3, 100)))
    source = open_source(path, limits=Limits(max_line_bytes=100))
    assert [row["a"] for row in rows_of(source)] == [1, *range(3, 100)]
    (refused,) = refused_by(source)
    assert (refused.row, refused.reason, refused.detail) == (2, "undecodable", "a quote is opened and never closed")


_FIELD = st.text(st.sampled_from('ab",\n\r\0 é'), max_size=8)


@settings(max_examples=80)
@given(rows=st.lists(st.lists(_FIELD, min_size=2, max_size=2), min_size=1, max_size=8), block=st.integers(1, 40))
@example(rows=[['"', "\r"], ["\n", ","]], block=1)
def test_well_formed_rows_are_read_back_at_any_block_size(
    tmp_path_factory: Any, rows: list[list[str]], block: int
) -> None:
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK_BYTES", block)
        source = open_source(path, text_columns=["a", "b"])
        assert [[row["a"], row["b"]] for row in rows_of(source)] == rows


@settings(max_examples=100)
@given(text=st.text(st.sampled_from('a1",\n\r'), max_size=40), block=st.integers(1, 40))
@example(text='"a"\r', block=1)
@example(text='""",', block=3)
def test_any_text_is_read_the_same_at_any_block_size(tmp_path_factory: Any, text: str, block: int) -> None:
    path = write(tmp_path_factory.mktemp("csv") / "rows.csv", "a,b\n1,1\n" + text)
    whole = open_source(path)
    expected = rows_of(whole), ordinals_of(whole), refused_by(whole)
    assert whole.rows == len(expected[0]) + len(expected[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK_BYTES", block)
        pieces = open_source(path)
        found = rows_of(pieces), ordinals_of(pieces), refused_by(pieces)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert sorted(record.row for record in found[2]) == sorted(record.row for record in expected[2])


def test_tabs_separate_the_fields_of_tsv(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.tsv", 'a\tb\n1\tx,y\n2\t"p\tq"\n')
    assert rows_of(open_source(path)) == [{"a": 1, "b": "x,y"}, {"a": 2, "b": "p\tq"}]


def test_headers_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    cases: list[tuple[str | bytes, str]] = [
        ("a,b,a\n1,2,3\n", "two columns are called 'a'; rename one of them"),
        (b"\xff\xfea\x00\n\x00", "is UTF-16; write it as UTF-8"),
        (b"caf\xe9,b\n1,2\n", "is no CSV file: its header is not UTF-8"),
        ("\n\n", "is no CSV file: it has no header"),
        ('"a,b\n1,2\n', "is no CSV file: it has no header"),
        ("a,b\n", "holds no data: a header and no rows"),
        ("a,b\n1\n2\n", "holds no data: none of 2 rows can be read"),
    ]
    for text, message in cases:
        with pytest.raises(SourceError, match=message):
            open_source(write(tmp_path / "rows.csv", text))
    with pytest.raises(LimitError, match=r"rows\.csv: 3 columns, more than max_columns=2"):
        open_source(write(tmp_path / "rows.csv", "a,b,c\n1,2,3\n"), limits=Limits(max_columns=2))
    with pytest.raises(LimitError, match=r"rows\.csv: 2 rows, more than max_rows=1"):
        open_source(write(tmp_path / "rows.csv", "a\n1\n2\n"), limits=Limits(max_rows=1))


def test_a_header_is_names_whatever_it_looks_like(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", '1,2020-01-01,"a ""b""\nc",\n1,2,3,4\n')
    assert open_source(path).schema.names == ["1", "2020-01-01", 'a "b"\nc', ""]


def test_a_wide_file_is_read(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(2000)]
    path = write(tmp_path / "rows.csv", ",".join(names) + "\n" + ",".join(map(str, range(2000))) + "\n")
    assert rows_of(open_source(path)) == [dict(zip(names, range(2000), strict=True))]
