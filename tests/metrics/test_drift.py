"""Drift of the assignment error: exact sums, the closed form against plain loops, and when centroids are refitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import floats, integers

from datapipe.metrics.drift import LEAST_ROWS, THRESHOLD, ErrorSums, Pulls, drift_of
from datapipe.metrics.prototypes import fit_prototypes, prototype_scores

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32

ERRORS = arrays(np.float32, integers(2, 300), elements=floats(0, 2, width=32))


def unit(rows: int, *, seed: int, centre: float = 2.0) -> Float32:
    vectors = np.random.default_rng(seed).normal(size=(rows, 16))
    vectors[:, 0] += centre
    scaled: Float32 = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def sums(errors: Float32) -> ErrorSums:
    return ErrorSums().plus(errors)


@given(errors=ERRORS, cut=integers(0, 300), seed=integers(0, 9))
def test_sums_do_not_depend_on_order_or_cut(errors: Float32, cut: int, seed: int) -> None:
    mixed = np.random.default_rng(seed).permutation(errors)
    assert sums(mixed[:cut]).plus(mixed[cut:]) == sums(errors)
    assert sums(errors).mean == pytest.approx(errors.mean(dtype=np.float64), abs=1e-7)
    assert sums(errors).variance == pytest.approx(errors.var(dtype=np.float64, ddof=1), abs=1e-6)


def test_the_error_without_the_row_is_that_of_the_mean_of_the_others() -> None:
    vectors = unit(120, seed=0)
    clusters = np.arange(120, dtype=np.int32) % 7
    clusters[-1] = 7  # alone
    wide = vectors.astype(np.float64)
    centres = np.stack([wide[clusters == j].sum(axis=0) for j in range(8)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    errors = (1 - np.einsum("ij,ij->i", wide, centres[clusters])).astype(np.float32)
    expected = []
    for row in range(119):
        others = (clusters == clusters[row]) & (np.arange(120) != row)
        mean = wide[others].sum(axis=0)
        expected.append(1 - wide[row] @ mean / np.linalg.norm(mean))
    pulls = Pulls()
    pulls.add(errors[:50], clusters[:50])
    pulls.add(errors[50:], clusters[50:])
    found = pulls.without_self(errors, clusters)
    np.testing.assert_allclose(found[:-1], expected, atol=1e-5)
    assert np.isnan(found[-1])


@pytest.mark.parametrize("k", [16, 40, 60])
def test_rows_of_the_same_kind_do_not_drift_however_many_centroids_there_are(k: int) -> None:
    before, after = unit(1500, seed=1), unit(500, seed=2)
    centroids = fit_prototypes(before, k=k, seed=0)
    errors, clusters = prototype_scores(before, centroids)
    pulls = Pulls()
    pulls.add(errors, clusters)
    new = sums(prototype_scores(after, centroids)[0])
    drift = drift_of(sums(pulls.without_self(errors, clusters)), new)
    assert not drift.refit
    assert drift.rise is not None
    assert abs(drift.rise) < 0.12
    uncorrected = drift_of(sums(errors), new).rise
    assert uncorrected is not None
    assert uncorrected > drift.rise
    other = drift_of(
        sums(pulls.without_self(errors, clusters)), sums(prototype_scores(unit(500, seed=3, centre=0.0), centroids)[0])
    )
    assert other.refit


def test_the_interval_is_that_of_the_ratio_and_refits_only_where_all_of_it_lies_above_the_threshold() -> None:
    rng = np.random.default_rng(5)
    fitted = sums(rng.uniform(0.1, 0.3, 4000).astype(np.float32))
    inside = 0
    for _ in range(200):
        new = rng.uniform(0.1, 0.3, 80).astype(np.float32) * np.float32(1.5)
        drift = drift_of(fitted, sums(new))
        assert drift.low is not None
        assert drift.high is not None
        inside += drift.low <= 0.5 <= drift.high
        assert drift.refit == (drift.low > THRESHOLD)
    assert 180 <= inside <= 198


def test_too_few_rows_say_nothing_and_no_rows_do_not_fail() -> None:
    fitted, far = sums(np.full(100, 0.2, np.float32)), np.full(LEAST_ROWS - 1, 1.9, np.float32)
    for new in (sums(far), ErrorSums()):
        drift = drift_of(fitted, new)
        assert (drift.rise, drift.low, drift.high, drift.refit) == (None, None, None, False)


def test_any_error_counts_where_the_fitted_rows_lie_on_their_centroids() -> None:
    fitted = sums(np.zeros(16, np.float32))
    assert drift_of(fitted, sums(np.full(50, 0.1, np.float32))).refit
    assert not drift_of(fitted, sums(np.zeros(50, np.float32))).refit


def test_errors_that_are_not_numbers_are_left_out() -> None:
    assert sums(np.array([0.5, np.nan, 1.0], np.float32)) == sums(np.array([0.5, 1.0], np.float32))
