"""Class ids in as many bits as they need, and numbers of many positions as one binary value a row.

A row's ids follow one another without gaps, least bit first, and its last byte is filled up with zeros. With 16 bits
that is a plain little-endian uint16. Raises `SoftLabelError` for bytes that do not hold what they should.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import SoftLabelError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from datapipe.storage.arrays import Int64, UInt8

    UInt32 = NDArray[np.uint32]

__all__ = ["bytes_of", "from_binary", "pack", "to_binary", "unpack"]

_WORD = 4
"""Bytes read for one id: enough for 25 bits at any bit of a byte."""


def bytes_of(ids: Int64, bits: int) -> Int64:
    """Return the bytes that so many ids of a row take, integers of the same shape."""
    return (ids * bits + 7) // 8


def pack(ids: UInt32, sizes: Int64, bits: int) -> UInt8:
    """Pack the ids of rows, row after row, uint8 (sum of `bytes_of(sizes, bits)`,).

    Args:
        ids: uint32 (all,), each below 2^bits.
        sizes: Ids of each row, int64 (rows,), summing to `len(ids)`.
        bits: 16 ... 25.
    """
    if bits == 16:  # noqa: PLR2004 - whole bytes
        return ids.astype("<u2").view(np.uint8)
    begins = _begins(bytes_of(sizes, bits)) * 8
    at = _places(begins[:-1], sizes, bits)
    flags = np.zeros(int(begins[-1]), np.uint8)
    for bit in range(bits):
        flags[at + bit] = (ids >> np.uint32(bit)) & np.uint32(1)
    return np.packbits(flags, bitorder="little")


def unpack(packed: UInt8, sizes: Int64, bits: int) -> UInt32:
    """Return the ids that `pack` packed, uint32 (all,).

    Raises:
        SoftLabelError: There are more or fewer bytes than `sizes` needs.
    """
    needed = bytes_of(sizes, bits)
    if int(needed.sum()) != len(packed):
        raise SoftLabelError(
            f"{int(sizes.sum()):,} class ids of {bits} bits take {int(needed.sum()):,} bytes, and there are "
            f"{len(packed):,}: the file is damaged, make it again"
        )
    if bits == 16:  # noqa: PLR2004 - whole bytes
        return packed.view("<u2").astype(np.uint32)
    at = _places(_begins(needed)[:-1] * 8, sizes, bits)
    first, shift = at >> 3, (at & 7).astype(np.uint32)
    padded = np.concatenate([packed, np.zeros(_WORD, np.uint8)])
    words = padded[first].astype(np.uint32)
    for byte in range(1, _WORD):
        words |= padded[first + byte].astype(np.uint32) << np.uint32(8 * byte)
    found: UInt32 = (words >> shift) & np.uint32((1 << bits) - 1)
    return found


def to_binary(content: NDArray[Any], sizes: Int64, *, fixed: int | None) -> pa.Array:
    """Cut bytes into one value a row.

    Args:
        content: Any numbers; their bytes are taken, little-endian, in order.
        sizes: Bytes of each row, int64 (rows,), summing to those of `content`.
        fixed: Bytes of every row, for a column of that fixed width; None for a column of any widths.
    """
    import pyarrow as pa

    raw = np.ascontiguousarray(content).view(np.uint8).reshape(-1)
    if fixed is not None:
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(fixed), len(sizes), [None, pa.py_buffer(raw)])
    begins = _begins(sizes)
    if begins[-1] > np.iinfo(np.int32).max:
        raise SoftLabelError(
            f"the labels of {len(sizes):,} rows take {int(begins[-1]):,} bytes, more than one table holds; write them "
            "in several tables of fewer rows"
        )
    offsets = begins.astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(sizes), [None, pa.py_buffer(offsets), pa.py_buffer(raw)])


def from_binary(column: pa.Array) -> tuple[UInt8, Int64]:
    """Return all bytes of a binary column, one row after the other, uint8, and the bytes of each row, int64 (rows,).

    Raises:
        SoftLabelError: A value is null.
    """
    import pyarrow as pa

    if column.null_count:
        raise SoftLabelError(
            f"{column.null_count} of {len(column)} values are null: the file is damaged, make it again"
        )
    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width
        raw = np.frombuffer(column.buffers()[1], np.uint8, width * len(column), width * column.offset)
        return raw, np.full(len(column), width, np.int64)
    begins = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, 4 * column.offset).astype(np.int64)
    if begins[0] == begins[-1]:
        return np.empty(0, np.uint8), np.diff(begins)
    return np.frombuffer(column.buffers()[2], np.uint8, int(begins[-1] - begins[0]), int(begins[0])), np.diff(begins)


def _begins(sizes: Int64) -> Int64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def _places(begins: Int64, sizes: Int64, bits: int) -> Int64:
    """First bit of every id."""
    within = np.arange(int(sizes.sum())) - np.repeat(_begins(sizes)[:-1], sizes)
    places: Int64 = np.repeat(begins, sizes) + within * bits
    return places
