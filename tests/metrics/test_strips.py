"""Nearest rows in a plane, against distances to all rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from datapipe.metrics.strips import Strips, ordered, value_of
from datapipe.storage.vectors import codes, encode

BITS = st.integers(0, 0xFFFF).filter(lambda bits: bits & 0x7F80 != 0x7F80)


def everywhere(x: np.ndarray, y: np.ndarray, points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The same from all distances, as float32, stable in the order of rows."""
    apart = np.abs(value_of(x).astype(np.float64) - points[:, :1])
    apart = apart + np.abs(value_of(y).astype(np.float64) - points[:, 1:])
    apart = apart.astype(np.float32).astype(np.float64)
    rows = np.argsort(apart, axis=1, kind="stable")[:, :count]
    return rows, np.take_along_axis(apart, rows, axis=1)


def keys_of(numbers: np.ndarray) -> np.ndarray:
    return ordered(codes(encode(numbers[:, None].astype(np.float32)))[:, 0])


@given(st.lists(BITS, min_size=1, max_size=30))
def test_keys_ascend_as_the_numbers_do_and_lead_back_to_them(bits: list[int]) -> None:
    given_bits = np.array(bits, np.uint16)
    numbers = (given_bits.astype("<u4") << np.uint32(16)).view("<f4")
    assert (value_of(ordered(given_bits)) == numbers).all()
    below = numbers[:, None] < numbers
    keys = ordered(given_bits)
    assert ((keys[:, None] < keys) == below).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_nearest_are_those_of_all_rows_with_ties_to_the_lower(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 400))
    grid = data.draw(st.sampled_from([1, 2, 9, 300, 1 << 15]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    numbers = rng.integers(-grid, grid + 1, (rows, 2)) / grid * data.draw(st.sampled_from([1e-30, 1.0, 1e9]))
    scale = np.abs(numbers).max() or 1.0
    points = np.concatenate([rng.normal(size=(9, 2)) * scale, numbers[rng.integers(0, rows, 5)], [[9 * scale, 0.0]]])
    most = data.draw(st.integers(1, min(40, rows)))
    count = data.draw(st.integers(1, most))
    x, y = keys_of(numbers[:, 0]), keys_of(numbers[:, 1])
    found, distances = Strips(x, y, most=most).nearest(points, count)
    expected, apart = everywhere(x, y, points, count)
    np.testing.assert_array_equal(distances, apart)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("heavy", [0, 1])
def test_one_value_held_by_nearly_all_rows_changes_nothing(heavy: int) -> None:
    rng = np.random.default_rng(5)
    numbers = rng.normal(size=(3000, 2))
    numbers[:2900, heavy] = 0.25
    points = rng.normal(size=(200, 2))
    x, y = keys_of(numbers[:, 0]), keys_of(numbers[:, 1])
    found, _ = Strips(x, y, most=33).nearest(points, 33)
    np.testing.assert_array_equal(found, everywhere(x, y, points, 33)[0])


@given(arrays.arrays(np.float64, (3, 2), elements=st.floats(-3, 3)))
def test_copies_beyond_those_that_can_be_asked_for_are_not_looked_at(points: np.ndarray) -> None:
    keys = np.full(500, 0x9000, np.uint16)
    found, distances = Strips(keys, keys, most=4).nearest(points, 4)
    assert (found == np.arange(4)).all()
    assert (distances == distances[:, :1]).all()
