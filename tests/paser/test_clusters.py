"""Clusters of vectors whose groups are known, the spectrum behind them, and rows that come later."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from datapipe.errors import ConfigError, VectorError
from datapipe.paser.clusters import ClusterConfig, cluster
from datapipe.paser.graph import (
    DENSE_ROWS,
    dense_affinity,
    distances,
    distinct,
    gaussian_affinity,
    nearest_among,
    neighbours,
    umap_affinity,
)
from datapipe.paser.names import cluster_names
from datapipe.paser.spectrum import smallest_eigenpairs
from datapipe.paser.symnmf import memberships

GROUPS, DIM = 6, 24


def grouped(rows: int = 60, *, spread: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around six directions, in a random order, and the direction of each."""
    draws = np.random.default_rng(seed)
    truth = draws.permutation(np.repeat(np.arange(GROUPS), rows))
    vectors = draws.normal(size=(GROUPS, DIM))[truth] + spread * draws.normal(size=(len(truth), DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), truth


def chain(rows: int = 300, parts: int = 1) -> Any:
    """A path, or several: its Laplacian's eigenvalues are known in closed form to lie close together."""
    links = np.ones(rows - 1)
    links[[rows * at // parts - 1 for at in range(1, parts)]] = 0.0
    return sparse.diags([links, links], [-1, 1]).tocsr()


@pytest.mark.parametrize("affinity", ["umap", "gaussian", "paper_dense"])
@pytest.mark.parametrize("labels", ["ward", "symnmf", "kmeans"])
def test_groups_are_found_by_every_affinity(affinity: Any, labels: Any) -> None:
    vectors, truth = grouped()
    found = cluster(vectors, ClusterConfig(k=GROUPS, affinity=affinity, labels=labels))
    assert adjusted_rand_score(truth, found.labels) > 0.95
    assert found.shares.sum(1) == pytest.approx(np.ones(len(truth)), abs=1e-5)
    assert np.bincount(found.labels)[0] == np.bincount(found.labels).max()


def test_the_number_of_groups_is_found_and_its_stability_told() -> None:
    vectors, truth = grouped(spread=0.4)
    found = cluster(vectors, ClusterConfig(most=12))
    assert found.k == GROUPS
    assert found.stability[GROUPS] > 0.95
    assert adjusted_rand_score(truth, found.labels) > 0.95


def test_threads_change_no_bit_and_the_order_of_the_rows_no_group() -> None:
    vectors, _ = grouped()
    one, two = (cluster(vectors, ClusterConfig(k=GROUPS), threads=threads) for threads in (1, 2))
    assert one.shares.tobytes() == two.shares.tobytes()
    turned = np.random.default_rng(1).permutation(len(vectors))
    assert adjusted_rand_score(cluster(vectors[turned], ClusterConfig(k=GROUPS)).labels, one.labels[turned]) == 1.0


def test_repeats_share_the_cluster_of_their_first_and_make_none_of_their_own() -> None:
    vectors, truth = grouped()
    repeated = np.concatenate([vectors, np.repeat(vectors[:1], 200, axis=0)])
    found = cluster(repeated, ClusterConfig(k=GROUPS))
    assert len(set(found.labels[len(truth) :].tolist()) | {int(found.labels[0])}) == 1
    assert adjusted_rand_score(truth, found.labels[: len(truth)]) > 0.95


def test_rows_that_come_later_join_the_cluster_of_their_neighbours() -> None:
    vectors, truth = grouped(90)
    found = cluster(vectors[:400], ClusterConfig(k=GROUPS))
    later, shares = found.assign(vectors[400:])
    assert adjusted_rand_score(truth[400:], later) > 0.9
    assert shares.sum(1) == pytest.approx(np.ones(len(later)), abs=1e-5)
    known, own = found.assign(vectors[:400])
    assert (known == found.labels).all()
    np.testing.assert_allclose(own, found.shares, atol=1e-6)


def test_a_handful_of_rows_is_one_cluster() -> None:
    vectors, _ = grouped()
    for few in (vectors[:7], np.repeat(vectors[:1], 40, axis=0)):
        found = cluster(few)
        assert found.k == 1
        assert found.labels.tolist() == [0] * len(few)


def test_eigenpairs_agree_with_a_dense_solver_where_eigenvalues_lie_close() -> None:
    graph = chain()
    found = smallest_eigenpairs(graph, pairs=6, tolerance=1e-7, rounds=200)
    roots = np.sqrt(np.asarray(graph.sum(1)).ravel())
    exact = np.linalg.eigvalsh(np.eye(300) - graph.toarray() / roots[:, None] / roots[None, :])
    np.testing.assert_allclose(found.values, exact[:6], atol=1e-6)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(6), atol=1e-6)
    assert found.components == 1


def test_small_components_are_left_out_and_large_ones_each_give_a_zero() -> None:
    found = smallest_eigenpairs(chain(300, parts=3), pairs=4, least_rows=50, rounds=100)
    assert found.components == 3
    assert found.values[:3] == pytest.approx([0, 0, 0], abs=1e-6)
    assert found.values[3] > 1e-5
    island = sparse.block_diag([chain(200), chain(5)]).tocsr()
    found = smallest_eigenpairs(island, pairs=2, least_rows=20)
    assert found.whole.tolist() == [True] * 200 + [False] * 5
    assert (found.vectors[200:] == 0).all()


def test_updates_of_the_factors_never_leave_the_graph_worse_described() -> None:
    vectors, truth = grouped()
    graph = gaussian_affinity(neighbours(vectors, k=10))
    start = np.where(np.random.default_rng(0).random(len(truth)) < 0.3, 0, truth)
    shares = memberships(graph, start, k=GROUPS)
    assert adjusted_rand_score(truth, shares.argmax(1)) > adjusted_rand_score(truth, start)


def test_affinities_are_symmetric_and_between_nothing_and_one() -> None:
    found = neighbours(grouped()[0], k=8)
    for graph in (umap_affinity(found), gaussian_affinity(found)):
        assert abs(graph - graph.T).max() < 1e-12
        assert graph.data.min() > 0
        assert graph.data.max() <= 1.0
        assert (graph.diagonal() == 0).all()


@pytest.mark.slow  # numba compiles for ten seconds
@pytest.mark.filterwarnings("ignore")
def test_the_fuzzy_set_has_the_numbers_of_umap_learn() -> None:
    from umap.umap_ import fuzzy_simplicial_set

    vectors, _ = grouped()
    found = neighbours(np.concatenate([vectors, np.repeat(vectors[:1], 12, axis=0)]), k=10)
    rows = len(found.rows)
    who = np.concatenate([np.arange(rows)[:, None], found.rows], axis=1).astype(np.int32)
    far = np.concatenate([np.zeros((rows, 1), np.float32), distances(found)], axis=1)
    theirs = fuzzy_simplicial_set(
        np.empty((rows, 1), np.float32), 11, np.random.RandomState(0), "euclidean", knn_indices=who, knn_dists=far
    )
    ours = umap_affinity(found)
    assert abs(ours - theirs[0]).max() < 1e-5
    assert ours.nnz == theirs[0].nnz


def test_inverted_lists_find_nearly_all_neighbours_and_say_how_many() -> None:
    vectors, _ = grouped(300)
    exact = neighbours(vectors, k=10)
    listed = neighbours(vectors, k=10, exact_rows=100, probes=12)
    assert exact.recall == 1.0
    assert 0.9 < listed.recall <= 1.0
    assert np.mean(listed.rows == exact.rows) > 0.9
    who, cosines = nearest_among(vectors, vectors[:5], k=10, own=np.arange(5))
    np.testing.assert_allclose(cosines, exact.cosines[:5], atol=5e-3)
    assert np.mean(who == exact.rows[:5]) > 0.9


def test_distinct_vectors_keep_the_order_of_the_rows() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 0], [0.6, 0.8]], np.float32)
    first, place = distinct(vectors)
    assert first.tolist() == [0, 1, 3]
    assert place.tolist() == [0, 1, 0, 2]


def test_names_are_words_that_tell_a_cluster_from_the_others() -> None:
    texts = ["Write a Python function that sorts numbers", "Fix this Python function"] * 3
    texts += ["How many apples are left? Solve the problem", "Solve: apples and pears"] * 3
    names = cluster_names(texts, np.repeat([0, 1], 6))
    assert "python function" in names[0]
    assert any("apples" in each for each in names[1])
    assert not set(names[0]) & set(names[1])
    assert cluster_names(["", "?"], np.array([0, 1])) == [(), ()]


def test_what_cannot_be_clustered_is_refused_in_words() -> None:
    vectors, _ = grouped()
    with pytest.raises(ConfigError, match="affinity must be one of umap, gaussian, paper_dense"):
        cluster(vectors, ClusterConfig(affinity="cosine"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="k >= 1; got 0"):
        cluster(vectors, ClusterConfig(k=0))
    with pytest.raises(ConfigError, match="2 or more; got 1"):
        cluster(vectors, ClusterConfig(neighbours=1))
    with pytest.raises(VectorError, match="row 1 is not finite"):
        neighbours(np.array([[1, 0], [np.nan, 0], [0, 1]], np.float32), k=1)
    with pytest.raises(ConfigError, match="take affinity umap or gaussian"):
        dense_affinity(np.zeros((DENSE_ROWS + 1, 2), np.float32))
    with pytest.raises(ConfigError, match="2 texts have 1 labels"):
        cluster_names(["a", "b"], np.array([0]))
    with pytest.raises(ConfigError, match="6 directions need as many rows"):
        smallest_eigenpairs(chain(5), pairs=6)
