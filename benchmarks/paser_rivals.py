"""Ways to cluster vectors that this project's clusters are measured beside.

k-means on the vectors themselves, scikit-learn's spectral clustering, and PASER's own dense recipe. Each takes vectors,
a number of clusters and a seed, and gives a label a row, int64 (rows,).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from datapipe.metrics.assign import Assigner
from datapipe.metrics.kmeans import spherical_kmeans
from datapipe.metrics.pool import ChunkPool
from datapipe.paser.graph import dense_affinity

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32, Int64

NEIGHBOURS = 15
RESTARTS = 10
"""Of scikit-learn's k-means: the best of so many."""


def plain_kmeans(vectors: Float32, k: int, seed: int) -> Int64:
    """Spherical k-means of this project on the vectors themselves, one start."""
    centres = spherical_kmeans(vectors, k=k, seed=seed, iterations=50)
    pool = ChunkPool()
    try:
        found: Int64 = Assigner(centres, pool=pool).assign(vectors)[1].astype(np.int64)
    finally:
        pool.close()
    return found


def sklearn_kmeans(vectors: Float32, k: int, seed: int) -> Int64:
    """scikit-learn's k-means on the vectors themselves, the best of ten starts."""
    from sklearn.cluster import KMeans

    found: Int64 = KMeans(k, n_init=RESTARTS, random_state=seed).fit_predict(vectors).astype(np.int64)
    return found


def sklearn_spectral(vectors: Float32, k: int, seed: int) -> Int64:
    """scikit-learn's spectral clustering of the nearest-neighbour graph, as sparse as ours."""
    from sklearn.cluster import SpectralClustering

    model = SpectralClustering(k, affinity="nearest_neighbors", n_neighbors=NEIGHBOURS, random_state=seed, n_jobs=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Int64 = model.fit_predict(vectors).astype(np.int64)
    return found


def paper_recipe(vectors: Float32, k: int, seed: int) -> Int64:
    """PASER's clustering as its description says (arXiv 2502.12594, "S2RIC"), written anew.

    Memory rows^2, time rows^3. One Gaussian over all pairs, the random-walk Laplacian I - D^-1 A, its k eigenvectors of
    least magnitude, V, and the non-negative factors W H of the elementwise |V V^T|; a row's cluster is its largest
    entry of W.
    """
    from scipy.linalg import eigh
    from sklearn.decomposition import NMF

    affinity = dense_affinity(vectors)
    np.fill_diagonal(affinity, 1.0)
    roots = np.sqrt(affinity.sum(axis=1))
    # I - D^-1 A and I - D^-1/2 A D^-1/2 have the same eigenvalues; their eigenvectors differ by D^-1/2.
    _, vectors_of = eigh(np.eye(len(roots)) - affinity / roots[:, None] / roots[None, :], subset_by_index=(0, k - 1))
    walk = vectors_of / roots[:, None]
    walk /= np.linalg.norm(walk, axis=0)
    model = NMF(k, init="random", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = model.fit_transform(np.abs(walk @ walk.T))
    found: Int64 = weights.argmax(axis=1).astype(np.int64)
    return found
