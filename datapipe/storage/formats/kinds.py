"""What a column of text or JSON holds: kinds seen so far as flags, and the narrowest type that holds them all.

Flags are gathered over every value of every file and only then resolved, so the order of rows does not count.
"""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Bool

__all__ = ["Kind", "from_strings", "integer_kind", "of_strings", "scalar_type"]

_INT64_MAX = (1 << 63) - 1
_UINT64_MAX = (1 << 64) - 1
_LONGEST_SAFE = 18  # digits that always fit int64
_LONGEST_FINITE = 300  # digits that always fit float64
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_BOOLS = pa.array([*_TRUE, *_FALSE])
_TRUES = pa.array(_TRUE)
_INTEGER = r"^-?(?:0|[1-9][0-9]*)$"
_NUMBER = r"^(?:-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|NaN|nan|-?inf)$"


class Kind(IntFlag):
    """A kind of value. Integers carry what decides between int64, uint64 and neither."""

    BOOL = 1
    INT = 2
    NEGATIVE = 4
    UINT64 = 8
    BIG = 16
    FLOAT = 32
    TEXT = 64
    LIST = 128
    STRUCT = 256


_INTEGERS = Kind.INT | Kind.NEGATIVE | Kind.UINT64 | Kind.BIG


def integer_kind(low: int, high: int) -> Kind:
    """Kind of integers between `low` and `high`."""
    kind = Kind.INT
    if low < 0:
        kind |= Kind.NEGATIVE
    if low < -_INT64_MAX - 1 or high > _UINT64_MAX:
        kind |= Kind.BIG
    elif high > _INT64_MAX:
        kind |= Kind.UINT64
    return kind


def scalar_type(kinds: Kind) -> pa.DataType | None:
    """Narrowest of null, bool, int64, uint64, float64 and string; None where the kinds have no type in common.

    Integers beyond 64 bits have none, unless there are floats among them.
    """
    if not kinds:
        return pa.null()
    if kinds in {Kind.BOOL, Kind.TEXT}:
        return pa.bool_() if kinds == Kind.BOOL else pa.string()
    if kinds & ~(_INTEGERS | Kind.FLOAT):
        return None
    if kinds & Kind.FLOAT:
        return pa.float64()
    if kinds & Kind.BIG or (kinds & Kind.UINT64 and kinds & Kind.NEGATIVE):
        return None
    return pa.uint64() if kinds & Kind.UINT64 else pa.int64()


def of_strings(columns: Sequence[Any]) -> list[Kind]:
    """Kinds of columns of CSV fields, nulls aside. The columns are of one length, and are looked at together.

    Numbers are those that a writer of numbers writes: no leading zeros ("007" stays text), no "+", no spaces, no hex.
    """
    values = pa.concat_arrays(columns)
    rows = len(columns[0])
    null = _truth(pc.is_null(values))
    number, whole = (_truth(pc.match_substring_regex(values, pattern)) for pattern in (_NUMBER, _INTEGER))

    def columns_of(found: Bool, *, in_all: bool = False) -> Bool:
        grid = found.reshape(len(columns), rows)
        held: Bool = np.logical_and.reduce(grid, axis=1) if in_all else np.logical_or.reduce(grid, axis=1)
        return held

    filled = columns_of(~null)
    numeric = filled & columns_of(number | null, in_all=True)
    flags = filled & columns_of(_truth(pc.is_in(values, value_set=_BOOLS)) | null, in_all=True)
    whole &= np.repeat(numeric, rows)
    number &= np.repeat(numeric, rows)
    kinds = np.where(flags, int(Kind.BOOL), np.where(filled & ~numeric, int(Kind.TEXT), 0))
    kinds |= np.where(columns_of(whole), int(Kind.INT), 0)
    kinds |= np.where(columns_of(whole & _truth(pc.starts_with(values, "-"))), int(Kind.NEGATIVE), 0)
    kinds |= np.where(columns_of(number & ~whole), int(Kind.FLOAT), 0)
    length = pc.fill_null(pc.binary_length(values), 0).to_numpy()
    for place in np.flatnonzero(whole & (length > _LONGEST_SAFE)).tolist():
        kinds[place // rows] |= int(_of_long_integer(values[place].as_py()))
    # A finite number that float64 cannot hold is text: nothing of it may be lost.
    far = number & ((length > _LONGEST_FINITE) | (~whole & _truth(pc.match_substring_regex(values, "[eE]"))))
    reals = pc.cast(values.take(pa.array(np.flatnonzero(far))), pa.float64()).to_numpy()
    kinds[np.flatnonzero(far)[np.isinf(reals)] // rows] = int(Kind.TEXT)
    return [Kind(kind) for kind in kinds.tolist()]


def from_strings(values: Any, kind: pa.DataType) -> Any:
    """Bring a column of CSV fields to the type that `scalar_type` gave for its kinds."""
    if pa.types.is_null(kind):
        return pa.nulls(len(values))
    if pa.types.is_boolean(kind):
        return pc.if_else(pc.is_valid(values), pc.is_in(values, value_set=_TRUES), pa.scalar(None, pa.bool_()))
    return values


def _of_long_integer(text: str) -> Kind:
    number = int(text) if len(text) <= len(str(_UINT64_MAX)) else _UINT64_MAX + 1
    return integer_kind(min(number, 0), max(number, 0))


def _truth(mask: Any) -> Bool:
    """A mask as numpy, False where it is null."""
    found: Bool = pc.fill_null(mask, False).to_numpy(zero_copy_only=False).copy()  # noqa: FBT003
    return found
