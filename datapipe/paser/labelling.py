"""From a graph to labels: by a tree over smoothed vectors, or by eigenvectors, and how many clusters there are.

    graph, vectors -> smoothed -> fine clusters -> Ward's tree -> elbow -> cut -> memberships (`ward`)
    graph -> eigenvectors -> eigengap and agreement -> k-means (`kmeans`) -> factors of the graph (`symnmf`)

`symnmf` is PASER's own kind (arXiv 2502.12594, "S2RIC"). `ward` is closer to what tasks rows are of: eigenvectors of a
sparse graph single out small tight groups, copies of one prompt nearly, before they part large ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.paser.graph import nearest_among
from datapipe.paser.tree import fine_clusters, means_of, smoothed, ward_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.paser.clusters import ClusterConfig
    from datapipe.paser.spectrum import Spectrum
    from datapipe.paser.tree import Tree
    from datapipe.storage.arrays import Float32, Float64, Int64

LEAST_CLUSTERS, MOST_CLUSTERS = 4, 64
VOTERS = 15
"""Nearest rows that say what the cluster of a row without one is."""
_OWN = 0.5 + 2.0**-10
"""Of a row's membership, what its own cluster has before its neighbours are asked: theirs never outweighs it."""
_LEAST_OF_FINE = 8
"""Rows that a fine cluster has, on average, at least."""
_CANDIDATES = 3
_RESAMPLED = 5
_SHARE = 0.8
_TREES, _TREE_ROWS = 3, 8192
"""Trees whose agreement is measured, and rows from which each draws its four fifths."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """What was made of the distinct rows.

    Attributes:
        labels: int64 (rows,) in [0, k).
        shares: Membership of each row in each cluster, float64 (rows, k), rows summing to 1.
        coordinates: Diffusion map, float32 (rows, k or fewer); by the tree it is that of the row's fine cluster.
        eigenvalues: Smallest of the normalised Laplacian, float64; by the tree of the graph between fine clusters.
        stability: Mean adjusted Rand index between clusterings of resampled rows, by number of clusters tried.
        components: Of the graph, those large enough to be a cluster.
    """

    labels: Int64
    shares: Float64
    coordinates: Float32
    eigenvalues: Float64
    stability: dict[int, float]
    components: int


def by_tree(
    graph: Any,
    base: Float32,
    config: ClusterConfig,
    *,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Labelled:
    """Cut Ward's tree over the smoothed vectors.

    A row's membership is half its own cluster, half those of its neighbours by weight.

    Args:
        graph: W, symmetric scipy CSR (rows, rows), >= 0.
        base: float32 (rows, dim), unit length.
        config: How.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
        tell: Called with the name of each step as it begins.
    """
    tell("smoothing")
    smooth = smoothed(graph, base, steps=config.steps, threads=threads)
    tell("tree")
    count = _fine_count(len(base), config.k or LEAST_CLUSTERS, config)
    fine = fine_clusters(smooth, count=count, seed=config.seed, threads=threads)
    means, sizes = means_of(smooth, fine)
    tree = ward_tree(means, sizes)
    rest = float(len(base) - (sizes * np.square(means).sum(axis=1)).sum())
    k = min(config.k or elbow(tree, rest=rest, most=config.most), tree.leaves)
    labels = tree.cut(k)[fine]
    values, directions = _between(graph, fine)
    tell("agreement")
    return Labelled(
        labels=labels,
        shares=_with_neighbours(graph, labels, k),
        coordinates=directions[:, :k][fine].astype(np.float32),
        eigenvalues=values[: max(k, config.most) + 1],
        stability={} if config.k else {k: _trees_agree(smooth, k, config, threads=threads)},
        components=_components(graph, k, config),
    )


def elbow(tree: Tree, *, rest: float, most: int) -> int:
    """The number of clusters, 4 ... `most`, at which the log of the squared distances to the means bends most.

    That is where the curve lies furthest below the straight line from one cluster to `most` (Satopaa et al. 2011).

    Args:
        tree: Over the fine clusters.
        rest: Squared distances within the fine clusters, summed.
        most: Clusters at most.
    """
    most = min(most, tree.leaves)
    within = np.cumsum(np.append(max(rest, 0.0), tree.heights))[::-1][:most]
    fallen = np.log(np.maximum(within, 1e-12 * max(float(within[0]), 1e-300)))
    line = np.linspace(fallen[0], fallen[-1], most)
    below = line - fallen
    least = min(LEAST_CLUSTERS, most)
    return int(below[least - 1 :].argmax()) + least


def by_eigenvectors(
    graph: Any,
    base: Float32,
    config: ClusterConfig,
    *,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Labelled:
    """Cluster the rows of the eigenvectors. Arguments as for `by_tree`."""
    from datapipe.paser.spectrum import smallest_eigenpairs

    tell("eigenvectors")
    most = min(config.k or max(config.most, LEAST_CLUSTERS), len(base) // 2)
    pairs = most + (config.k is None)
    least = _least_rows(len(base), pairs, config)
    spectrum = smallest_eigenpairs(graph, pairs=pairs, least_rows=least, seed=config.seed, threads=threads)
    tell("clusters")
    k, stability = (config.k, {}) if config.k else _by_eigengap(spectrum, most, seed=config.seed)
    shares = _factored(graph, spectrum, base, k, config)
    return Labelled(
        labels=shares.argmax(1).astype(np.int64),
        shares=shares,
        coordinates=spectrum.coordinates(k).astype(np.float32),
        eigenvalues=spectrum.values,
        stability=stability,
        components=spectrum.components,
    )


def _fine_count(rows: int, k: int, config: ClusterConfig) -> int:
    return min(max(min(config.fine, rows // _LEAST_OF_FINE), 2 * k), rows)


def _least_rows(rows: int, clusters: int, config: ClusterConfig) -> int:
    """What is smaller than a fraction of an even share is no skill of the pool, and each would cost a direction."""
    return max(config.neighbours + 1, rows // (10 * clusters))


def _components(graph: Any, k: int, config: ClusterConfig) -> int:
    from scipy.sparse.csgraph import connected_components

    sizes = np.bincount(connected_components(graph, directed=False)[1])
    return int((sizes >= _least_rows(graph.shape[0], k, config)).sum())


def _with_neighbours(graph: Any, labels: Int64, k: int) -> Float64:
    from scipy import sparse

    rows = np.arange(len(labels))
    own = sparse.csr_matrix((np.ones(len(labels)), labels, np.append(rows, len(labels))), shape=(len(labels), k))
    shares: Float64 = (graph @ own).toarray()
    total = shares.sum(axis=1)
    shares *= np.divide(1.0 - _OWN, total, out=np.zeros_like(total), where=total > 0)[:, None]
    shares[rows, labels] += np.where(total > 0, _OWN, 1.0)
    return shares


def _between(graph: Any, fine: Int64) -> tuple[Float64, Float64]:
    """Eigenvalues and diffusion map of the graph between the fine clusters, float64 (fine,) and (fine, fine).

    They are those that the whole graph's Laplacian has among functions that are constant on fine clusters.
    """
    from scipy import sparse

    ones = sparse.csr_matrix((np.ones(len(fine)), fine, np.arange(len(fine) + 1)))
    weights = (ones.T @ graph @ ones).toarray()
    roots = np.sqrt(np.maximum(weights.sum(axis=1), 1e-300))
    values, vectors = np.linalg.eigh(np.eye(len(roots)) - weights / roots[:, None] / roots[None, :])
    top = np.abs(vectors).argmax(axis=0)
    signs = np.where(vectors[top, np.arange(len(roots))] < 0, -1.0, 1.0)
    return np.clip(values, 0.0, 2.0), vectors * signs * (1.0 - values) / roots[:, None]


def _trees_agree(smooth: Float32, k: int, config: ClusterConfig, *, threads: int | None) -> float:
    """Mean adjusted Rand index (Hubert & Arabie) between trees of random four fifths of the rows, on what both have."""
    from sklearn.metrics import adjusted_rand_score

    draws = np.random.Generator(np.random.Philox(config.seed + 1))
    sample = np.sort(draws.permutation(len(smooth))[:_TREE_ROWS])
    found = []
    for turn in range(_TREES):
        some = np.sort(draws.permutation(len(sample))[: max(int(_SHARE * len(sample)), k)])
        vectors = smooth[sample[some]]
        fine = fine_clusters(vectors, count=_fine_count(len(some), k, config), seed=config.seed + turn, threads=threads)
        tree = ward_tree(*means_of(vectors, fine))
        labels = np.full(len(sample), -1)
        labels[some] = tree.cut(min(k, tree.leaves))[fine]
        found.append(labels)
    pairs = [(one, other) for at, one in enumerate(found) for other in found[at + 1 :]]
    both = [(one >= 0) & (other >= 0) for one, other in pairs]
    return float(
        np.mean([adjusted_rand_score(one[at], other[at]) for (one, other), at in zip(pairs, both, strict=True)])
    )


def _by_eigengap(spectrum: Spectrum, most: int, *, seed: int) -> tuple[int, dict[int, float]]:
    """The number of clusters: of the widest relative gaps of the spectrum the one whose clusters agree best.

    The gap after k eigenvalues is (l_(k+1) - l_k) / l_(k+1). The k of the widest are tried, each on resampled rows.
    """
    values = spectrum.values
    tried = np.arange(LEAST_CLUSTERS, min(most, len(values) - 1) + 1)
    gaps = (values[tried] - values[tried - 1]) / np.maximum(values[tried], 1e-12)
    candidates = np.sort(tried[np.argsort(-gaps, kind="stable")[:_CANDIDATES]])
    stability = {int(k): _agreement(spectrum, int(k), seed=seed) for k in candidates}
    best = max(stability, key=lambda k: (round(stability[k], 2), k))
    return best, stability


def _agreement(spectrum: Spectrum, k: int, *, seed: int) -> float:
    """Mean adjusted Rand index between clusterings of random four fifths of the rows."""
    from sklearn.metrics import adjusted_rand_score

    rows = np.flatnonzero(spectrum.whole)
    draws = np.random.Generator(np.random.Philox(seed + 1))
    unit = _unit(spectrum.vectors[rows, :k])
    found = []
    for turn in range(_RESAMPLED):
        some = np.sort(draws.permutation(len(rows))[: int(_SHARE * len(rows))])
        found.append(_nearest(unit, _centres(unit[some], k, seed=seed + turn)))
    pairs = [(one, other) for at, one in enumerate(found) for other in found[at + 1 :]]
    return float(np.mean([adjusted_rand_score(one, other) for one, other in pairs]))


def _factored(graph: Any, spectrum: Spectrum, base: Float32, k: int, config: ClusterConfig) -> Float64:
    """Memberships by k-means on the eigenvectors, or by the factors of the graph that start there."""
    from datapipe.paser.symnmf import memberships

    rows = np.flatnonzero(spectrum.whole)
    unit = _unit(spectrum.vectors[rows, :k])
    inner = _nearest(unit, _centres(unit, k, seed=config.seed))
    whole = graph[rows][:, rows] if len(rows) < graph.shape[0] else graph
    if config.labels == "symnmf":
        shares = memberships(whole, inner, k=k)
    else:
        shares = np.zeros((len(rows), k))
        shares[np.arange(len(rows)), inner] = 1.0
    found = np.zeros((graph.shape[0], k))
    found[rows] = shares
    left = np.flatnonzero(~spectrum.whole)
    if len(left):
        nearest, _ = nearest_among(base[rows], base[left], k=min(VOTERS, len(rows)))
        found[left] = shares[nearest].mean(1)
    return found


def _unit(rows: Float64) -> Float32:
    """Rows at unit length (Ng, Jordan & Weiss 2002), float32; a zero row points along the first axis."""
    sizes = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    unit = np.divide(rows, sizes, out=np.zeros_like(rows), where=sizes > 0)
    unit[sizes[:, 0] == 0, 0] = 1.0
    found: Float32 = unit.astype(np.float32)
    return found


def _centres(unit: Float32, k: int, *, seed: int) -> Float32:
    from datapipe.metrics.kmeans import spherical_kmeans

    return spherical_kmeans(unit, k=k, seed=seed, iterations=50)


def _nearest(unit: Float32, centres: Float32) -> Int64:
    from datapipe.metrics.assign import Assigner
    from datapipe.metrics.pool import ChunkPool

    pool = ChunkPool()
    try:
        return Assigner(centres, pool=pool).assign(unit)[1].astype(np.int64)
    finally:
        pool.close()
