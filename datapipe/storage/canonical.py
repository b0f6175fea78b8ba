"""Canonical bytes of rows and values: the same for the same content in any format. Row ids are digests of them.

A row is its columns sorted by name, each as (length of name, name, value). A value is a tag and its content, lengths
before what they measure, so that no two rows share their bytes by concatenation:

    null    n                            bool    T or F
    int     i int64, u uint64 above it   float   f float64; one NaN, and -0.0 is 0.0
    string  s length bytes               binary  b length bytes
    list    l count values               struct  t count (length of name, name, value), fields sorted by name

Numbers, counts and lengths are little-endian and 8 bytes long. The width of a number, the coding of a dictionary and
the kind of a string or list column leave no trace. A list of floats without nulls, at least one, is packed:
`v count float32` where every value is a float32, else `w count float64`. Times, dates, durations and decimals are
strings: ISO 8601, in UTC where they have a zone; neither they nor decimals keep trailing zeros of a fraction. A map is
a list of structs (key, value).

Everything is done by column: the bytes of a value come as one or more segments, arrays of bytes as long as the column.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datapipe.errors import ColumnError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from datapipe.storage.arrays import Bool, Int64, UInt8

Segments: TypeAlias = "list[pa.Array | pa.Scalar]"

_BINARY = pa.large_binary()
_EMPTY = pa.scalar(b"", _BINARY)
_JOINED_BYTES = 192  # Arrow's join is fast for short pieces only; hashing takes longer ones where they lie
_POWERS = {"s": 0, "ms": 3, "us": 6, "ns": 9}  # ticks of a second, as a power of ten


def row_bytes(batch: pa.RecordBatch) -> list[pa.LargeBinaryArray]:
    """Return the canonical bytes of each row, cut into segments to be read one after the other; at least one.

    Raises:
        ColumnError: Two columns share a name, or a column is of a type that has no canonical bytes; names the column.
    """
    segments: Segments = [pa.array([b""] * batch.num_rows, _BINARY)]
    for position in _by_name(batch.schema.names):
        name = batch.schema.names[position]
        try:
            segments += [_name(name), *_value(batch.column(position))]
        except ColumnError as error:
            raise ColumnError(f"column {name!r}: {error}") from None
    return _joined(segments)


def value_bytes(column: pa.Array) -> list[pa.LargeBinaryArray]:
    """Return the canonical bytes of each value of one column, in segments like `row_bytes`.

    Raises:
        ColumnError: The column is of a type that has no canonical bytes.
    """
    return _joined(_value(column))


def _by_name(names: list[str]) -> list[int]:
    """Positions of the names in their order; names that occur twice are refused."""
    order = sorted(range(len(names)), key=names.__getitem__)
    for before, after in pairwise(order):
        if names[before] == names[after]:
            raise ColumnError(f"two columns are called {names[after]!r}: rename one of them")
    return order


def _joined(segments: Segments) -> list[pa.LargeBinaryArray]:
    """Join neighbours that are short; what is long stays a segment of its own."""
    joined: list[pa.LargeBinaryArray] = []
    short: Segments = []
    for segment in segments:
        if isinstance(segment, pa.Array) and segment.nbytes > _JOINED_BYTES * len(segment):
            joined += [_join(short)] if short else []
            joined.append(segment)
            short = []
        else:
            short.append(segment)
    return joined + ([_join(short)] if short else [])


def _join(segments: Segments) -> pa.LargeBinaryArray:
    return segments[0] if len(segments) == 1 else pc.binary_join_element_wise(*segments, _EMPTY)


def _name(name: str) -> pa.Scalar:
    encoded = name.encode()
    return pa.scalar(len(encoded).to_bytes(8, "little") + encoded, _BINARY)


def _value(array: pa.Array) -> Segments:
    array = _plain(array)
    kind = array.type
    valid = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
    if pa.types.is_null(kind):
        return [_head(b"n", np.empty((len(array), 0)), valid)]
    if pa.types.is_boolean(kind):
        truth = array.fill_null(False).to_numpy(zero_copy_only=False)  # noqa: FBT003
        return [_head(np.where(truth, ord("T"), ord("F")), np.empty((len(array), 0)), valid)]
    if pa.types.is_integer(kind):
        numbers = array.fill_null(0).to_numpy()
        tags = np.where(numbers > np.iinfo(np.int64).max, ord("u"), ord("i"))
        return [_head(tags, _as_bytes(numbers.astype("<u8" if kind == pa.uint64() else "<i8")), valid)]
    if pa.types.is_floating(kind):
        numbers = _one_nan(array.to_numpy(zero_copy_only=False).astype("<f8") + 0.0)
        return [_head(b"f", _as_bytes(numbers), valid)]
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return _text(array, b"s" if pa.types.is_large_string(kind) else b"b", valid)
    if pa.types.is_large_list(kind):
        return _list(array, valid)
    if pa.types.is_struct(kind):
        return _struct(array, valid)
    raise ColumnError(f"a value of type {kind} has no canonical bytes; cast the column, or leave it out")


def _plain(array: pa.Array) -> pa.Array:
    """The same values as one of: null, bool, integer, float, large_string, large_binary, large_list, struct."""
    kind = array.type
    is_text = pa.types.is_string(kind) or pa.types.is_string_view(kind)
    if isinstance(array, pa.ExtensionArray):
        array = _plain(array.storage)
    elif pa.types.is_dictionary(kind):
        array = _plain(array.dictionary_decode())
    elif pa.types.is_run_end_encoded(kind):
        array = _plain(pc.run_end_decode(array))
    elif pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        array = _iso(array)
    elif pa.types.is_decimal(kind):
        array = pa.array([None if value is None else _digits(value) for value in array.to_pylist()], pa.large_string())
    elif is_text or pa.types.is_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        array = array.cast(pa.large_string() if is_text else _BINARY)
    elif pa.types.is_map(kind):
        array = array.cast(pa.large_list(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    elif pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        ends = np.cumsum(pc.list_value_length(array).fill_null(0).to_numpy(), dtype=np.int64)
        array = pa.LargeListArray.from_arrays(np.append(0, ends), array.flatten(), mask=array.is_null())
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        array = array.cast(pa.large_list(kind.value_type))
    return array


def _iso(array: pa.Array) -> pa.Array:
    """Times, dates and durations by ISO 8601, as large strings."""
    kind = array.type
    if pa.types.is_date(kind):
        return array.cast(pa.date32(), safe=False).cast(pa.large_string())
    if pa.types.is_duration(kind):
        ticks = array.cast(pa.int64()).to_pylist()
        power = _POWERS[kind.unit]
        texts = [None if tick is None else f"PT{_digits(Decimal(tick).scaleb(-power))}S" for tick in ticks]
        return pa.array(texts, pa.large_string())
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        array = array.cast(pa.timestamp(kind.unit, "UTC"))
    text = pc.replace_substring(array.cast(pa.large_string()), " ", "T", max_replacements=1)
    return text if kind.unit == "s" else pc.replace_substring_regex(text, r"(\.\d*[1-9])?\.?0*(Z?)$", r"\1\2")


def _digits(number: Decimal) -> str:
    """A decimal number without an exponent and without trailing zeros of its fraction."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _text(array: pa.Array, tag: bytes, valid: Bool | None) -> Segments:
    content = array.cast(_BINARY)
    if valid is not None:
        content = content.fill_null(b"")
    return [_head(tag, _as_bytes(pc.binary_length(content).to_numpy().astype("<i8")), valid), content]


def _struct(array: pa.StructArray, valid: Bool | None) -> Segments:
    names = array.type.names
    fields: Segments = [_head(b"t", _as_bytes(np.full(len(array), len(names), "<i8")), valid)]
    for position in _by_name(names):
        fields += [_name(names[position]), *_value(array.field(position))]
    return fields if valid is None else [fields[0], pc.if_else(pa.array(valid), _join(fields[1:]), _EMPTY)]


def _list(array: pa.LargeListArray, valid: Bool | None) -> Segments:
    offsets = array.offsets.to_numpy()
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    offsets = offsets - offsets[0]
    counts = np.diff(offsets)
    if pa.types.is_floating(array.type.value_type):
        tags, content = _floats(values, offsets, counts)
    else:
        tags, content = np.full(len(array), ord("l")), _values(values, offsets)
    if valid is not None:
        content = pc.if_else(pa.array(valid), content, _EMPTY)
    return [_head(tags, _as_bytes(counts.astype("<i8")), valid), content]


def _values(values: pa.Array, offsets: Int64) -> pa.LargeBinaryArray:
    """The bytes of the values of each list; they lie behind one another already."""
    joined = _join(_value(values))
    _, starts, data = joined.buffers()
    bounds = np.frombuffer(starts, np.int64)[joined.offset :][offsets] if len(joined) else np.zeros_like(offsets)
    return pa.LargeBinaryArray.from_buffers(_BINARY, len(offsets) - 1, [None, pa.py_buffer(bounds), data])


def _floats(values: pa.Array, offsets: Int64, counts: Int64) -> tuple[Int64, pa.LargeBinaryArray]:
    """Tag and bytes of each list of floats: packed where it has values and no nulls, by value otherwise."""
    numbers = values.to_numpy(zero_copy_only=False)
    numbers = _one_nan(numbers.astype(np.float32 if numbers.dtype == np.float16 else numbers.dtype) + np.float32(0.0))
    with np.errstate(over="ignore"):
        narrow = numbers.astype("<f4", copy=False)
    tags = np.full(len(counts), ord("v"))
    if numbers.dtype == np.float64:
        tags[_any(~((narrow == numbers) | np.isnan(numbers)), offsets)] = ord("w")
    if values.null_count:
        tags[_any(values.is_null().to_numpy(zero_copy_only=False), offsets)] = ord("l")
    tags[counts == 0] = ord("l")
    content = _packed(narrow, offsets)
    if (tags == ord("w")).any():
        content = pc.if_else(pa.array(tags == ord("w")), _packed(numbers.astype("<f8", copy=False), offsets), content)
    if values.null_count:
        content = pc.if_else(pa.array(tags == ord("l")), _values(values, offsets), content)
    return tags, content


def _packed(numbers: NDArray[Any], offsets: Int64) -> pa.LargeBinaryArray:
    buffers = [None, pa.py_buffer(offsets * numbers.itemsize), pa.py_buffer(numbers)]
    return pa.LargeBinaryArray.from_buffers(_BINARY, len(offsets) - 1, buffers)


def _any(flags: Bool, offsets: Int64) -> Bool:
    """Which lists have a flagged value."""
    before = np.concatenate([[0], np.cumsum(flags)])
    return np.asarray(before[offsets[1:]] > before[offsets[:-1]])


def _one_nan(numbers: NDArray[Any]) -> NDArray[Any]:
    """Give every NaN the same bits; `numbers` belongs to the caller."""
    if numbers.size and np.isnan(numbers.min()):
        numbers[np.isnan(numbers)] = np.nan
    return numbers


def _as_bytes(numbers: NDArray[Any]) -> UInt8:
    return numbers.view(np.uint8).reshape(len(numbers), numbers.itemsize)


def _head(tags: bytes | NDArray[Any], rest: NDArray[Any], valid: Bool | None) -> pa.LargeBinaryArray:
    """A tag and bytes of fixed width for each value; nothing but `n` for a null."""
    head = np.empty((len(rest), 1 + rest.shape[1]), np.uint8)
    head[:, 0] = ord(tags) if isinstance(tags, bytes) else tags
    head[:, 1:] = rest
    widths = np.full(len(head), head.shape[1])
    if valid is not None:
        head[~valid, 0] = ord("n")
        widths[~valid] = 1
        head = head[np.arange(head.shape[1]) < widths[:, None]]
    offsets = np.concatenate([[0], np.cumsum(widths)])
    return pa.LargeBinaryArray.from_buffers(_BINARY, len(widths), [None, pa.py_buffer(offsets), pa.py_buffer(head)])
