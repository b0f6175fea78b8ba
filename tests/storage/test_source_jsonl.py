"""JSON Lines: the types of columns, mixed ones, what is refused, and that both parsers read the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datapipe.errors import LimitError, SourceError
from datapipe.storage.formats import jsonl, records
from datapipe.storage.formats.shapes import fitted
from datapipe.storage.source import Limits, Source, open_source
from tests.storage.sources import column_of, ordinals_of, refused_by, rows_of, write, write_jsonl

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, -2, None], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([1.0, 2.0], pa.float64()),
        ([True, None], pa.bool_()),
        (["a", None, ""], pa.string()),
        ([None, None], pa.null()),
        ([2**63, 1], pa.uint64()),
        ([2**63 - 1, -(2**63)], pa.int64()),
        ([2**70, 0.5], pa.float64()),
        ([[1, 2], [], None], pa.list_(pa.int64())),
        ([[1, 2.5], [None]], pa.list_(pa.float64())),
        ([[]], pa.list_(pa.null())),
        ([[["a"]], [[]]], pa.list_(pa.list_(pa.string()))),
        ([{"x": 1}, {"y": "z"}, None], pa.struct([("x", pa.int64()), ("y", pa.string())])),
        ([[{"x": 1}], [{"x": 0.5}]], pa.list_(pa.struct([("x", pa.float64())]))),
    ],
    ids=str,
)
def test_a_column_is_of_the_type_that_holds_all_its_values(
    tmp_path: Path, values: list[Any], kind: pa.DataType
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"a": value} for value in values])
    assert open_source(path).schema == pa.schema([("a", kind)])
    assert column_of(path, "a") == pa.array([fitted(value, kind) for value in values], kind).to_pylist()


@pytest.mark.parametrize(
    "values",
    [
        [1, "1", None, True, 2.5, [1], {"x": 1}],
        [[1], ["a"]],
        [{"x": 1}, {"x": "a"}],
        [{}, {}],
        [2**64, 1],
        [2**63, -1],
        [10**400, 0.5],
        [[{}]],
    ],
    ids=lambda values: str(values)[:40],
)
def test_a_mixed_column_is_kept_as_json_text(tmp_path: Path, values: list[Any]) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"a": value, "b": 1} for value in values])
    source = open_source(path)
    assert source.schema == pa.schema([("a", pa.string()), ("b", pa.int64())])
    assert [None if text is None else json.loads(text) for text in column_of(path, "a")] == values
    assert rows_of(source, ["b"]) == [{"b": 1}] * len(values)
    assert not refused_by(source)


def test_text_columns_refuse_what_is_no_string(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1}, {"text": 5, "n": "x"}, {"text": None, "n": 2}, {"n": 3}, {"text": ["b"], "n": 4}]
    source = open_source(write_jsonl(tmp_path / "rows.jsonl", rows), text_columns=["text"])
    assert source.schema == pa.schema([("text", pa.string()), ("n", pa.int64())])
    assert [row["n"] for row in rows_of(source)] == [1, 2, 3]
    found = [(record.row, record.reason, record.detail, record.content) for record in refused_by(source, ["n"])]
    assert found == [
        (2, "wrong_type", "column 'text' holds a number, no string: 5", b'{"text": 5, "n": "x"}'),
        (5, "wrong_type", "column 'text' holds an array, no string: [\"b\"]", b'{"text": ["b"], "n": 4}'),
    ]


BAD_LINES = [
    (b'{"a": 1', "not JSON: "),
    (b'{"a": 1} {"a": 2}', "not JSON: Extra data"),
    (b"[1]", "an array, no JSON object"),
    (b'"a"', "a string, no JSON object"),
    (b"null", "null, no JSON object"),
    (b"7", "a number, no JSON object"),
    (b'{"a": caf\xe9}', "not UTF-8"),
    (b'{"a": "caf\xe9"}', "not UTF-8"),
    (b'{"a": "\\ud800"}', "a string holds half of a surrogate pair"),
    (b'{"\\udfff": 1}', "a string holds half of a surrogate pair"),
    (b'{"a": "tab\there"}', "not JSON: Invalid control character"),
    (b"{'a': 1}", "not JSON: "),
    (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper than max_depth=64"),
    (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
    (b'{"a": ' + b'{"b":' * 100 + b"1" + b"}" * 101, "nested deeper than max_depth=64"),
    (b'{"a": ' + b"1" * 5000 + b"}", "not JSON: Exceeds the limit"),
]


@pytest.mark.parametrize(("line", "detail"), BAD_LINES, ids=lambda value: str(value)[:30])
def test_a_line_that_is_no_record_is_refused_and_reading_goes_on(tmp_path: Path, line: bytes, detail: str) -> None:
    path = write(tmp_path / "rows.jsonl", b'{"a": 1}\n' + line + b'\n\n{"a": 2}')
    source = open_source(path)
    assert source.rows == 3
    assert rows_of(source) == [{"a": 1}, {"a": 2}]
    assert ordinals_of(source) == [(0, 0), (0, 3)]
    (refused,) = refused_by(source)
    assert (refused.row, refused.reason) == (2, "undecodable")
    assert refused.detail.startswith(detail)
    assert refused.content == line[:65_536]


def test_a_pair_of_surrogates_is_one_character(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b'{"a": "\\ud83d\\ude00"}\n')
    assert column_of(path, "a") == ["😀"]


def test_nan_and_infinity_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"a": Infinity}\n{"a": -Infinity}\n{"a": NaN}\n{"a": 1}\n')
    found = column_of(path, "a")
    assert found[:2] == [float("inf"), float("-inf")]
    assert found[2] != found[2]
    assert found[3] == 1.0


def test_the_last_of_two_equal_names_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"a": 1, "b": 2, "a": 3}\n')
    assert rows_of(open_source(path)) == [{"a": 3, "b": 2}]


def test_line_breaks_blank_lines_and_a_byte_order_mark_are_no_matter(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n   \n {"a": 2} \n\t\n{"a": 3}')
    source = open_source(path)
    assert rows_of(source) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert ordinals_of(source) == [(0, 0), (0, 3), (0, 5)]
    assert source.rows == 3


def test_the_order_of_columns_does_not_depend_on_the_order_of_records(tmp_path: Path) -> None:
    some = [{"id": 1, "text": "a"}, {"id": 2, "note": "x", "text": "b", "extra": 1}, {"extra": 2, "id": 3}]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        path = write_jsonl(tmp_path / "rows.jsonl", [some[n] for n in order])
        assert open_source(path).schema.names == ["id", "note", "text", "extra"]
    plain = [{"id": 1, "text": "a", "note": "x"}, {"id": 2, "text": "b"}]
    assert open_source(write_jsonl(tmp_path / "rows.jsonl", plain)).schema.names == ["id", "text", "note"]


def test_a_line_over_the_limit_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", 64)
    rows = [{"a": "x"}, {"a": "y" * 500}, {"a": "z"}]
    source = open_source(write_jsonl(tmp_path / "rows.jsonl", rows), limits=Limits(max_line_bytes=200))
    assert [row["a"] for row in rows_of(source)] == ["x", "z"]
    (refused,) = refused_by(source)
    assert (refused.row, refused.reason) == (2, "too_large")
    assert refused.detail == "a record of 510 bytes, more than max_line_bytes=200"


def test_short_lines_that_decode_to_wide_rows_are_metered(tmp_path: Path) -> None:
    wide = {f"c{n}": n for n in range(1000)}
    path = write(tmp_path / "rows.jsonl", json.dumps(wide) + "\n" + "{}\n" * 100_000)
    batches = open_source(path, limits=Limits(decoded_floor=64 << 20)).batches()
    assert next(batches).table.nbytes < 17 << 20
    with pytest.raises(LimitError, match=r"rows\.jsonl: its [\d,]+ bytes decode to more than 67,108,864 bytes"):
        list(batches)


def test_more_names_than_columns_allowed_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{f"c{n}": {"x": 1}} for n in range(20)])
    with pytest.raises(LimitError, match=r"rows\.jsonl: 31 columns, more than max_columns=30"):
        open_source(path, limits=Limits(max_columns=30))
    with pytest.raises(LimitError, match=r"rows\.jsonl: 20 rows, more than max_rows=5"):
        open_source(path, limits=Limits(max_rows=5))


def test_files_that_are_something_else_say_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no data: nothing but blank lines"):
        open_source(write(tmp_path / "rows.json", " [\n]"))
    with pytest.raises(SourceError, match="is UTF-16; write it as UTF-8"):
        open_source(write(tmp_path / "rows.jsonl", '{"a": 1}'.encode("utf-16")))
    with pytest.raises(SourceError, match="holds no data: nothing but blank lines"):
        open_source(write(tmp_path / "rows.jsonl", "\n\n"))
    with pytest.raises(SourceError, match="holds no data: none of its 2 lines can be read as a record"):
        open_source(write(tmp_path / "rows.jsonl", "a\nb\n"))


_KEYS = st.sampled_from(["a", "b", "ä", ""])
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**66), 2**66),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=5),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, max_size=3)),
    max_leaves=6,
)
_LINES = st.one_of(
    st.dictionaries(_KEYS, _VALUES, max_size=3).map(lambda record: json.dumps(record, ensure_ascii=False)),
    st.dictionaries(_KEYS, st.integers(0, 9), min_size=2).map(json.dumps),
    st.sampled_from(
        ["", " ", "{", "[]", '{"a": 1} {"a": 2}', '{"a":', "1}", '{"a": 1, "a": 2}', "\t", '{"a": 1e400}', "7"]
    ),
)


def everything(source: Source) -> Any:
    table = pa.concat_tables([batch.table for batch in source.batches(rejected=lambda _: None)])
    return repr(table.to_pylist()), ordinals_of(source), refused_by(source), source.schema, source.rows


@settings(max_examples=80)
@given(lines=st.lists(_LINES, min_size=1, max_size=12), block=st.integers(1, 60))
@example(lines=['{"a": 1} {"a": 2}', '{"a":', "3}"], block=1)
@example(lines=['{"a": -0, "b": 1.0}', '{"a": 0.5, "b": 1}'], block=1)
@example(lines=['{"b": [null, null]}'], block=1)
@example(lines=['{"b": {"c": [[null, null], [null]]}}'], block=60)
def test_both_parsers_read_the_same_at_any_block_size(tmp_path_factory: Any, lines: list[str], block: int) -> None:
    path = write(tmp_path_factory.mktemp("jsonl") / "rows.jsonl", '{"a": 1}\n' + "\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_quick", lambda *_: None)
        reference = everything(open_source(path))
    quick = everything(open_source(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK_BYTES", block)
        pieces = everything(open_source(path))
    assert quick[1:] == reference[1:] == pieces[1:]
    assert quick[0].replace("-0.0", "0.0") == reference[0].replace("-0.0", "0.0") == pieces[0].replace("-0.0", "0.0")


def test_a_clean_file_goes_through_the_quick_parser_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"row {n}", "n": n, "x": n / 2, "tags": ["a"], "s": {"k": n}} for n in range(1000)]
    source = open_source(write_jsonl(tmp_path / "rows.jsonl", rows))
    monkeypatch.setattr(source, "_slow", None)
    assert rows_of(source) == rows
