"""Skills of an instruction pool: clusters of its vectors at any scale, and the cluster of a row that comes later.

    vectors -> distinct -> neighbours -> affinity -> labels and memberships (`labelling`) -> numbered by size

As PASER's manifold clustering of instructions (arXiv 2502.12594, section 3.2, "S2RIC"), with choices of our own where
the paper is silent or cannot scale: a sparse graph, which smooths the vectors or whose eigenvectors stand for them, and
a number of clusters that is found. Raises `ConfigError` and `VectorError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from datapipe.errors import ConfigError
from datapipe.paser.clusters_file import KnownRows
from datapipe.paser.graph import (
    AFFINITIES,
    Affinity,
    dense_affinity,
    distinct,
    gaussian_affinity,
    neighbours,
    umap_affinity,
)
from datapipe.paser.labelling import LEAST_CLUSTERS, MOST_CLUSTERS, by_eigenvectors, by_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.storage.arrays import Float32, Float64, Int64

Labels = Literal["ward", "symnmf", "kmeans"]
LABELS: tuple[str, ...] = get_args(Labels)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What the clusters depend on.

    Attributes:
        k: Clusters; None finds them between 4 and `most`.
        most: Clusters at most where they are to be found, 4 ... 64.
        neighbours: Of each row in the graph, >= 2.
        affinity: `gaussian`, `umap` or `paper_dense`.
        labels: `ward`, a tree over smoothed vectors; `symnmf`, as the paper, or `kmeans`, on the eigenvectors.
        steps: How often `ward` smooths the vectors over the graph, >= 0.
        fine: Fine clusters that `ward` joins, at most; more are slower and no better.
        exact_rows: Distinct rows up to which neighbours are exact.
        probes: Lists searched above that.
        seed: Of every draw.
    """

    k: int | None = None
    most: int = MOST_CLUSTERS
    neighbours: int = 15
    affinity: Affinity = "gaussian"
    labels: Labels = "ward"
    steps: int = 8
    fine: int = 400
    exact_rows: int = 200_000
    probes: int = 32
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Clusters:
    """What was found.

    Attributes:
        labels: Cluster of each row, int64 (rows,); 0 is the largest.
        shares: Membership of each row in each cluster, float32 (rows, k), rows summing to 1.
        coordinates: Diffusion map of each row, float32 (rows, k).
        eigenvalues: Smallest of the normalised Laplacian, ascending, float64.
        stability: Mean adjusted Rand index between clusterings of resampled rows, by number of clusters tried.
        recall: Part of the true neighbours that the search found.
        components: Of the graph, those large enough to be a cluster.
        base: Distinct vectors that vote for new rows, float32 (distinct, dim).
        base_shares: Their memberships, float32 (distinct, k).
    """

    labels: Int64
    shares: Float32
    coordinates: Float32
    eigenvalues: Float64
    stability: dict[int, float]
    recall: float
    components: int
    base: Float32 = field(repr=False)
    base_shares: Float32 = field(repr=False)

    @property
    def k(self) -> int:
        """Number of clusters."""
        return int(self.shares.shape[1])

    def assign(self, vectors: Float32) -> tuple[Int64, Float32]:
        """Cluster and memberships of new rows, int64 (rows,) and float32 (rows, k); see `KnownRows.assign`."""
        return KnownRows(self.base, self.base_shares).assign(vectors)


def cluster(
    vectors: Float32,
    config: ClusterConfig | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Clusters:
    """Cluster the rows of a pool.

    Args:
        vectors: Of the instructions, float32 (rows, dim), unit length.
        config: How.
        device: Where neighbours are searched.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
        progress: Called with the name of each step as it begins.

    Raises:
        ConfigError: The configuration does not fit the rows.
        VectorError: A vector is not finite or not of unit length.
    """
    config, tell = config or ClusterConfig(), progress or (lambda _: None)
    _check(config)
    first, place = distinct(vectors)
    base = vectors[first]
    if len(base) <= max(config.neighbours, 2 * LEAST_CLUSTERS) or config.k == 1:
        return _one(vectors, base)
    graph, recall = _graph(base, config, device=device, threads=threads, tell=tell)
    made = (by_tree if config.labels == "ward" else by_eigenvectors)(graph, base, config, threads=threads, tell=tell)
    order = np.argsort(-np.bincount(made.labels[place], minlength=made.shares.shape[1]), kind="stable")
    shares: Float32 = made.shares[:, order].astype(np.float32)
    return Clusters(
        labels=np.argsort(order)[made.labels][place],
        shares=shares[place],
        coordinates=made.coordinates[place],
        eigenvalues=made.eigenvalues,
        stability=made.stability,
        recall=recall,
        components=made.components,
        base=base,
        base_shares=shares,
    )


def _check(config: ClusterConfig) -> None:
    if config.affinity not in AFFINITIES:
        raise ConfigError(f"affinity must be one of {', '.join(AFFINITIES)}. Got {config.affinity!r}")
    if config.labels not in LABELS:
        raise ConfigError(f"labels must be one of {', '.join(LABELS)}. Got {config.labels!r}")
    if config.steps < 0 or config.fine < 1:
        raise ConfigError(f"smoothing takes steps >= 0 and fine >= 1 clusters; got {config.steps} and {config.fine}")
    if config.k is not None and config.k < 1:
        raise ConfigError(f"k counts clusters, k >= 1; got {config.k}")
    if config.neighbours < 2:  # noqa: PLR2004 - one neighbour makes chains, not a graph
        raise ConfigError(f"neighbours must be 2 or more; got {config.neighbours}")


def _one(vectors: Float32, base: Float32) -> Clusters:
    """Everything in one cluster: too few distinct rows to tell more apart."""
    ones = np.ones((len(vectors), 1), np.float32)
    return Clusters(
        labels=np.zeros(len(vectors), np.int64),
        shares=ones,
        coordinates=ones,
        eigenvalues=np.zeros(1),
        stability={},
        recall=1.0,
        components=1,
        base=base,
        base_shares=np.ones((len(base), 1), np.float32),
    )


def _graph(
    base: Float32, config: ClusterConfig, *, device: str, threads: int | None, tell: Callable[[str], None]
) -> tuple[Any, float]:
    from scipy import sparse

    if config.affinity == "paper_dense":
        tell("affinity")
        return sparse.csr_matrix(dense_affinity(base)), 1.0
    tell("neighbours")
    found = neighbours(
        base,
        k=config.neighbours,
        exact_rows=config.exact_rows,
        probes=config.probes,
        seed=config.seed,
        device=device,
        threads=threads,
    )
    tell("affinity")
    made = umap_affinity(found) if config.affinity == "umap" else gaussian_affinity(found)
    return made, found.recall
