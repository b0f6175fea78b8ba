"""Items and results of any task as Arrow, by the schemas that the task declares.

    items -> to_arrow -> bytes -> from_arrow -> items          the same for results

So one route carries every task, and a vector arrives with the bits that it left with. Values are plain columns: no
pickle is written or read.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import ItemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

__all__ = ["from_arrow", "to_arrow"]


def to_arrow(values: Sequence[Any], schema: pa.Schema) -> bytes:
    """Write dataclasses as one Arrow IPC stream; a field is the column of the same name.

    Args:
        values: Items or results of one task; numpy arrays become lists.
        schema: The task's `item_schema()` or `result_schema()`.

    Raises:
        ItemError: A value lacks a field, or holds what its column cannot; names it, and where one is at fault alone,
            its index.
    """
    import pyarrow as pa

    columns = []
    for field in schema:
        try:
            cells = [getattr(value, field.name) for value in values]
        except AttributeError as error:
            index = next(i for i, value in enumerate(values) if not hasattr(value, field.name))
            message = f"item {index} has no {field.name!r}. Got {type(values[index]).__name__}"
            raise ItemError(message, index=index) from error
        columns.append(_column(cells, field))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    written: bytes = sink.getvalue().to_pybytes()
    return written


def from_arrow(data: bytes | memoryview, schema: pa.Schema, made: type) -> list[Any]:
    """Read what `to_arrow` wrote; lists of numbers come back as numpy arrays that share one buffer, nulls as None.

    Args:
        data: One Arrow IPC stream.
        schema: What it must hold; the order of the columns may differ.
        made: Dataclass of the values.

    Raises:
        ValueError: The bytes are no Arrow stream, or a column is missing, of another type, or holds a null that it must
            not; names the column.
    """
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            table = reader.read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"the body is not an Arrow IPC stream ({error})") from error
    columns = []
    for field in fields(made):
        want = schema.field(field.name)
        if field.name not in table.column_names:
            raise ValueError(f"column {field.name!r} is missing; the columns are {', '.join(schema.names)}")
        column = table[field.name]
        if column.type != want.type:
            raise ValueError(f"column {field.name!r} must be {want.type}. Got {column.type}")
        if column.null_count and not want.nullable:
            raise ValueError(f"column {field.name!r} holds nulls, which it must not")
        _check_utf8(column, field.name)
        columns.append(_cells(column))
    return [made(*row) for row in zip(*columns, strict=True)] if table.num_rows else []


def _column(cells: list[Any], field: pa.Field) -> pa.Array:
    import pyarrow as pa

    if not all(_meant(cell, field) for cell in cells):
        raise _refusal(cells, field, "it is not what the column means")
    try:
        if cells and pa.types.is_list(field.type) and all(isinstance(cell, np.ndarray) for cell in cells):
            offsets = np.zeros(len(cells) + 1, np.int32)
            np.cumsum([len(cell) for cell in cells], out=offsets[1:])
            values = pa.array(np.concatenate(cells), type=field.type.value_type)
            return pa.ListArray.from_arrays(pa.array(offsets), values, type=field.type)
        return pa.array(cells, type=field.type)
    except (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError) as error:
        raise _refusal(cells, field, str(error)) from error


def _refusal(cells: list[Any], field: pa.Field, reason: str) -> ItemError:
    index = next((i for i, cell in enumerate(cells) if not _fits(cell, field)), 0)
    message = f"item {index}: {field.name!r} must be {field.type}. Got {type(cells[index]).__name__} ({reason})"
    return ItemError(message, index=index)


def _meant(cell: Any, field: pa.Field) -> bool:
    """Whether a cell is what it must be; Arrow alone takes bytes for text, text for bytes, and a null anywhere."""
    import pyarrow as pa

    if cell is None:
        return bool(field.nullable)
    if pa.types.is_string(field.type):
        return isinstance(cell, str)
    if pa.types.is_binary(field.type):
        return isinstance(cell, bytes)
    return not isinstance(cell, np.ndarray) or cell.ndim == int(pa.types.is_list(field.type))


def _fits(cell: Any, field: pa.Field) -> bool:
    import pyarrow as pa

    try:
        pa.array([cell], type=field.type)
    except (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError):
        return False
    return _meant(cell, field)


def _check_utf8(column: pa.ChunkedArray, name: str) -> None:
    try:
        column.validate(full=True)
    except ValueError as error:
        raise ValueError(f"column {name!r} is damaged ({error})") from error


def _cells(column: pa.ChunkedArray) -> list[Any]:
    import pyarrow as pa

    if not (pa.types.is_list(column.type) and pa.types.is_primitive(column.type.value_type)):
        cells: list[Any] = column.to_pylist()
        return cells
    whole = column.combine_chunks()
    values = whole.values.to_numpy(zero_copy_only=False)
    bounds = whole.offsets.to_numpy()
    there = whole.is_valid().to_numpy(zero_copy_only=False)
    spans = zip(bounds[:-1], bounds[1:], there, strict=True)
    return [values[start:end] if valid else None for start, end, valid in spans]
