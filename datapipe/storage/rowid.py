"""Row ids: 128 bits of what a row holds, whatever the format, order or cut of the source that it came from.

table -> canonical bytes of each row (canonical.py) -> blake2b-128 -> counters among identical rows -> row id
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from datapipe.errors import RowIdError
from datapipe.storage.canonical import row_bytes, value_bytes

if TYPE_CHECKING:
    from datapipe.storage.arrays import Ids, Int64, UInt8

ID_BYTES = 16
ID_TYPE = pa.binary(ID_BYTES)
"""The Arrow type of a `row_id` column."""


def content_digests(batch: pa.RecordBatch | pa.Table) -> Ids:
    """Digest each row over all its columns, uint64 (rows, 2).

    Rows that hold the same values under the same names have the same digest, whatever the order of the columns, the
    width of their numbers or the coding of their strings; canonical.py says exactly when. One blake2b-128 a row.

    Raises:
        ColumnError: Two columns share a name, or a column is of a type that has no canonical bytes; names the column.
    """
    batches = batch.to_batches() if isinstance(batch, pa.Table) else [batch]
    return _stacked([_digests(row_bytes(piece)) for piece in batches])


def value_digests(column: pa.Array | pa.ChunkedArray) -> Ids:
    """Digest each value of a column that identifies its rows, uint64 (rows, 2); a null like any value.

    A name of digits is the same name as a number and as a string: CSV cannot tell one from the other.

    Raises:
        ColumnError: The column is of a type that has no canonical bytes.
    """
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    return _stacked([_digests(value_bytes(chunk)) for chunk in _chunks(column)])


def count_duplicates(digests: Ids) -> Int64:
    """Number equal neighbours 0, 1, 2, …, int64 (rows,): of sorted digests, each row's counter among identical rows."""
    rows = np.arange(len(digests), dtype=np.int64)
    first = np.ones(len(digests), np.bool_)
    first[1:] = (digests[1:] != digests[:-1]).any(axis=1)
    counters: Int64 = rows - np.maximum.accumulate(np.where(first, rows, 0))
    return counters


def apply_counters(digests: Ids, counters: Int64) -> Ids:
    """Turn digests into row ids that differ among identical rows too.

    Counter 0 keeps the digest. Counter c > 0 keeps the high word, so that duplicates stay in one range of ids, and
    takes blake2b-64(digest, c as 8 bytes little-endian) for the low word.

    Args:
        digests: uint64 (rows, 2).
        counters: int64 (rows,), >= 0; as `count_duplicates` numbers sorted digests.
    """
    ids = digests.copy()
    again = np.flatnonzero(counters)
    messages = np.empty((len(again), ID_BYTES + 8), np.uint8)
    messages[:, :ID_BYTES] = _id_bytes(digests[again])
    messages[:, ID_BYTES:] = counters[again].astype("<i8").view(np.uint8).reshape(-1, 8)
    words = b"".join(hashlib.blake2b(message.tobytes(), digest_size=8).digest() for message in messages)
    ids[again, 1] = np.frombuffer(words, ">u8")
    return ids


def ids_to_arrow(ids: Ids) -> pa.FixedSizeBinaryArray:
    """Ids as `fixed_size_binary(16)`; the order of the bytes is the order of (hi, lo)."""
    return pa.FixedSizeBinaryArray.from_buffers(ID_TYPE, len(ids), [None, pa.py_buffer(_id_bytes(ids))])


def ids_from_arrow(column: pa.Array | pa.ChunkedArray) -> Ids:
    """Ids of a `row_id` column, uint64 (rows, 2).

    Raises:
        RowIdError: The column is not `fixed_size_binary(16)`, or holds a null.
    """
    if column.type != ID_TYPE:
        raise RowIdError(f"row ids are {ID_TYPE}, but this column is {column.type}")
    if column.null_count:
        raise RowIdError(f"{column.null_count} of {len(column)} row ids are null")
    words = [np.frombuffer(c.buffers()[1], ">u8", 2 * len(c), ID_BYTES * c.offset) for c in _chunks(column) if len(c)]
    return _stacked([word.astype(np.uint64).reshape(-1, 2) for word in words])


def ids_to_hex(ids: Ids) -> list[str]:
    """Ids as 32 lower-case hexadecimal digits each."""
    return [row.tobytes().hex() for row in _id_bytes(ids)]


def _digests(segments: list[pa.LargeBinaryArray]) -> Ids:
    """blake2b-128 over the segments of each row, one after the other."""
    start = hashlib.blake2b(digest_size=ID_BYTES).copy  # a copy costs less than a new object
    digests = []
    if len(segments) == 1:
        for content in segments[0].to_pylist():
            row = start()
            row.update(content)
            digests.append(row.digest())
    else:
        for contents in zip(*(segment.to_pylist() for segment in segments), strict=True):
            row = start()
            for content in contents:
                row.update(content)
            digests.append(row.digest())
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)


def _id_bytes(ids: Ids) -> UInt8:
    return ids.astype(">u8", order="C").view(np.uint8).reshape(len(ids), ID_BYTES)


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _stacked(parts: list[Ids]) -> Ids:
    return np.concatenate([np.empty((0, 2), np.uint64), *parts])
