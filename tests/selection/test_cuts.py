"""Cuts by radix find the same rows as a sort."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import integers

from datapipe.selection.cuts import cuts_at, hash_cut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapipe.selection.keys import UInt32
    from datapipe.storage.arrays import UInt64


def rows_of(seed: int, rows: int, distinct: int) -> tuple[UInt32, UInt64]:
    rng = np.random.default_rng(seed)
    choices = rng.integers(0, 2**32, distinct, dtype=np.uint32)
    return choices[rng.integers(0, distinct, rows)], rng.integers(0, 2**64, rows, dtype=np.uint64)


@pytest.mark.parametrize("distinct", [1, 2, 7, 200])
def test_a_cut_is_the_row_at_its_position_in_the_order_of_key_and_hash(distinct: int) -> None:
    keys, hashes = rows_of(distinct, 150, distinct)
    order = np.lexsort((hashes, keys))

    def passes() -> Iterator[tuple[UInt32, UInt64]]:
        yield keys[:70], hashes[:70]
        yield keys[70:], hashes[70:]

    for position, cut in enumerate(cuts_at(passes, range(150))):
        assert (cut.key, cut.hash) == (keys[order[position]], hashes[order[position]])
        assert np.array_equal(np.flatnonzero(cut.reached_by(keys, hashes)), np.sort(order[position:]))


@given(limit=integers(0, 400), seed=integers(0, 20))
def test_a_hash_cut_takes_the_longest_start_of_the_hash_order_that_fits(limit: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, 60, dtype=np.uint64)
    weights = rng.integers(0, 9, 60).astype(np.float64)
    cut = hash_cut(lambda: iter([(hashes[:25], weights[:25]), (hashes[25:], weights[25:])]), limit)
    order = np.argsort(hashes)
    fits = int(np.searchsorted(np.cumsum(weights[order]), limit, side="right"))
    assert [int(h) for h in hashes if int(h) < cut] == [int(h) for h in hashes if h in hashes[order[:fits]]]


def test_a_hash_cut_that_takes_everything_lies_above_every_hash() -> None:
    hashes = np.array([0, 2**64 - 1], np.uint64)
    assert hash_cut(lambda: iter([(hashes, np.ones(2))]), 2) == 2**64
