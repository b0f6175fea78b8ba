"""Vectors on disk and in memory.

On disk a vector is `fixed_size_binary(2 * dim)`: bfloat16, little-endian, and the field's metadata says whose vectors
they are. In memory vectors are the rows of a float32 matrix. Lists of floats from elsewhere are read by `to_matrix`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datapipe.errors import VectorError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from datapipe.storage.arrays import Bool, Float32, Int64

_BLOCK = 1 << 15  # numbers worked on at a time, so that they stay in the cache
_NAN = 0x7FC0
_TRUTH = {b"true": True, b"false": False}


@dataclass(frozen=True, kw_only=True)
class VectorInfo:
    """Whose vectors a column holds.

    Attributes:
        dim: Numbers in a vector, >= 1.
        model: The model that made them, or "given" for vectors that came with the source.
        digest: Digest of the model's files; empty for given vectors.
        normalised: Whether every vector has unit length (up to the rounding to bfloat16).
    """

    dim: int
    model: str
    digest: str
    normalised: bool


def vector_field(name: str, *, dim: int, model: str, digest: str, normalised: bool) -> pa.Field:
    """Describe a column of encoded vectors; see `VectorInfo` for the options."""
    told = {
        "dtype": "bfloat16",
        "dim": str(dim),
        "model": model,
        "digest": digest,
        "normalised": str(normalised).lower(),
    }
    return pa.field(name, pa.binary(2 * dim), nullable=False, metadata=told)


def vector_info(field: pa.Field) -> VectorInfo:
    """Read back what `vector_field` wrote.

    Raises:
        VectorError: The field is no column of encoded vectors, or its metadata contradicts its type.
    """
    told = field.metadata or {}
    missing = [key for key in (b"dtype", b"dim", b"model", b"digest", b"normalised") if key not in told]
    if missing or not pa.types.is_fixed_size_binary(field.type):
        lacks = f"lacks {', '.join(key.decode() for key in missing)}" if missing else f"is {field.type}"
        raise VectorError(f"column {field.name!r} holds no encoded vectors: it {lacks}")
    if told[b"dtype"] != b"bfloat16" or told[b"dim"] != str(field.type.byte_width // 2).encode():
        found = f"{told[b'dtype'].decode()} of dim {told[b'dim'].decode()}"
        raise VectorError(f"column {field.name!r} says it holds {found}, but it is {field.type}")
    if told[b"normalised"] not in _TRUTH:
        raise VectorError(f"column {field.name!r} says normalised = {told[b'normalised'].decode()}, not true or false")
    return VectorInfo(
        dim=field.type.byte_width // 2,
        model=told[b"model"].decode(),
        digest=told[b"digest"].decode(),
        normalised=_TRUTH[told[b"normalised"]],
    )


def encode(matrix: Float32) -> pa.FixedSizeBinaryArray:
    """Round vectors to bfloat16, to the nearest, ties to even: float32 (rows, dim) -> `fixed_size_binary(2 * dim)`.

    The relative error is at most 2**-8 (2**-9 for normal numbers below the largest); NaN stays NaN, and what exceeds
    the largest bfloat16 becomes infinite.

    Raises:
        VectorError: The matrix has no two dimensions, or vectors without numbers.
    """
    if matrix.ndim != 2 or not matrix.shape[1]:  # noqa: PLR2004
        raise VectorError(f"vectors come as a matrix (rows, dim) with dim >= 1; this one has shape {matrix.shape}")
    numbers = np.ascontiguousarray(matrix, dtype="<f4").reshape(-1)
    rounded = np.empty(numbers.size, "<u2")
    scratch = np.empty(min(_BLOCK, numbers.size), "<u4")
    for start in range(0, numbers.size, _BLOCK):
        block = numbers[start : start + _BLOCK]
        bits, work = block.view("<u4"), scratch[: block.size]
        np.right_shift(bits, 16, out=work)
        np.bitwise_and(work, 1, out=work)  # the last bit that stays decides a tie
        np.add(work, 0x7FFF, out=work)
        np.add(work, bits, out=work)
        rounded[start : start + _BLOCK] = work.view("<u2")[1::2]
        if np.isnan(block.max()):
            rounded[start : start + _BLOCK][np.isnan(block)] = _NAN
    rows, dim = matrix.shape
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * dim), rows, [None, pa.py_buffer(rounded)])


def decode(column: pa.Array | pa.ChunkedArray) -> Float32:
    """Encoded vectors as float32 (rows, dim), exactly.

    Raises:
        VectorError: The column is not of encoded vectors, or a row is null; names the first such row.
    """
    kind = column.type
    if not pa.types.is_fixed_size_binary(kind) or kind.byte_width % 2 or not kind.byte_width:
        raise VectorError(f"encoded vectors are fixed_size_binary of an even width; this column is {kind}")
    _refuse_nulls(column)
    dim = kind.byte_width // 2
    bits = np.empty((len(column), dim), "<u4")
    row = 0
    for chunk in _chunks(column):
        if len(chunk):
            halves = np.frombuffer(chunk.buffers()[1], "<u2", dim * len(chunk), 2 * dim * chunk.offset)
            bits[row : row + len(chunk)] = halves.reshape(-1, dim)
            row += len(chunk)
    np.left_shift(bits, 16, out=bits)
    return bits.view("<f4")


def codes(column: pa.Array | pa.ChunkedArray) -> NDArray[np.uint16]:
    """The bfloat16 bits of an encoded column, uint16 (rows, dim); no copy where the column is one chunk.

    Raises:
        VectorError: A vector is null, or the column is not encoded as bfloat16.
    """
    if not pa.types.is_fixed_size_binary(column.type) or column.type.byte_width % 2:
        raise VectorError(f"a column of {column.type} holds no bfloat16 vectors")
    _refuse_nulls(column)
    chunk = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    dim = chunk.type.byte_width // 2
    flat = np.frombuffer(chunk.buffers()[1], np.uint16, dim * len(chunk), 2 * dim * chunk.offset)
    return flat.reshape(-1, dim)


def vector_lengths(column: pa.Array | pa.ChunkedArray) -> Int64:
    """How many numbers each row's vector has, int64 (rows,); -1 where the row is null.

    Raises:
        VectorError: The column is neither a list of numbers nor encoded vectors.
    """
    kind = column.type
    if pa.types.is_fixed_size_binary(kind):
        lengths = np.full(len(column), kind.byte_width // 2)
    elif _is_numbers(kind):
        lengths = pc.list_value_length(column).cast(pa.int64()).fill_null(-1).to_numpy()
    else:
        raise VectorError(f"vectors are lists of numbers, or bfloat16 as fixed_size_binary; this column is {kind}")
    return cast("Int64", np.where(column.is_null().to_numpy(zero_copy_only=False), -1, lengths))


def to_matrix(column: pa.Array | pa.ChunkedArray) -> Float32:
    """Vectors of any column as float32 (rows, dim): lists of any kind of numbers, or encoded as by `encode`.

    A null among the numbers of a vector becomes NaN, and a float64 beyond float32 infinite. The matrix may be a view of
    the column and is then read-only.

    Raises:
        VectorError: The column is neither, a row is null, or its vector's length is not that of row 0; names the row.
    """
    if pa.types.is_fixed_size_binary(column.type):
        return decode(column)
    lengths = vector_lengths(column)
    _refuse_nulls(column)
    uneven = np.flatnonzero(lengths != lengths[:1])
    if len(uneven):
        row = int(uneven[0])
        raise VectorError(f"the vector in row {row} has {lengths[row]} numbers, the one in row 0 has {lengths[0]}")
    dim = int(lengths[0]) if len(lengths) else getattr(column.type, "list_size", 0)
    with np.errstate(over="ignore"):
        parts = [
            chunk.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(len(chunk), dim)
            for chunk in _chunks(column)
        ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, dim), np.float32), *parts])


def normalise(matrix: Float32) -> tuple[Float32, Bool]:
    """Scale vectors to unit length, computed in float64; each row's result depends on that row alone.

    Args:
        matrix: float32 (rows, dim).

    Returns:
        The unit vectors, float32 (rows, dim), and which rows have no direction, bool (rows,): those that are zero, or
        hold a number that is not finite. These rows are all zero in the result.
    """
    rows, dim = matrix.shape
    unit = np.empty((rows, dim), np.float32)
    undirected = np.zeros(rows, np.bool_)
    step = max(_BLOCK // max(dim, 1), 1)
    squares = np.empty((min(step, rows), dim))
    for start in range(0, rows, step):
        block = matrix[start : start + step].astype(np.float64)
        lengths = np.sqrt(np.square(block, out=squares[: len(block)]).sum(axis=1))
        bad = ~(np.isfinite(lengths) & (lengths > 0))
        if bad.any():
            undirected[start : start + step] = bad
            block[bad], lengths[bad] = 0.0, 1.0
        np.divide(block, lengths[:, None], out=block)
        unit[start : start + step] = block
    return unit, undirected


def _is_numbers(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(listed and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))


def _refuse_nulls(column: pa.Array | pa.ChunkedArray) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise VectorError(f"the vector in row {row} is null")


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]
