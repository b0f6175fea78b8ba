"""What single values weigh and whether their text is text: numpy arithmetic over Arrow offsets, nothing is decoded.

`cell_bytes` weighs a dictionary by the values that its indices point to, so a bomb is seen before it is unpacked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

if TYPE_CHECKING:
    from datapipe.storage.arrays import Bool, Int64

__all__ = ["cell_bytes", "is_view", "row_width", "slices", "undecodable", "weighs_more_than_it_shows"]

_VIEW_BYTES = 16
_DEFAULT_WIDTH = 8
_OFFSET_BYTES = 4


def cell_bytes(array: Any) -> Int64:
    """Bytes that each value takes once decoded, int64 (rows,); a null takes what its fixed-width slot takes."""
    kind = array.type
    if pt.is_dictionary(kind):
        weights = np.append(cell_bytes(array.dictionary), 0)
        indices = pc.fill_null(pc.cast(array.indices, pa.int64()), len(array.dictionary))
        taken: Int64 = weights[indices.to_numpy()]
        return taken
    if isinstance(kind, pa.BaseExtensionType):
        return cell_bytes(array.storage)
    if pt.is_struct(kind):
        return sum((cell_bytes(array.field(index)) for index in range(kind.num_fields)), np.zeros(len(array), np.int64))
    if pt.is_nested(kind):
        return _list_bytes(array)
    if is_view(kind):
        return _view_lengths(array)
    if _is_bytes(kind):
        lengths = pc.binary_length(array)
        known = lengths.fill_null(0) if array.null_count else lengths
        sizes: Int64 = known.to_numpy().astype(np.int64)
        return sizes
    return np.full(len(array), _fixed_width(kind), np.int64)


def undecodable(array: Any) -> list[int]:
    """Rows of a plain type whose strings, at any depth, are not UTF-8. Offsets are taken to be sound."""
    kind = array.type
    if pt.is_string(kind):
        return _bad_strings(array, 0)
    if pt.is_list(kind) or pt.is_map(kind):
        offsets = array.offsets.to_numpy()
        bad = undecodable(array.values.slice(offsets[0], offsets[-1] - offsets[0]))
        return np.unique(np.searchsorted(offsets - offsets[0], bad, side="right") - 1).tolist() if bad else []
    if pt.is_fixed_size_list(kind):
        values = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        return sorted({row // kind.list_size for row in undecodable(values)})
    if pt.is_struct(kind):
        return sorted({row for index in range(kind.num_fields) for row in undecodable(array.field(index))})
    return []


def slices(weights: Int64, *, nbytes: int) -> list[tuple[int, int]]:
    """Cut rows, in order, into (start, stop) of at most `nbytes` each; a row that weighs more stands alone."""
    ends = np.cumsum(weights)
    cuts = []
    start = 0
    while start < len(weights):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + nbytes, side="right")))
        cuts.append((start, stop))
        start = stop
    return cuts


def row_width(schema: pa.Schema) -> int:
    """Bytes that a row of nulls takes in a batch of `schema`; at least 1."""
    return max(1, sum(_null_width(field.type) for field in schema))


def weighs_more_than_it_shows(kind: pa.DataType) -> bool:
    """Whether values of the type share bytes (dictionaries, views), so that `nbytes` is below their decoded size."""
    if pt.is_dictionary(kind) or is_view(kind):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return weighs_more_than_it_shows(kind.storage_type)
    return any(weighs_more_than_it_shows(kind.field(index).type) for index in range(kind.num_fields))


def is_view(kind: pa.DataType) -> bool:
    """Whether the type is string_view or binary_view."""
    return bool(pt.is_string_view(kind) or pt.is_binary_view(kind))


def _list_bytes(array: Any) -> Int64:
    """Lists, maps, and lists of a fixed size: what their elements take together."""
    values, kind = array.values, array.type
    if pt.is_fixed_size_list(kind):
        if pt.is_primitive(values.type):
            return np.full(len(array), kind.list_size * _fixed_width(values.type), np.int64)
        inner = cell_bytes(values.slice(array.offset * kind.list_size, len(array) * kind.list_size))
        summed: Int64 = inner.reshape(len(array), kind.list_size).sum(axis=1)
        return summed
    ends: Int64 = array.offsets.to_numpy().astype(np.int64)
    values, ends = values.slice(ends[0], ends[-1] - ends[0]), ends - ends[0]
    if pt.is_primitive(values.type):
        ends = ends * _fixed_width(values.type)
    else:
        ends = np.concatenate([[0], np.cumsum(cell_bytes(values))])[ends]
    spans: Int64 = np.diff(ends)
    return spans


def _bad_strings(array: Any, first: int) -> list[int]:
    """Halve until each faulty string stands alone; numbered from `first`."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        if len(array) == 1:
            return [first]
        half = len(array) // 2
        return _bad_strings(array[:half], first) + _bad_strings(array[half:], first + half)
    return []


def _view_lengths(array: Any) -> Int64:
    """The first four bytes of each 16-byte view are the length of its string."""
    if not len(array):
        return np.zeros(0, np.int64)
    words = np.frombuffer(array.buffers()[1], np.int32)
    step = _VIEW_BYTES // words.itemsize
    lengths = words[array.offset * step : (array.offset + len(array)) * step : step].astype(np.int64)
    valid: Int64 = np.where(_truth(array.is_valid()), lengths, 0) if array.null_count else lengths
    return valid


def _truth(mask: Any) -> Bool:
    """A mask without nulls as numpy."""
    found: Bool = mask.to_numpy(zero_copy_only=False)
    return found


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_binary(kind) or pt.is_large_binary(kind))


def _fixed_width(kind: pa.DataType) -> int:
    if pt.is_null(kind):
        return 0
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return _DEFAULT_WIDTH


def _null_width(kind: pa.DataType) -> int:
    if pt.is_struct(kind):
        return sum(_null_width(kind.field(index).type) for index in range(kind.num_fields))
    if pt.is_fixed_size_list(kind):
        return int(kind.list_size) * _null_width(kind.value_type)
    if pt.is_nested(kind) or _is_bytes(kind):
        return _OFFSET_BYTES
    return _fixed_width(kind)
