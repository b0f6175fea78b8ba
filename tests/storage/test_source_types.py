"""The arithmetic below all formats: one schema for many, and what values weigh."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import SourceError
from datapipe.storage.formats.cells import cell_bytes, slices, undecodable
from datapipe.storage.formats.kinds import Kind, integer_kind, of_strings, scalar_type
from datapipe.storage.formats.types import ordered, unify

D1, D2 = pa.decimal128(5, 2), pa.decimal128(6, 4)


@pytest.mark.parametrize(
    ("kinds", "united"),
    [
        ([pa.int8(), pa.int32(), pa.int16()], pa.int32()),
        ([pa.uint8(), pa.int8()], pa.int16()),
        ([pa.uint8(), pa.int8(), pa.uint16()], pa.int32()),
        ([pa.uint32(), pa.int8()], pa.int64()),
        ([pa.uint8(), pa.uint64()], pa.uint64()),
        ([pa.uint64(), pa.int8()], None),
        ([pa.uint64(), pa.int8(), pa.float32()], pa.float64()),
        ([pa.int8(), pa.float32()], pa.float64()),
        ([pa.float16(), pa.float32()], pa.float32()),
        ([pa.null(), pa.string()], pa.string()),
        ([pa.null(), pa.null()], pa.null()),
        ([pa.string(), pa.int64()], None),
        ([pa.bool_(), pa.int64()], None),
        ([pa.string(), pa.binary()], None),
        ([pa.binary(4), pa.binary(8)], pa.binary()),
        ([pa.list_(pa.int8()), pa.list_(pa.float32())], pa.list_(pa.float64())),
        ([pa.list_(pa.float32(), 3), pa.list_(pa.float32(), 4)], pa.list_(pa.float32())),
        ([pa.list_(pa.float32(), 3), pa.list_(pa.float64(), 3)], pa.list_(pa.float64(), 3)),
        ([pa.list_(pa.null()), pa.list_(pa.string())], pa.list_(pa.string())),
        ([pa.list_(pa.int8()), pa.list_(pa.string())], None),
        ([pa.struct([("a", pa.int8())]), pa.struct([("a", pa.string())])], None),
        ([pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us")], pa.timestamp("ns")),
        ([pa.timestamp("s"), pa.timestamp("s", tz="UTC")], None),
        ([D1, D2], pa.decimal128(7, 4)),
        ([pa.decimal128(38, 0), pa.decimal128(38, 38)], pa.decimal256(76, 38)),
    ],
    ids=str,
)
def test_types_unite_to_the_same_type_in_any_order(kinds: list[pa.DataType], united: pa.DataType | None) -> None:
    for order in permutations(kinds):
        schemas = [(f"{index}.parquet", pa.schema([("a", kind)])) for index, kind in enumerate(order)]
        if united is None:
            with pytest.raises(SourceError, match=r"column 'a' is .* and .*: no type holds both; write it as one type"):
                unify(schemas)
        else:
            assert unify(schemas) == pa.schema([("a", united)])


def test_columns_and_fields_come_in_the_order_of_the_fullest() -> None:
    few, many = pa.schema([("a", pa.int8()), ("c", pa.int8())]), pa.schema([(name, pa.int8()) for name in "abc"])
    for schemas in ([few, many], [many, few]):
        assert unify([("x", schema) for schema in schemas]).names == ["a", "b", "c"]
    assert ordered({"z": 0, "b": 1, "a": 1}) == ["z", "a", "b"]


def test_metadata_stays_where_all_files_agree() -> None:
    def schema(**notes: str) -> pa.Schema:
        return pa.schema([pa.field("a", pa.int8(), metadata=notes or None)])

    assert unify([("x", schema(k="1")), ("y", schema(k="1"))]).field("a").metadata == {b"k": b"1"}
    assert unify([("x", schema(k="1")), ("y", schema(k="2"))]).field("a").metadata is None
    assert unify([("x", schema(k="1")), ("y", schema())]).field("a").metadata is None


@given(
    st.lists(
        st.sampled_from(["1", "-7", "9223372036854775808", "18446744073709551616", "0.5", "true", "x"]), max_size=6
    )
)
def test_kinds_of_parts_add_up_to_the_kinds_of_the_whole(values: list[str]) -> None:
    whole = scalar_type(of_strings([pa.array(values, pa.string())])[0]) or pa.string()
    parts = Kind(0)
    for value in values:
        parts |= of_strings([pa.array([value])])[0]
    assert (scalar_type(parts) or pa.string()) == whole


def test_integers_know_what_holds_them() -> None:
    assert scalar_type(integer_kind(-(2**63), 2**63 - 1)) == pa.int64()
    assert scalar_type(integer_kind(0, 2**64 - 1)) == pa.uint64()
    assert scalar_type(integer_kind(-1, 2**63)) is None
    assert scalar_type(integer_kind(0, 2**64)) is None
    assert scalar_type(integer_kind(-(2**63) - 1, 0)) is None


def weight(value: Any, kind: pa.DataType) -> int:
    """What one value weighs, by its definition."""
    if pa.types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return sum(weight(None if value is None else value[field.name], field.type) for field in fields)
    if pa.types.is_list(kind):
        return sum(weight(item, kind.value_type) for item in value or [])
    if pa.types.is_string(kind):
        return len((value or "").encode())
    return 8


_TEXTS = st.one_of(st.none(), st.text(max_size=20))
_KIND = pa.struct([("t", pa.string()), ("l", pa.list_(pa.list_(pa.string()))), ("n", pa.list_(pa.int64()))])
_STRUCTS = st.fixed_dictionaries(
    {
        "t": _TEXTS,
        "l": st.lists(st.lists(_TEXTS, max_size=3), max_size=3),
        "n": st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=3)),
    }
)


@given(values=st.lists(_STRUCTS, max_size=12), start=st.integers(0, 5), length=st.integers(0, 12))
def test_cells_weigh_what_they_decode_to_in_any_slice_and_coding(
    values: list[dict[str, Any]], start: int, length: int
) -> None:
    array = pa.array(values, _KIND).slice(start, length)
    expected = [weight(value, _KIND) for value in values[start : start + length]]
    assert cell_bytes(array).tolist() == expected
    texts = pa.array([value["t"] for value in values], pa.string())
    lengths = [weight(value["t"], pa.string()) for value in values][start : start + length]
    for coded in (texts.dictionary_encode(), texts.cast(pa.string_view()), texts.cast(pa.large_string())):
        assert cell_bytes(coded.slice(start, length)).tolist() == lengths


def test_a_dictionary_is_weighed_by_what_it_points_to() -> None:
    coded = pa.DictionaryArray.from_arrays(pa.array([0, None, 1, 0], pa.int8()), pa.array(["x" * 1000, "y"]))
    assert cell_bytes(coded).tolist() == [1000, 0, 1, 1000]
    full = pa.DictionaryArray.from_arrays(pa.array(np.arange(256), pa.uint8()), pa.array(["z"] * 256))
    assert cell_bytes(full).sum() == 256
    pairs = pa.FixedSizeListArray.from_arrays(coded, 2)
    assert cell_bytes(pairs).tolist() == [1000, 1001]
    assert cell_bytes(pairs[1:]).tolist() == [1001]


@given(bad=st.sets(st.integers(0, 40)), rows=st.integers(0, 41))
def test_every_row_that_is_not_utf8_is_found(bad: set[int], rows: int) -> None:
    raw = pa.array([b"\xff" if row in bad else b"ok" for row in range(rows)], pa.binary())
    expected = sorted(row for row in bad if row < rows)
    texts = raw.view(pa.string())
    assert undecodable(texts) == expected
    assert undecodable(texts[3:]) == [row - 3 for row in expected if row >= 3]
    lists = pa.ListArray.from_arrays(pa.array(range(0, 2 * (rows // 2) + 1, 2), pa.int32()), texts)
    assert undecodable(lists) == sorted({row // 2 for row in expected if row < 2 * (rows // 2)})
    assert undecodable(lists[1:]) == [row - 1 for row in undecodable(lists) if row]
    assert undecodable(pa.StructArray.from_arrays([texts], ["t"])) == expected


@given(weights=st.lists(st.integers(0, 50), max_size=60), nbytes=st.integers(1, 60))
def test_slices_cover_all_rows_in_order_and_stay_below_the_limit(weights: list[int], nbytes: int) -> None:
    cuts = slices(np.array(weights, np.int64), nbytes=nbytes)
    assert [row for start, stop in cuts for row in range(start, stop)] == list(range(len(weights)))
    assert all(sum(weights[start:stop]) <= nbytes or stop - start == 1 for start, stop in cuts)
    assert all(stop > start for start, stop in cuts)
