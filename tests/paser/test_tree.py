"""Ward's tree against scipy's, what its cuts keep, and vectors that a graph has smoothed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.cluster.hierarchy import linkage
from sklearn.metrics import adjusted_rand_score

from datapipe.errors import ConfigError
from datapipe.paser.clusters import ClusterConfig, cluster
from datapipe.paser.labelling import elbow
from datapipe.paser.tree import CHUNK, fine_clusters, means_of, smoothed, ward_tree


def points(rows: int, *, dim: int = 5, seed: int = 0) -> np.ndarray:
    """Unit vectors in random directions, float32."""
    found = np.random.default_rng(seed).normal(size=(rows, dim))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def ring(rows: int, *, parts: int) -> sparse.csr_matrix:
    """Rows of a group beside each other are neighbours; no two groups are."""
    group = np.arange(rows) * parts // rows
    ends = np.flatnonzero(group[1:] == group[:-1])
    one_way = sparse.csr_matrix((np.ones(len(ends)), (ends, ends + 1)), shape=(rows, rows))
    return (one_way + one_way.T).tocsr()


@given(rows=st.integers(2, 40), seed=st.integers(0, 99))
def test_the_tree_of_single_rows_is_that_of_scipy(rows: int, seed: int) -> None:
    vectors = points(rows, seed=seed)
    tree = ward_tree(vectors.astype(np.float64), np.ones(rows, np.int64))
    np.testing.assert_allclose(np.sqrt(2.0 * tree.heights), linkage(vectors, "ward")[:, 2], rtol=1e-5, atol=1e-6)
    assert tree.leaves == rows


@given(rows=st.integers(2, 60), seed=st.integers(0, 99))
def test_heights_add_up_to_all_squared_distances_and_cuts_are_nested(rows: int, seed: int) -> None:
    vectors = points(rows, seed=seed)
    fine = fine_clusters(vectors, count=max(rows // 3, 1), seed=seed)
    means, sizes = means_of(vectors, fine)
    assert sizes.sum() == rows
    assert sizes.min() >= 1
    tree = ward_tree(means, sizes)
    within = np.square(vectors - means[fine]).sum()
    total = np.square(vectors - vectors.mean(axis=0)).sum()
    assert within + tree.heights.sum() == pytest.approx(total, rel=1e-4, abs=1e-5)
    for k in range(1, tree.leaves):
        coarse, finer = tree.cut(k), tree.cut(k + 1)
        assert sorted(set(coarse.tolist())) == list(range(k))
        assert all(len(set(coarse[finer == number].tolist())) == 1 for number in range(k + 1))


def test_smoothing_brings_groups_together_and_leaves_who_has_no_neighbour() -> None:
    vectors, graph = points(90, dim=8), ring(90, parts=3)
    graph = sparse.block_diag([graph, sparse.csr_matrix((1, 1))]).tocsr()
    vectors = np.concatenate([vectors, points(1, dim=8, seed=1)])
    found = smoothed(graph, vectors, steps=40)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found[90], vectors[90], atol=1e-6)
    own = [found[start : start + 30] for start in (0, 30, 60)]
    before = vectors[:30] @ vectors[:30].T
    assert (own[0] @ own[0].T).mean() > before.mean() + 0.2
    np.testing.assert_allclose(smoothed(graph, vectors, steps=0), vectors, atol=1e-6)


def test_threads_change_no_bit_of_smoothed_vectors_and_the_arguments_are_kept() -> None:
    rows = CHUNK + 100
    vectors, graph = points(rows), ring(rows, parts=4)
    kept = vectors.copy()
    one, two = (smoothed(graph, vectors, steps=3, threads=threads) for threads in (1, 2))
    assert one.tobytes() == two.tobytes()
    assert (vectors == kept).all()


def test_the_elbow_is_where_groups_end() -> None:
    centres = np.repeat(np.eye(7) * 10.0, 12, axis=0)
    means = centres + np.random.default_rng(0).normal(size=centres.shape)
    tree = ward_tree(means, np.ones(len(means), np.int64))
    assert elbow(tree, rest=1.0, most=40) == 7
    assert elbow(tree, rest=1.0, most=6) <= 6
    copies = ward_tree(np.zeros((9, 2)), np.ones(9, np.int64))
    assert 4 <= elbow(copies, rest=0.0, most=64) <= 9


def test_more_clusters_than_a_tree_has_by_default_are_still_given() -> None:
    vectors = points(300, dim=16)
    assert cluster(vectors, ClusterConfig(k=60)).k == 60
    found = cluster(vectors, ClusterConfig(k=60, fine=1))
    assert len(set(found.labels.tolist())) == 60


def test_memberships_are_shared_with_neighbours_and_the_labels_are_their_largest() -> None:
    vectors = points(400, dim=4)
    found = cluster(vectors, ClusterConfig(k=8))
    assert (found.shares.argmax(1) == found.labels).all()
    assert found.shares.max() <= 1.0
    assert (np.sort(found.shares, axis=1)[:, -2] > 0).any()
    umap = cluster(vectors, ClusterConfig(k=8, affinity="umap"))
    assert adjusted_rand_score(umap.labels, found.labels) > 0.4


def test_settings_of_the_tree_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="labels must be one of ward, symnmf, kmeans"):
        cluster(points(50), ClusterConfig(labels="leiden"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="steps >= 0 and fine >= 1 clusters; got -1 and 400"):
        cluster(points(50), ClusterConfig(steps=-1))
