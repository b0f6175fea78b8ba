"""A random score is a row's place in the hash order, and nothing else."""

from __future__ import annotations

import numpy as np

from datapipe.metrics.base import get_metric
from datapipe.metrics.random import random_scores
from datapipe.storage.order import hash_order

IDS = np.random.default_rng(0).integers(0, 2**64, (5000, 2), dtype=np.uint64)


def test_a_random_score_is_the_top_24_bits_of_the_hash_order() -> None:
    scores = random_scores(IDS, seed=3)
    assert scores.dtype == np.float32
    assert np.array_equal(scores.astype(np.float64) * 2**24, hash_order(IDS, seed=3) >> np.uint64(40))


def test_random_scores_never_fall_along_the_hash_order() -> None:
    assert (np.diff(random_scores(IDS, seed=3)[np.argsort(hash_order(IDS, seed=3))]) >= 0).all()


def test_random_scores_are_spread_evenly_below_one() -> None:
    scores = random_scores(IDS, seed=3)
    metric = get_metric("random")
    assert metric.low <= scores.min()
    assert scores.max() < metric.high
    assert np.ptp(np.histogram(scores, bins=10, range=(0, 1))[0]) < 150


def test_a_random_score_depends_on_the_row_and_the_seed_only() -> None:
    assert np.array_equal(random_scores(IDS[::-1], seed=3)[::-1], random_scores(IDS, seed=3))
    assert not np.array_equal(random_scores(IDS, seed=4), random_scores(IDS, seed=3))
