"""Items and results of every task through Arrow and back, with the same bits; and what no column can hold."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis.strategies import (
    SearchStrategy,
    binary,
    booleans,
    builds,
    data,
    floats,
    integers,
    lists,
    none,
    one_of,
    sampled_from,
    text,
)

from datapipe.errors import ItemError
from datapipe.workers.tasks.causal import CausalItem, CausalScores
from datapipe.workers.tasks.classify import ClassifyItem
from datapipe.workers.tasks.embed import Embedding
from datapipe.workers.tasks.image import ImageItem
from datapipe.workers.tasks.lookup import _HERE, find_task
from datapipe.workers.wire import from_arrow, to_arrow

TASKS = {name: find_task(name) for name in sorted(_HERE)}
SIDES = [(name, side) for name in TASKS for side in ("item", "result")]


def side_of(name: str, side: str) -> tuple[type, pa.Schema]:
    task = TASKS[name]
    return (task.item_type, task.item_schema()) if side == "item" else (task.result_type, task.result_schema())


def cells_of(column: pa.Field) -> SearchStrategy[Any]:
    kind = column.type
    found: SearchStrategy[Any]
    if pa.types.is_list(kind):
        floating = pa.types.is_floating(kind.value_type)
        number = floats(width=32, allow_nan=False) if floating else integers(-(2**31), 2**31 - 1)
        found = lists(number, max_size=5).map(lambda values: np.array(values, kind.value_type.to_pandas_dtype()))
    elif pa.types.is_string(kind):
        found = text(max_size=20)
    elif pa.types.is_binary(kind):
        found = binary(max_size=20)
    elif pa.types.is_boolean(kind):
        found = booleans()
    else:
        found = floats(width=32, allow_nan=False) if pa.types.is_floating(kind) else integers(0, 2**31 - 1)
    return one_of(none(), found) if column.nullable else found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and one.tobytes() == other.tobytes())
    return type(one) is type(other) and one == other


def through(values: list[Any], made: type, schema: pa.Schema) -> list[Any]:
    return from_arrow(to_arrow(values, schema), schema, made)


def test_a_vector_arrives_with_the_bits_that_it_left_with() -> None:
    sent = Embedding(np.array([0.1, -0.0, np.inf], np.float32), tokens=3, truncated=True)
    (found,) = through([sent], Embedding, TASKS["embed"].result_schema())
    assert found.vector.dtype == np.float32
    assert found.vector.tobytes() == sent.vector.tobytes()
    assert (found.tokens, found.truncated) == (3, True)


@pytest.mark.parametrize("name", TASKS)
def test_the_fields_of_items_and_results_are_the_columns_of_their_schemas(name: str) -> None:
    for side in ("item", "result"):
        made, schema = side_of(name, side)
        assert dataclasses.is_dataclass(made)
        assert made.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert [field.name for field in fields(made)] == schema.names
        hints = {field.name: str(field.type) for field in fields(made)}
        assert {column.name for column in schema if column.nullable} == {
            n for n, hint in hints.items() if "None" in hint
        }
    assert TASKS[name].name == name


@pytest.mark.parametrize(("name", "side"), SIDES)
@given(drawn=data())
def test_whatever_a_column_can_hold_comes_back_the_same(name: str, side: str, drawn: Any) -> None:
    made, schema = side_of(name, side)
    values = drawn.draw(lists(builds(made, **{column.name: cells_of(column) for column in schema}), max_size=5))
    found = through(values, made, schema)
    assert len(found) == len(values)
    for one, other in zip(values, found, strict=True):
        assert all(same(getattr(one, column), getattr(other, column)) for column in schema.names)


@pytest.mark.parametrize(("name", "side"), SIDES)
def test_nothing_at_all_comes_back_as_nothing(name: str, side: str) -> None:
    assert through([], *side_of(name, side)) == []


def test_nulls_beside_arrays_and_empty_lists_stay_what_they_are() -> None:
    empty, some = np.empty(0, np.float32), np.array([1, 2], np.float32)
    ids = np.array([7], np.int32)
    sent = [
        CausalScores(ids, some[:1], tokens=1, truncated=False, hidden=hidden, dim=2)
        for hidden in (None, empty, some, None)
    ]
    found = through(sent, CausalScores, TASKS["causal"].result_schema())
    assert [None if each.hidden is None else each.hidden.tolist() for each in found] == [None, [], [1, 2], None]
    assert found[2].states.tolist() == [[1, 2]]
    assert found[0].token_ids.dtype == np.int32
    all_null = through(sent[:1], CausalScores, TASKS["causal"].result_schema())
    assert all_null[0].hidden is None


def test_bytes_and_unicode_survive() -> None:
    images = [ImageItem(b""), ImageItem(bytes(range(256))), ImageItem(b"\0\xff")]
    assert through(images, ImageItem, TASKS["embed_image"].item_schema()) == images
    texts = [ClassifyItem("", None), ClassifyItem("né 漢字 👩‍🌾", "\0"), ClassifyItem("a", "")]
    assert through(texts, ClassifyItem, TASKS["classify"].item_schema()) == texts


def test_several_batches_and_another_order_of_columns_are_read() -> None:
    schema = TASKS["causal"].item_schema()
    batches = [
        pa.record_batch([["a"], [""], [True], [True]], schema=schema),
        pa.record_batch([["b"], ["c"], [False], [True]], schema=schema),
    ]
    table = pa.Table.from_batches(batches).select(["hidden", "scores", "context", "text"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    found = from_arrow(sink.getvalue().to_pybytes(), schema, CausalItem)
    assert found == [CausalItem("a", hidden=True), CausalItem("b", "c")]


@dataclass
class Loose:
    """Anything in the place of an item."""

    text: Any
    context: Any = ""
    hidden: Any = False


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Loose(3), r"item 1: 'text' must be string\. Got int"),
        (Loose(b"bytes"), r"item 1: 'text' must be string\. Got bytes"),
        (Loose(None), r"item 1: 'text' must be string\. Got NoneType"),
        (Loose("\ud800"), r"item 1: 'text' must be string\. Got str .*surrogates"),
        (Loose("a", hidden="yes"), r"item 1: 'hidden' must be bool\. Got str"),
        (object(), "item 1 has no 'text'. Got object"),
    ],
)
def test_what_no_column_can_hold_is_refused_by_its_index(bad: Any, message: str) -> None:
    with pytest.raises(ItemError, match=message) as caught:
        to_arrow([CausalItem("fine"), bad, CausalItem("fine")], TASKS["causal"].item_schema())
    assert caught.value.index == 1


def test_text_in_the_place_of_bytes_is_refused() -> None:
    with pytest.raises(ItemError, match=r"item 0: 'image' must be binary\. Got str"):
        to_arrow([ImageItem("text")], TASKS["embed_image"].item_schema())  # type: ignore[arg-type]


def test_an_array_of_another_shape_is_refused() -> None:
    flat, square = (Embedding(np.zeros(shape, np.float32), tokens=1, truncated=False) for shape in (2, (2, 2)))
    with pytest.raises(ItemError, match="item 1: 'vector' must be list") as caught:
        to_arrow([flat, square], TASKS["embed"].result_schema())
    assert caught.value.index == 1


@given(damage=sampled_from(["cut", "flip"]), place=integers(0, 10_000), put=binary(min_size=1, max_size=4))
def test_damaged_bytes_are_refused_or_read_and_never_break_anything(damage: str, place: int, put: bytes) -> None:
    schema = TASKS["causal"].item_schema()
    whole = to_arrow([CausalItem("a text", "before", hidden=True), CausalItem("né")], schema)
    place %= len(whole)
    broken = whole[:place] if damage == "cut" else whole[:place] + put + whole[place + len(put) :]
    try:
        found = from_arrow(broken, schema, CausalItem)
    except ValueError:
        return
    assert all(isinstance(each, CausalItem) for each in found)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "context": [""]}, "column 'hidden' is missing; the columns are text, context, hidden"),
        ({"text": ["a"], "context": [""], "hidden": [1]}, r"column 'hidden' must be bool\. Got int64"),
        ({"text": [None], "context": [""], "hidden": [True]}, "column 'text' (must be string|holds nulls)"),
    ],
)
def test_columns_that_are_not_the_schemas_are_refused_by_name(columns: dict[str, list[Any]], message: str) -> None:
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=message):
        from_arrow(sink.getvalue().to_pybytes(), TASKS["causal"].item_schema(), CausalItem)


def test_nulls_where_none_may_stand_and_broken_text_are_refused() -> None:
    schema = TASKS["causal"].item_schema()
    loose = pa.schema([field.with_nullable(True) for field in schema])  # noqa: FBT003
    rows = {"text": pa.array(["a", None]), "context": pa.array(["", ""]), "hidden": pa.array([True, False])}
    rows["scores"] = rows["hidden"]
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff"))
    for table, message in (
        (pa.table(rows, schema=loose), "column 'text' holds nulls, which it must not"),
        (
            pa.table({"text": broken, "context": [""], "hidden": [True], "scores": [True]}, schema=loose),
            "column 'text' is damaged",
        ),
    ):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, loose) as writer:
            writer.write_table(table)
        with pytest.raises(ValueError, match=message):
            from_arrow(sink.getvalue().to_pybytes(), schema, CausalItem)
