"""Keys order like scores and can be turned back into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import floats

from datapipe.selection.keys import hard_keys, race_keys, scores_of_keys

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32

SCORES = arrays(np.float32, 30, elements=floats(width=32, allow_nan=False, allow_infinity=False))


@given(scores=SCORES)
def test_the_highest_score_has_the_smallest_key(scores: Float32) -> None:
    keys = hard_keys(scores)
    higher = scores[:, None] > scores[None, :]
    assert np.array_equal(higher, keys[:, None] < keys[None, :])


@given(scores=SCORES)
def test_a_key_turns_back_into_its_score(scores: Float32) -> None:
    assert np.array_equal(scores_of_keys(hard_keys(scores)), scores)


def test_no_finite_score_has_the_key_zero_in_either_direction() -> None:
    ends = np.array([np.finfo(np.float32).max, np.finfo(np.float32).min], np.float32)
    assert hard_keys(ends).min() > 0
    assert (~hard_keys(ends)).min() > 0


def test_a_race_draws_rows_in_proportion_to_their_weights() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([1.0, 2.0, 5.0, 0.0], np.float32)
    firsts = np.zeros(4)
    for _ in range(8000):
        firsts[np.argmin(race_keys(weights, rng.integers(0, 2**64, 4, dtype=np.uint64)))] += 1
    np.testing.assert_allclose(firsts / 8000, [1 / 8, 2 / 8, 5 / 8, 0.0], atol=0.02)


def test_rows_of_weight_zero_come_last() -> None:
    hashes = np.random.default_rng(1).integers(0, 2**64, 200, dtype=np.uint64)
    weights = np.repeat(np.array([0.0, 1e-30], np.float32), 100)
    keys = race_keys(weights, hashes)
    assert keys[:100].min() >= keys[100:].max()
