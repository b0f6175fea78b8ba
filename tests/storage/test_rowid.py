"""Row ids depend on what a row holds, and on nothing else."""

from __future__ import annotations

import datetime as dt
import hashlib
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import ColumnError, RowIdError
from datapipe.storage.rowid import (
    apply_counters,
    content_digests,
    count_duplicates,
    ids_from_arrow,
    ids_to_arrow,
    ids_to_hex,
    value_digests,
)

INT_TYPES = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
LIST_KINDS = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda kind: pa.list_(kind, 2)]
NAN = float("nan")

texts = st.one_of(st.none(), st.text(max_size=6))
NESTED = pa.struct(
    [("b", pa.list_(pa.string())), ("a", pa.list_(pa.list_(pa.float64()))), ("c", pa.map_("string", "bool"))]
)
nested = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {
            "a": st.one_of(
                st.none(), st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.floats()), max_size=3)))
            ),
            "b": st.one_of(st.none(), st.lists(texts, max_size=3)),
            "c": st.one_of(st.none(), st.lists(st.tuples(st.text(max_size=2), st.booleans()), max_size=2)),
        }
    ),
)


def digests_of(values: list[Any], kind: pa.DataType, name: str = "x") -> list[str]:
    return ids_to_hex(content_digests(pa.table({name: pa.array(values, kind)})))


def digest_of(value: Any, kind: pa.DataType | None = None, name: str = "x") -> str:
    return ids_to_hex(content_digests(pa.table({name: pa.array([value], kind)})))[0]


def length(number: int) -> bytes:
    return number.to_bytes(8, "little")


def test_a_row_is_the_digest_of_its_columns_by_name() -> None:
    table = pa.table({"text": ["hi"], "label": pa.array([-2], pa.int16()), "none": pa.array([None], pa.string())})
    expected = b"".join(
        [
            length(5) + b"label" + b"i" + (-2).to_bytes(8, "little", signed=True),
            length(4) + b"none" + b"n",
            length(4) + b"text" + b"s" + length(2) + b"hi",
        ]
    )
    assert ids_to_hex(content_digests(table)) == [hashlib.blake2b(expected, digest_size=16).hexdigest()]


def test_nested_values_are_spelled_out_and_lists_of_floats_are_packed() -> None:
    kind = pa.struct([("v", pa.list_(pa.float64())), ("s", pa.list_(pa.string()))])
    value = {"v": [1.5, -0.0], "s": ["a", None]}
    listed = b"l" + length(2) + b"s" + length(1) + b"a" + b"n"
    packed = b"v" + length(2) + np.array([1.5, 0.0], "<f4").tobytes()
    inner = length(1) + b"s" + listed + length(1) + b"v" + packed
    expected = length(1) + b"x" + b"t" + length(2) + inner
    assert digest_of(value, kind) == hashlib.blake2b(expected, digest_size=16).hexdigest()


@given(
    rows=st.lists(st.tuples(texts, st.integers(-9, 9), st.booleans()), max_size=6),
    order=st.permutations(["a", "b", "c"]),
)
def test_the_order_of_columns_does_not_matter(rows: list[tuple[Any, ...]], order: list[str]) -> None:
    columns = dict(
        zip("abc", (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], []), strict=True)
    )
    schema = pa.schema([("a", pa.string()), ("b", pa.int64()), ("c", pa.bool_())])
    table = pa.table(columns, schema=schema)
    assert (content_digests(table) == content_digests(table.select(order))).all()


@given(values=st.lists(st.one_of(st.none(), st.integers(0, 127)), max_size=8))
def test_the_width_of_integers_does_not_matter(values: list[int | None]) -> None:
    assert len({tuple(digests_of(values, kind)) for kind in INT_TYPES}) == 1


@given(values=st.lists(st.one_of(st.none(), st.floats(width=16)), max_size=8))
def test_the_width_of_floats_does_not_matter(values: list[float | None]) -> None:
    kinds = (pa.float16(), pa.float32(), pa.float64())
    assert len({tuple(digests_of(values, kind)) for kind in kinds}) == 1
    assert len({digest_of(values, pa.list_(kind)) for kind in kinds}) == 1


@given(values=st.lists(texts, max_size=8))
def test_the_coding_of_strings_does_not_matter(values: list[str | None]) -> None:
    found = {tuple(digests_of(values, kind)) for kind in TEXT_TYPES}
    runs = pa.RunEndEncodedArray.from_arrays(
        np.arange(1, len(values) + 1, dtype=np.int32), pa.array(values, pa.string())
    )
    found.add(tuple(ids_to_hex(content_digests(pa.table({"x": runs})))))
    assert len(found) == 1


@pytest.mark.parametrize("inner", [pa.float32(), pa.int16(), pa.string()], ids=str)
def test_the_kind_of_list_does_not_matter(inner: pa.DataType) -> None:
    values = [[1, 2], None, [3, None], [0, 5]]
    rows = [value and [None if v is None else str(v) if inner == pa.string() else v for v in value] for value in values]
    assert len({tuple(digests_of(rows, kind(inner))) for kind in LIST_KINDS}) == 1
    assert len({tuple(digests_of(rows, kind(inner))[1:]) for kind in LIST_KINDS}) == 1


def test_what_differs_only_in_type_or_emptiness_has_digests_of_its_own() -> None:
    values = [
        digest_of(None, pa.string()),
        digest_of("", pa.string()),
        digest_of(b"", pa.binary()),
        digest_of([], pa.list_(pa.string())),
        digest_of([None], pa.list_(pa.string())),
        digest_of([""], pa.list_(pa.string())),
        digest_of({"a": None}, pa.struct([("a", pa.string())])),
        digest_of(0, pa.int64()),
        digest_of(0.0, pa.float64()),
        digest_of(value=False, kind=pa.bool_()),
        digest_of("0", pa.string()),
        digest_of([0.0], pa.list_(pa.float32())),
        digest_of([0], pa.list_(pa.int8())),
        digest_of(-1, pa.int64()),
        digest_of(2**64 - 1, pa.uint64()),
    ]
    assert len(set(values)) == len(values)


def test_a_null_is_a_null_and_an_empty_list_an_empty_list_whatever_the_type() -> None:
    assert (
        len({digest_of(None, kind) for kind in [pa.null(), pa.int8(), pa.string(), NESTED, pa.list_(pa.int8())]}) == 1
    )
    assert len({digest_of([], pa.list_(kind)) for kind in [pa.null(), pa.int8(), pa.string(), pa.float32()]}) == 1


def test_zero_has_no_sign_and_nan_one_form() -> None:
    quiet = np.array([0x7FC00001, 0xFFC00000], np.uint32).view(np.float32)
    assert digest_of(-0.0) == digest_of(0.0)
    assert digest_of([-0.0]) == digest_of([0.0])
    assert len({digest_of(value, pa.float32()) for value in [*quiet.tolist(), NAN]}) == 1
    lists = pa.ListArray.from_arrays([0, 1, 2], pa.array(quiet))
    assert set(ids_to_hex(content_digests(pa.table({"x": lists})))) == {digest_of([NAN])}


def test_a_float64_that_no_float32_holds_differs_from_its_rounding() -> None:
    rounded = float(np.float32(0.1))
    assert digest_of([0.1]) != digest_of([rounded])
    assert digest_of([rounded]) == digest_of([rounded], pa.list_(pa.float32()))
    assert digest_of([1e300]) != digest_of([float("inf")])
    mixed = digests_of([[0.1], [0.5], [], None, [0.1, None]], pa.list_(pa.float64()))
    assert mixed == [digest_of(value, pa.list_(pa.float64())) for value in [[0.1], [0.5], [], None, [0.1, None]]]


@given(left=st.tuples(texts, texts), right=st.tuples(texts, texts))
def test_neighbouring_columns_never_run_into_each_other(left: tuple[Any, Any], right: tuple[Any, Any]) -> None:
    schema = pa.schema([("a", pa.string()), ("b", pa.string())])
    rows = [dict(zip("ab", row, strict=True)) for row in (left, right)]
    first, second = ids_to_hex(content_digests(pa.Table.from_pylist(rows, schema)))
    assert (first == second) == (left == right)


@given(name=st.text("ab", max_size=3), value=st.text("ab", max_size=3), other=st.text("ab", max_size=3))
def test_a_name_never_runs_into_its_value(name: str, value: str, other: str) -> None:
    joined = name + value
    assert (digest_of(value, pa.string(), name) == digest_of(joined[len(other) :], pa.string(), other)) == (
        name == other
    )


@given(values=st.lists(nested, min_size=2, max_size=5))
def test_nested_rows_share_a_digest_just_when_they_are_equal(values: list[Any]) -> None:
    # repr tells NaN from nothing but NaN; adding 0.0 takes the sign off zero
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(value[key]) for key in sorted(value)}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value + 0.0 if isinstance(value, float) else value

    found = digests_of(values, NESTED)
    for (one, a), (two, b) in pairwise(zip(values, found, strict=True)):
        assert (a == b) == (repr(plain(one)) == repr(plain(two)))


@given(values=st.lists(nested, max_size=6), cuts=st.lists(st.integers(0, 6), max_size=3))
def test_digests_do_not_depend_on_the_cut_of_the_table(values: list[Any], cuts: list[int]) -> None:
    table = pa.table(
        {"x": pa.array(values, NESTED), "y": pa.array([[1.5, 2.0]] * len(values), pa.list_(pa.float32(), 2))}
    )
    bounds = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    pieces = [table.slice(a, b - a) for a, b in pairwise(bounds)]
    whole = content_digests(table)
    assert (np.concatenate([content_digests(piece) for piece in pieces]) == whole).all()
    assert (content_digests(pa.concat_tables(pieces)) == whole).all()
    if values:
        batches = [content_digests(batch) for batch in table.to_batches(max_chunksize=1)]
        assert (np.concatenate(batches) == whole).all()


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (np.datetime64("2024-05-01T10:00:00.120000"), pa.timestamp("us"), "2024-05-01T10:00:00.12"),
        (np.datetime64("2024-05-01T10:00:00", "ns"), pa.timestamp("ns"), "2024-05-01T10:00:00"),
        (np.datetime64("2024-05-01T10:00:00"), pa.timestamp("s"), "2024-05-01T10:00:00"),
        (dt.datetime(2024, 5, 1, 10, tzinfo=dt.UTC), pa.timestamp("ms", "+05:30"), "2024-05-01T10:00:00Z"),
        (dt.date(2024, 5, 1), pa.date32(), "2024-05-01"),
        (dt.date(2024, 5, 1), pa.date64(), "2024-05-01"),
        (dt.time(1, 2, 30), pa.time64("us"), "01:02:30"),
        (dt.time(1, 2, 30, 500000), pa.time32("ms"), "01:02:30.5"),
        (dt.timedelta(seconds=-90, milliseconds=500), pa.duration("ms"), "PT-89.5S"),
        (Decimal("150.50"), pa.decimal128(10, 4), "150.5"),
        (Decimal("0.0000001"), pa.decimal128(10, 7), "0.0000001"),
        (Decimal(100), pa.decimal256(50, 2), "100"),
    ],
    ids=str,
)
def test_times_and_decimals_are_the_strings_that_a_text_format_holds(value: Any, kind: pa.DataType, text: str) -> None:
    assert digest_of(value, kind) == digest_of(text)
    assert digests_of([None, value], kind) == [digest_of(None, pa.null()), digest_of(text)]


def test_binary_of_fixed_width_and_extensions_are_digested_by_their_content() -> None:
    assert digest_of(b"ab", pa.binary(2)) == digest_of(b"ab") == digest_of(b"ab", pa.binary_view())
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))
    assert ids_to_hex(content_digests(pa.table({"x": uuids})))[0] == digest_of(b"0" * 16)


def test_rows_without_columns_and_tables_without_rows_are_digested() -> None:
    assert content_digests(pa.table({"x": pa.array([], NESTED)})).shape == (0, 2)
    assert content_digests(pa.table({"x": pa.chunked_array([], pa.string())})).shape == (0, 2)


def test_columns_without_canonical_bytes_or_a_name_of_their_own_are_refused() -> None:
    interval = pa.table({"wait": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(
        ColumnError, match="column 'wait': a value of type month_day_nano_interval has no canonical bytes"
    ):
        content_digests(interval)
    twice = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(ColumnError, match="two columns are called 'a'"):
        content_digests(twice)


def test_ids_of_a_column_do_not_depend_on_its_type_or_cut() -> None:
    narrow, wide = pa.array([1, 2, None], pa.int8()), pa.chunked_array([[1], [2, None]], pa.int64())
    assert (value_digests(narrow) == value_digests(wide)).all()
    assert (value_digests(narrow) == value_digests(pa.array(["1", "2", None]))).all()
    assert value_digests(pa.array(["1"]))[0].tolist() != value_digests(pa.array(["01"]))[0].tolist()
    expected = hashlib.blake2b(b"s" + length(1) + b"1", digest_size=16).hexdigest()
    assert ids_to_hex(value_digests(narrow))[0] == expected


def test_counters_number_identical_rows_from_zero() -> None:
    digests = np.array([[1, 1], [1, 1], [1, 2], [2, 2], [2, 2], [2, 2]], np.uint64)
    assert count_duplicates(digests).tolist() == [0, 1, 0, 0, 1, 2]
    assert count_duplicates(digests[:0]).tolist() == []


def test_the_first_of_identical_rows_keeps_its_digest_and_the_others_keep_its_high_word() -> None:
    digests = np.array([[7, 9], [7, 9]], np.uint64)
    ids = apply_counters(digests, np.array([0, 1]))
    message = (7).to_bytes(8, "big") + (9).to_bytes(8, "big") + length(1)
    assert ids[0].tolist() == [7, 9]
    assert ids[1].tolist() == [7, int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "big")]
    assert digests.tolist() == [[7, 9], [7, 9]]


@given(values=st.lists(st.integers(0, 4), max_size=30), seed=st.integers(0, 99))
def test_duplicates_get_ids_of_their_own_and_the_same_set_in_any_order(values: list[int], seed: int) -> None:
    def ids_of(column: list[int]) -> list[str]:
        digests = content_digests(pa.table({"x": pa.array(column, pa.int64())}))
        ordered = digests[np.lexsort((digests[:, 1], digests[:, 0]))]
        return ids_to_hex(apply_counters(ordered, count_duplicates(ordered)))

    shuffled = np.random.default_rng(seed).permutation(np.array(values, np.int64)).tolist()
    ids = ids_of(values)
    assert len(set(ids)) == len(values)
    assert sorted(ids) == sorted(ids_of(shuffled))


@given(
    rows=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=20), start=st.integers(0, 3)
)
def test_ids_survive_arrow_in_the_order_of_their_bytes(rows: list[tuple[int, int]], start: int) -> None:
    ids = np.array(rows, np.uint64).reshape(-1, 2)
    column = ids_to_arrow(ids)
    assert column.type == pa.binary(16)
    assert (ids_from_arrow(column[start:]) == ids[start:]).all()
    assert (ids_from_arrow(pa.chunked_array([column[:start], column[start:]])) == ids).all()
    assert [value.hex() for value in column.to_pylist()] == ids_to_hex(ids)
    assert sorted(rows) == [rows[i] for i in sorted(range(len(rows)), key=lambda i: column[i].as_py())]


def test_what_is_no_column_of_ids_is_refused() -> None:
    with pytest.raises(RowIdError, match=r"row ids are fixed_size_binary\[16\], but this column is string"):
        ids_from_arrow(pa.array(["a"]))
    with pytest.raises(RowIdError, match="1 of 2 row ids are null"):
        ids_from_arrow(pa.array([None, b"0" * 16], pa.binary(16)))
    assert ids_from_arrow(pa.chunked_array([], pa.binary(16))).shape == (0, 2)
