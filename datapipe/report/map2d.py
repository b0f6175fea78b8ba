"""Vectors to a map of two dimensions, the same one every time.

UMAP where umap-learn is installed (McInnes et al., arXiv 1802.03426), else the first two principal components.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from datapipe.errors import VectorError

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32, Float64, Int64

__all__ = ["map_2d", "principal_components"]

NEIGHBOURS = 15
"""Nearest rows, the row itself among them, that UMAP tries to keep near."""
LEAST_UMAP = 500
"""Fewer rows are mapped by PCA: for them UMAP takes longer to compile than its map is worth."""

_CHUNK_ROWS = 512
_NUMPY_SEEDS = 2**32

Method = Literal["UMAP", "PCA"]


def map_2d(vectors: Float32, *, seed: int) -> tuple[Float32, Method]:
    """Return a map of up to about 4,000 rows; the sample is the caller's.

    UMAP starts at the principal components and is given its neighbours, computed here in float64 on one thread, so the
    map does not hang on the number of threads. `seed` moves UMAP alone. Time rows^2 * dim, memory 16 kB a row.

    Args:
        vectors: float32 (rows, dim); compared by cosine.
        seed: Of UMAP's optimiser.

    Returns:
        Coordinates, float32 (rows, 2), and `UMAP` or `PCA`; PCA for fewer than `LEAST_UMAP` rows.

    Raises:
        VectorError: Not (rows, dim), or a value is not finite; names the first such row.
    """
    if vectors.ndim != 2:  # noqa: PLR2004
        raise VectorError(f"a map needs vectors of shape (rows, dim); got {vectors.shape}")
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise VectorError(f"a map needs finite vectors; row {bad[0]} is not")
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        flat = principal_components(vectors)
        if len(vectors) < LEAST_UMAP or importlib.util.find_spec("umap") is None:
            return flat, "PCA"
        neighbours, distances = _neighbours(vectors)
        # Turned so that the map is widest from left to right; UMAP leaves the turn open.
        return principal_components(_umap(vectors, flat, neighbours, distances, seed=seed)), "UMAP"


def principal_components(vectors: Float32) -> Float32:
    """Return the first two principal components, float32 (rows, 2), missing ones as zeros.

    The sign of each is such that its loading of largest size, the first of equals, is positive; LAPACK leaves it open.
    """
    centred: Float64 = vectors.astype(np.float64)
    centred -= centred.mean(axis=0) if len(centred) else 0.0
    flat = np.zeros((len(vectors), 2), np.float32)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    for place in range(min(2, int((sizes > 1e-9 * max(1.0, float(sizes.max(initial=0.0)))).sum()))):
        axis = axes[place]
        # Rounded, so that two loadings of equal size do not swap places by an error of the last bit.
        sign = 1.0 if axis[int(np.argmax(np.round(np.abs(axis), 9)))] > 0 else -1.0
        flat[:, place] = (centred @ (sign * axis)).astype(np.float32)
    return flat


def _neighbours(vectors: Float32) -> tuple[Int64, Float32]:
    """Return the nearest rows by cosine, the row itself first, and their distances; ties go to the lower row."""
    units: Float64 = vectors.astype(np.float64)
    lengths = np.linalg.norm(units, axis=1, keepdims=True)
    units /= np.where(lengths > 0, lengths, 1)
    nearest = np.empty((len(units), NEIGHBOURS), np.int64)
    chosen = np.empty((len(units), NEIGHBOURS), np.float32)
    for start in range(0, len(units), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        # On a grid of 2^-20 the last bits of a product, which hang on the machine's blocking, decide nothing.
        distances = np.maximum(np.round((1 - units[rows] @ units.T) * 2**20) / 2**20, 0)
        own = np.arange(len(distances))
        distances[own, start + own] = -1
        nearest[rows] = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
        chosen[rows] = np.maximum(np.take_along_axis(distances, nearest[rows], axis=1), 0)
    return nearest, chosen


def _umap(vectors: Float32, flat: Float32, neighbours: Int64, distances: Float32, *, seed: int) -> Float32:
    start = flat / (float(np.abs(flat).max()) or 1.0) * 10
    quiet = logging.getLogger("numba")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import umap

            model = umap.UMAP(
                n_neighbors=neighbours.shape[1],
                min_dist=0.4,
                n_epochs=200,
                metric="cosine",
                init=start.astype(np.float32),
                precomputed_knn=(neighbours, distances),
                random_state=seed % _NUMPY_SEEDS,
                n_jobs=1,
            )
            placed: Float32 = np.asarray(model.fit_transform(vectors), dtype=np.float32)
    finally:
        quiet.setLevel(level)
    return placed
