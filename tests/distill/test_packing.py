"""Ids of any width come back from their bits; damaged bytes are refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.distill.packing import bytes_of, from_binary, pack, to_binary, unpack
from datapipe.errors import SoftLabelError


@given(sizes=st.lists(st.integers(0, 9), max_size=12), bits=st.integers(16, 20), seed=st.integers(0, 99))
def test_ids_come_back_from_their_bits(sizes: list[int], bits: int, seed: int) -> None:
    counts = np.array(sizes, np.int64)
    ids = np.random.default_rng(seed).integers(0, 1 << bits, int(counts.sum())).astype(np.uint32)
    ids[: len(ids) // 3] = (1 << bits) - 1
    packed = pack(ids, counts, bits)
    assert len(packed) == bytes_of(counts, bits).sum()
    np.testing.assert_array_equal(unpack(packed, counts, bits), ids)


def test_bits_stand_where_the_format_says() -> None:
    number = (5 | 0x1FFFF << 17 | 1 << 34).to_bytes(7, "little") + (9).to_bytes(3, "little")
    assert pack(np.array([5, 0x1FFFF, 1, 9], np.uint32), np.array([3, 1]), 17).tobytes() == number
    assert pack(np.array([258], np.uint32), np.array([1]), 16).tobytes() == bytes([2, 1])


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(
        SoftLabelError, match="3 class ids of 17 bits take 7 bytes, and there are 6: the file is damaged"
    ):
        unpack(np.zeros(6, np.uint8), np.array([3]), 17)


@pytest.mark.parametrize("fixed", [None, 4])
def test_bytes_of_rows_come_back_also_from_a_slice(fixed: int | None) -> None:
    content = np.arange(10, dtype=np.uint16)
    column = to_binary(content, np.full(5, 4), fixed=fixed)
    raw, sizes = from_binary(column.slice(1, 3))
    assert raw.view(np.uint16).tolist() == [2, 3, 4, 5, 6, 7]
    assert sizes.tolist() == [4, 4, 4]
    assert from_binary(column.slice(0, 0))[0].size == 0
    with pytest.raises(SoftLabelError, match="1 of 2 values are null"):
        from_binary(pa.array([b"abcd", None], column.type))
