"""Names for the numpy arrays that travel between the rooms."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Bool: TypeAlias = NDArray[np.bool_]
UInt8: TypeAlias = NDArray[np.uint8]
Int32: TypeAlias = NDArray[np.int32]
Int64: TypeAlias = NDArray[np.int64]
UInt64: TypeAlias = NDArray[np.uint64]
Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]
Ids: TypeAlias = NDArray[np.uint64]
"""Row ids, uint64 (rows, 2): the big-endian words of 16 bytes, so that (hi, lo) order is the order of the bytes."""
