"""Skills of an instruction pool: a spectral clustering that scales, and the cluster of a row that comes later.

    vectors -> distinct -> neighbours -> affinity -> eigenvectors -> how many -> labels -> memberships

As PASER's manifold clustering of instructions (arXiv 2502.12594, section 3.2, "S2RIC"), with choices of our own where
the paper is silent or cannot scale: a sparse graph, the symmetric Laplacian, and the number of clusters by the eigengap
and by how well clusterings of resampled rows agree. Raises `ConfigError` and `VectorError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from datapipe.errors import ConfigError
from datapipe.paser.clusters_file import VOTERS, KnownRows
from datapipe.paser.graph import (
    AFFINITIES,
    Affinity,
    dense_affinity,
    distinct,
    gaussian_affinity,
    nearest_among,
    neighbours,
    umap_affinity,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.paser.spectrum import Spectrum
    from datapipe.storage.arrays import Float32, Float64, Int64

LEAST_CLUSTERS, MOST_CLUSTERS = 4, 64
_CANDIDATES = 3
_RESAMPLED = 5
_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What the clusters depend on.

    Attributes:
        k: Clusters; None finds them between 4 and `most`.
        most: Clusters at most where they are to be found, 4 ... 64.
        neighbours: Of each row in the graph, >= 2.
        affinity: `umap`, `gaussian` or `paper_dense`.
        labels: `symnmf`, as the paper, or `kmeans` on the eigenvectors.
        exact_rows: Distinct rows up to which neighbours are exact.
        probes: Lists searched above that.
        seed: Of every draw.
    """

    k: int | None = None
    most: int = MOST_CLUSTERS
    neighbours: int = 15
    affinity: Affinity = "umap"
    labels: Literal["symnmf", "kmeans"] = "symnmf"
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
    most = min(config.k or max(config.most, LEAST_CLUSTERS), len(base) // 2)
    tell("eigenvectors")
    spectrum = _spectrum(graph, pairs=most + (config.k is None), config=config, threads=threads)
    tell("clusters")
    k, stability = (config.k, {}) if config.k else _how_many(spectrum, most, seed=config.seed)
    base_labels, base_shares = _labelled(graph, spectrum, base, k, config)
    order = np.argsort(-np.bincount(base_labels[place], minlength=k), kind="stable")
    shares: Float32 = base_shares[:, order].astype(np.float32)
    labels = shares.argmax(1).astype(np.int64)
    return Clusters(
        labels=labels[place],
        shares=shares[place],
        coordinates=spectrum.coordinates(k)[place].astype(np.float32),
        eigenvalues=spectrum.values,
        stability=stability,
        recall=recall,
        components=spectrum.components,
        base=base,
        base_shares=shares,
    )


def _check(config: ClusterConfig) -> None:
    if config.affinity not in AFFINITIES:
        raise ConfigError(f"affinity must be one of {', '.join(AFFINITIES)}. Got {config.affinity!r}")
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


def _spectrum(graph: Any, *, pairs: int, config: ClusterConfig, threads: int | None) -> Spectrum:
    from datapipe.paser.spectrum import smallest_eigenpairs

    # What is smaller than a fraction of an even share is no skill of the pool, and each would cost a direction.
    least = max(config.neighbours + 1, graph.shape[0] // (10 * pairs))
    return smallest_eigenpairs(graph, pairs=pairs, least_rows=least, seed=config.seed, threads=threads)


def _how_many(spectrum: Spectrum, most: int, *, seed: int) -> tuple[int, dict[int, float]]:
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
    """Mean adjusted Rand index (Hubert & Arabie 1985) between clusterings of random four fifths of the rows."""
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


def _labelled(graph: Any, spectrum: Spectrum, base: Float32, k: int, config: ClusterConfig) -> tuple[Int64, Float64]:
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
    return found.argmax(1).astype(np.int64), found


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
