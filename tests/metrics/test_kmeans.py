"""Spherical k-means finds what a float64 reference and scikit-learn find, and finds it again to the last bit."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from datapipe.errors import MetricError, VectorError
from datapipe.metrics import kmeans
from datapipe.metrics.kmeans import spherical_kmeans

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32


def clustered(rows: int, *, centres: int, dim: int = 32, noise: float = 0.1, seed: int = 0) -> Float32:
    rng = np.random.default_rng(seed)
    middles = rng.standard_normal((centres, dim))
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    vectors = middles[rng.integers(0, centres, rows)] + noise * rng.standard_normal((rows, dim))
    sample: Float32 = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return sample


def mean_cosine(sample: Float32, prototypes: Float32) -> float:
    return float((sample.astype(np.float64) @ prototypes.T.astype(np.float64)).max(axis=1).mean())


def test_well_separated_clusters_are_found() -> None:
    sample = clustered(2000, centres=8, noise=0.02)
    prototypes = spherical_kmeans(sample, k=8, seed=0)
    assert prototypes.shape == (8, 32)
    assert prototypes.dtype == np.float32
    assert mean_cosine(sample, prototypes) > 0.99


def test_the_centroids_are_unit_vectors_and_a_fixed_point_of_a_float64_round() -> None:
    sample = clustered(1500, centres=10)
    prototypes = spherical_kmeans(sample, k=10, seed=1, iterations=100)
    np.testing.assert_allclose(np.linalg.norm(prototypes, axis=1), 1.0, atol=1e-6)
    wide = sample.astype(np.float64)
    nearest = (wide @ prototypes.T.astype(np.float64)).argmax(axis=1)
    sums = np.stack([wide[nearest == j].sum(axis=0) for j in range(10)])
    np.testing.assert_allclose(prototypes, sums / np.linalg.norm(sums, axis=1, keepdims=True), atol=1e-6)


def test_the_fit_is_as_tight_as_that_of_scikit_learn() -> None:
    sample = clustered(3000, centres=60, noise=0.15)
    ours = mean_cosine(sample, spherical_kmeans(sample, k=40, seed=0))
    theirs = KMeans(40, n_init=1, max_iter=20, random_state=0).fit(sample).cluster_centers_
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    assert 1 - ours <= 1.05 * (1 - mean_cosine(sample, theirs))


def test_more_rounds_never_make_the_fit_worse() -> None:
    sample = clustered(1000, centres=20, noise=0.3)
    fits = [mean_cosine(sample, spherical_kmeans(sample, k=12, seed=0, iterations=n)) for n in (1, 2, 4, 8, 16)]
    assert all(later >= earlier - 1e-7 for earlier, later in pairwise(fits))


def test_the_bits_do_not_depend_on_threads() -> None:
    sample = clustered(20_000, centres=50, dim=48)
    before = torch.get_num_threads()
    fits = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        fits.append(spherical_kmeans(sample, k=50, seed=5, iterations=4, threads=threads).tobytes())
    torch.set_num_threads(before)
    assert len(set(fits)) == 1


def test_another_seed_is_another_start() -> None:
    sample = clustered(500, centres=30, noise=0.3)
    assert not np.array_equal(spherical_kmeans(sample, k=10, seed=0), spherical_kmeans(sample, k=10, seed=1))


def test_one_cluster_is_the_mean_direction() -> None:
    sample = clustered(300, centres=3)
    mean = sample.astype(np.float64).sum(axis=0)
    prototype = spherical_kmeans(sample, k=1, seed=0)
    np.testing.assert_allclose(prototype[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_as_many_clusters_as_rows_give_every_row_its_own() -> None:
    sample = clustered(40, centres=40, noise=0.5)
    np.testing.assert_allclose(mean_cosine(sample, spherical_kmeans(sample, k=40, seed=0)), 1.0, atol=1e-6)


def test_rows_that_are_all_the_same_end_at_once() -> None:
    sample = np.repeat(clustered(1, centres=1), 50, axis=0)
    prototypes = spherical_kmeans(sample, k=4, seed=0)
    np.testing.assert_allclose(prototypes, sample[:4], atol=1e-6)


def test_a_cluster_whose_rows_cancel_out_stays_where_it_is() -> None:
    vector = clustered(1, centres=1)
    prototypes = spherical_kmeans(np.concatenate([vector, -vector]), k=1, seed=0)
    assert np.isfinite(prototypes).all()
    np.testing.assert_allclose(np.abs(prototypes @ vector.T), 1.0, atol=1e-6)


def test_an_empty_centroid_moves_to_the_row_furthest_from_its_own() -> None:
    sample = clustered(50, centres=1, noise=0.05)
    data = kmeans._OnHost(sample, threads=1)
    lonely = -sample[:1]
    prototypes = np.concatenate([sample[:1], lonely])
    cosines, clusters = data.assign(prototypes)
    assert (clusters == 0).all()
    moved = kmeans._centres(data, prototypes, cosines, clusters)
    data.close()
    np.testing.assert_allclose(moved[1], sample[np.argmin(cosines)], atol=1e-6)


def test_the_start_draws_rows_in_proportion_to_their_distance() -> None:
    weights = np.array([0.0, 1.0, 0.0, 3.0])
    free = np.ones(4, np.bool_)
    assert [kmeans._draw(weights, free, u) for u in (0.0, 0.2499, 0.25, 0.9999)] == [1, 1, 3, 3]
    assert kmeans._draw(np.zeros(4), np.array([False, True, True, True]), 0.7) == 1


def test_the_path_of_an_accelerator_finds_the_same_centroids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "_ONE_HOT_CELLS", 1000)
    sample = clustered(700, centres=9, noise=0.02)
    host = spherical_kmeans(sample, k=9, seed=0)
    there = kmeans._OnDevice(sample, device="cpu")
    np.testing.assert_allclose(kmeans._rounds(there, k=9, seed=0, iterations=20), host, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_an_accelerator_repeats_its_bits_and_fits_as_well_as_the_host() -> None:
    sample = clustered(100_000, centres=300, dim=128)
    fits = [spherical_kmeans(sample, k=300, seed=0, device="cuda") for _ in range(2)]
    assert fits[0].tobytes() == fits[1].tobytes()
    host = mean_cosine(sample, spherical_kmeans(sample, k=300, seed=0))
    assert abs(mean_cosine(sample, fits[0]) - host) < 1e-3


@pytest.mark.parametrize(("k", "message"), [(0, "k = 0 prototypes"), (6, "k = 6 prototypes need at least 6 rows")])
def test_a_k_that_does_not_fit_the_sample_is_refused(k: int, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        spherical_kmeans(clustered(5, centres=2), k=k, seed=0)


def test_no_iteration_is_refused() -> None:
    with pytest.raises(MetricError, match="at least one iteration; got 0"):
        spherical_kmeans(clustered(5, centres=2), k=2, seed=0, iterations=0)


def test_rows_that_are_no_unit_vectors_are_named() -> None:
    sample = clustered(9, centres=2)
    sample[4] *= 2
    with pytest.raises(VectorError, match="vector of row 4 has length 2"):
        spherical_kmeans(sample, k=2, seed=0)
    with pytest.raises(VectorError, match=r"its shape is \(9,\)"):
        spherical_kmeans(sample[:, 0], k=2, seed=0)
