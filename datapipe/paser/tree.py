"""A tree of clusters: fine clusters of vectors that a graph has smoothed, joined two by two.

    graph, vectors -> smoothed vectors -> fine clusters by k-means -> Ward's tree (1963) -> any number of clusters

A step of smoothing puts each vector half way to the weighted mean of its neighbours': a low pass on the graph (Taubin
1995; for clusters, Zhang et al. 2019, "Attributed graph clustering via adaptive graph convolution"), so vectors of one
group come together while groups stay where they are. Ward's rule joins the two clusters whose union adds least to the
squared distances to the means. Bits do not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.metrics.assign import Assigner
from datapipe.metrics.kmeans import spherical_kmeans
from datapipe.metrics.pool import ChunkPool

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32, Float64, Int64

CHUNK = 8192
"""Rows that one thread works on."""
FINE_SAMPLE = 65_536
"""Rows from which the centres of the fine clusters are fitted."""


@dataclass(frozen=True, eq=False)
class Tree:
    """Ward's tree over fine clusters.

    Attributes:
        left: Cluster that each join keeps, int64 (fine - 1,), in the order of the joins.
        right: Cluster that it takes in, greater than `left`.
        heights: Squared distance to the means that each join adds, float64.
    """

    left: Int64
    right: Int64
    heights: Float64

    @property
    def leaves(self) -> int:
        """Fine clusters."""
        return len(self.left) + 1

    def cut(self, k: int) -> Int64:
        """The cluster of each fine cluster where k are left, int64 (leaves,) in [0, k)."""
        labels = np.arange(self.leaves)
        for left, right in zip(self.left[: self.leaves - k].tolist(), self.right.tolist(), strict=False):
            labels[labels == right] = left
        found: Int64 = np.unique(labels, return_inverse=True)[1].astype(np.int64)
        return found


def smoothed(graph: Any, vectors: Float32, *, steps: int, threads: int | None = None) -> Float32:
    """X <- (X + D^-1 W X) / 2, `steps` times, then unit length; float32 (rows, dim).

    A row without neighbours keeps its vector. Memory 12 bytes a row and dim; time non-zeros * dim a step.

    Args:
        graph: W, symmetric scipy CSR (rows, rows), >= 0.
        vectors: X, float32 (rows, dim), unit length.
        steps: How often, >= 0.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
    """
    from scipy import sparse

    degrees = np.asarray(graph.sum(axis=1)).ravel()
    scale = np.divide(0.5, degrees, out=np.zeros_like(degrees), where=degrees > 0)
    walk = sparse.csr_matrix(sparse.diags(scale) @ graph, dtype=np.float32)
    own = np.where(degrees > 0, 0.5, 1.0).astype(np.float32)[:, None]
    now, after = vectors, np.empty_like(vectors)
    pool = ChunkPool(threads)
    try:
        for _ in range(steps):

            def work(start: int, now: Float32 = now, after: Float32 = after) -> None:
                some = slice(start, start + CHUNK)
                after[some] = own[some] * now[some] + walk[some] @ now

            pool.map(work, range(0, len(vectors), CHUNK))
            now, after = after, np.empty_like(vectors) if now is vectors else now
    finally:
        pool.close()
    sizes = np.sqrt(np.einsum("ij,ij->i", now, now)).astype(np.float32)[:, None]
    found = vectors.copy() if now is vectors else now
    np.divide(found, sizes, out=found, where=sizes > 0)
    lost = np.flatnonzero(sizes[:, 0] == 0)
    found[lost] = vectors[lost]
    return found


def fine_clusters(vectors: Float32, *, count: int, seed: int = 0, threads: int | None = None) -> Int64:
    """Cluster of each row by spherical k-means, none of them empty, int64 (rows,).

    Args:
        vectors: float32 (rows, dim), unit length.
        count: Clusters at most, 1 <= count <= rows.
        seed: Of the start, and of the sample that centres are fitted to where there are more than `FINE_SAMPLE` rows.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
    """
    sample = vectors
    if len(vectors) > FINE_SAMPLE:
        draws = np.random.Generator(np.random.Philox(seed))
        sample = vectors[np.sort(draws.permutation(len(vectors))[:FINE_SAMPLE])]
    centres = spherical_kmeans(sample, k=count, seed=seed, threads=threads)
    pool = ChunkPool(threads)
    try:
        nearest = Assigner(centres, pool=pool).assign(vectors)[1]
    finally:
        pool.close()
    found: Int64 = np.unique(nearest, return_inverse=True)[1].astype(np.int64)
    return found


def means_of(vectors: Float32, labels: Int64) -> tuple[Float64, Int64]:
    """Mean vector and rows of each cluster, float64 (clusters, dim) and int64 (clusters,)."""
    from scipy import sparse

    sizes = np.bincount(labels).astype(np.int64)
    ones = sparse.csr_matrix(
        (np.ones(len(labels)), labels, np.arange(len(labels) + 1)), shape=(len(labels), len(sizes))
    )
    sums = np.zeros((len(sizes), vectors.shape[1]))
    for start in range(0, len(labels), CHUNK):
        some = slice(start, start + CHUNK)
        sums += ones[some].T @ vectors[some].astype(np.float64)
    return sums / sizes[:, None], sizes


def ward_tree(means: Float64, sizes: Int64) -> Tree:
    """Join clusters until one is left, each time the two whose union adds least squared distance to the means.

    The cost of joining a and b is |a||b| / (|a| + |b|) times the squared distance of their means; ties go to the
    lower number. Time clusters^2 * dim, memory 8 * clusters^2 bytes.

    Args:
        means: float64 (clusters, dim).
        sizes: Rows of each, int64 (clusters,), >= 1.
    """
    means, weights, count = means.copy(), sizes.astype(np.float64), len(means)
    squares = np.einsum("ij,ij->i", means, means)
    apart = np.maximum(squares[:, None] + squares[None, :] - 2.0 * means @ means.T, 0.0)
    costs = apart * weights[:, None] * weights[None, :] / (weights[:, None] + weights[None, :])
    np.fill_diagonal(costs, np.inf)
    nearest = costs.argmin(axis=1)
    least = costs[np.arange(count), nearest]
    joins: list[tuple[int, int, float]] = []
    for _ in range(count - 1):
        one = int(least.argmin())
        left, right = sorted((one, int(nearest[one])))
        joins.append((left, right, float(least[one])))
        total = weights[left] + weights[right]
        means[left] = (weights[left] * means[left] + weights[right] * means[right]) / total
        weights[left], weights[right], least[right] = total, 0.0, np.inf
        costs[right], costs[:, right] = np.inf, np.inf
        away = np.square(means - means[left]).sum(axis=1) * weights * total / (weights + total)
        away[weights == 0], away[left] = np.inf, np.inf
        costs[left], costs[:, left] = away, away
        alone = weights > 0
        lost = np.flatnonzero(alone & ((nearest == left) | (nearest == right)))
        nearest[lost] = costs[lost].argmin(axis=1)
        nearest[left] = away.argmin()
        closer = alone & (away < least)
        closer[left] = False
        nearest[closer] = left
        kept = np.flatnonzero(alone)
        least[kept] = costs[kept, nearest[kept]]
    left_of, right_of, heights = zip(*joins, strict=True) if joins else ((), (), ())
    return Tree(np.array(left_of, np.int64), np.array(right_of, np.int64), np.array(heights, np.float64))
