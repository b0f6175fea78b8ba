"""Vectors to a sparse graph of who resembles whom.

    vectors -> distinct vectors -> neighbours (exact, or by inverted lists with a measured recall) -> affinity, CSR

Affinities: `umap`, the fuzzy simplicial set of McInnes et al. 2018 (arXiv 1802.03426, section 3.1) over these
neighbours; `gaussian`, self-tuning (Zelnik-Manor & Perona 2004); `paper_dense`, one Gaussian over all pairs, as
PASER (arXiv 2502.12594) has it, for comparison where it runs. Raises `VectorError` and `ConfigError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from datapipe.errors import ConfigError, VectorError

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.storage.arrays import Float32, Float64, Int64

Affinity = Literal["umap", "gaussian", "paper_dense"]
AFFINITIES: tuple[str, ...] = get_args(Affinity)

DENSE_ROWS = 8_000
"""Rows up to which `paper_dense` is computed: 8 bytes a pair, three times over."""
LIST_SAMPLE = 256
"""Rows a list from which the centroids of the lists are fitted."""
RECALL_ROWS = 512
_SCALE_NEIGHBOUR = 7
"""The neighbour whose distance is a row's own scale (Zelnik-Manor & Perona 2004, section 2)."""
_LEAST_SCALE = 1e-6
_LEAST_SHARE, _TOLERANCE, _BISECTIONS = 1e-3, 1e-5, 64
"""Of the fuzzy set, as umap-learn has them: the least scale against the mean distance, and when a sum is right."""
_AT_ONCE = 65_536
"""Rows whose scales are sought at once."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Who is nearest to whom.

    Attributes:
        rows: int64 (rows, k), nearest first; -1 where fewer could be compared.
        cosines: float32 (rows, k); NaN there.
        recall: Part of the true neighbours that a sample found, 0 ... 1; 1 for the exact search.
    """

    rows: Int64
    cosines: Float32
    recall: float


def distinct(vectors: Float32) -> tuple[Int64, Int64]:
    """Return the first row of each distinct vector, in row order, and for each row its place among them, int64.

    Instructions repeat; a clique of copies would be a component of its own.
    """
    flat = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.shape[1] * vectors.itemsize))).ravel()
    _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    place = np.empty(len(first), np.int64)
    place[order] = np.arange(len(first))
    return first[order].astype(np.int64), place[inverse]


def neighbours(
    vectors: Float32,
    *,
    k: int = 15,
    exact_rows: int = 200_000,
    probes: int = 32,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    tick: Callable[[int], None] | None = None,
) -> Neighbours:
    """Find the k nearest neighbours of every row by cosine.

    Exact up to `exact_rows`, time rows^2 * dim; above, each row is compared with the rows of the `probes` lists (of
    about sqrt(rows)) nearest to its own, and the recall is measured on a sample.

    Args:
        vectors: float32 (rows, dim), unit length, rows > k.
        k: Neighbours, 1 <= k < rows.
        exact_rows: Rows up to which all pairs are compared.
        probes: Lists that a list is compared with above that, >= 1.
        seed: Seeds the centroids of the lists.
        device: "cpu", or a torch device such as "cuda".
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
        tick: Called with the rows just done.

    Raises:
        VectorError: A vector is not finite or not of unit length; names the first such row.
        ConfigError: k does not fit the number of rows.
    """
    from datapipe.metrics.assign import check_unit
    from datapipe.metrics.knn import measured_recall, nearest_neighbours
    from datapipe.storage.vectors import codes, encode

    check_unit(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)))
    if not 1 <= k < len(vectors):
        raise ConfigError(f"k = {k} neighbours need more than {max(k, 1)} rows and k >= 1; there are {len(vectors)}")
    bits = codes(encode(vectors))
    lists, near = _listed(
        vectors, bits, exact_rows=exact_rows, probes=probes, seed=seed, device=device, threads=threads
    )
    rows, cosines = nearest_neighbours(lists, near, k=k, device=device, threads=threads, tick=tick)
    recall = 1.0
    if len(lists) > 1:
        asked = np.linspace(0, len(vectors) - 1, min(RECALL_ROWS, len(vectors))).astype(np.int64)
        recall = measured_recall(cosines[asked], nearest_among(vectors, vectors[asked], k=k, own=asked)[1])
    return Neighbours(rows, cosines, recall)


def nearest_among(
    base: Float32, queries: Float32, *, k: int, own: Int64 | None = None, at_once: int = 4096
) -> tuple[Int64, Float32]:
    """The k rows of `base` nearest to each query and the cosines, int64 and float32 (queries, k), nearest first.

    Args:
        base: float32 (rows, dim), unit length, rows >= k.
        queries: float32 (queries, dim), unit length.
        k: How many.
        own: Row of `base` that each query is, which does not count, int64 (queries,).
        at_once: Rows of `base` in one product.
    """
    import torch

    best = np.full((len(queries), k), -np.inf, np.float32)
    where = np.zeros((len(queries), k), np.int64)
    for start in range(0, len(base), at_once):
        cosines = queries @ base[start : start + at_once].T
        if own is not None:
            inside = np.flatnonzero((own >= start) & (own < start + at_once))
            cosines[inside, own[inside] - start] = -np.inf
        top = torch.from_numpy(cosines).topk(min(k, cosines.shape[1]), dim=1)
        values = np.concatenate([best, top.values.numpy()], axis=1)
        places = np.concatenate([where, top.indices.numpy() + start], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        best, where = np.take_along_axis(values, order, 1), np.take_along_axis(places, order, 1)
    return where, best


def umap_affinity(found: Neighbours) -> Any:
    """Fuzzy union of each row's local fuzzy set, a symmetric scipy CSR matrix (rows, rows) in [0, 1], zero diagonal.

    w_ij = exp(-max(d_ij - r_i, 0) / s_i), with r_i the least distance above zero and s_i such that the weights of row i
    sum to log2(k + 1); then W + W^T - W * W^T (McInnes et al. 2018, section 3.1). Distances are those between unit
    vectors, sqrt(2 - 2 cos). The numbers of `umap.umap_.fuzzy_simplicial_set` (umap-learn 0.5), to its float32.
    """
    far = distances(found)
    rows, k = far.shape
    overall = float(np.nanmean(far)) * k / (k + 1)
    weights = np.empty((rows, k))
    for start in range(0, rows, _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        weights[some] = _fuzzy(far[some].astype(np.float64), overall)
    one_way = _one_way(found, weights)
    return _clean(one_way + one_way.T - one_way.multiply(one_way.T))


def _fuzzy(far: Float64, overall: float) -> Float64:
    """Weights of some rows, float64 (rows, k); `overall` is the mean distance of all rows to their neighbours."""
    k = far.shape[1]
    known = np.isfinite(far)
    nearest = np.where(known & (far > 0), far, np.inf).min(axis=1)
    nearest[~np.isfinite(nearest)] = 0.0
    beyond = np.where(known, np.maximum(far - nearest[:, None], 0.0), np.inf)
    scale = _scales(beyond, float(np.log2(k + 1)))
    own = np.where(known, far, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1) + 1, 1)
    scale = np.maximum(scale, _LEAST_SHARE * np.where(nearest > 0, own, overall))
    found: Float64 = np.exp(-beyond / np.maximum(scale, np.finfo(np.float64).tiny)[:, None])
    return found


def _scales(beyond: Float64, target: float) -> Float64:
    """Find s of each row with sum_j exp(-beyond_ij / s) = target by bisection, float64 (rows,)."""
    low, high, scale = np.zeros(len(beyond)), np.full(len(beyond), np.inf), np.ones(len(beyond))
    open_rows = np.arange(len(beyond))
    for _ in range(_BISECTIONS):
        here = scale[open_rows]
        over = np.exp(-beyond[open_rows] / here[:, None]).sum(axis=1) - target
        high[open_rows] = np.where(over > 0, here, high[open_rows])
        low[open_rows] = np.where(over > 0, low[open_rows], here)
        between = np.where(np.isinf(high[open_rows]), 2.0 * here, (low[open_rows] + high[open_rows]) / 2.0)
        far_off = np.abs(over) >= _TOLERANCE
        open_rows = open_rows[far_off]
        if not len(open_rows):
            break
        scale[open_rows] = between[far_off]
    return scale


def gaussian_affinity(found: Neighbours) -> Any:
    """exp(-d_ij^2 / (s_i s_j)) with s_i the distance to the seventh neighbour; scipy CSR, symmetric, zero diagonal."""
    far, k = distances(found), found.rows.shape[1]
    known = found.rows >= 0
    scale = np.nanmax(far[:, : min(_SCALE_NEIGHBOUR, k)], axis=1).clip(_LEAST_SCALE)
    both = scale[:, None] * scale[np.maximum(found.rows, 0)]
    one_way = _one_way(found, np.where(known, np.exp(-(far.astype(np.float64) ** 2) / both), 0.0))
    return _clean(one_way.maximum(one_way.T))


def dense_affinity(vectors: Float32) -> Float64:
    """PASER's own: exp(-d_ij^2 / (2 s^2)) over all pairs, s the median distance; float64 (rows, rows), zero diagonal.

    Raises:
        ConfigError: More than `DENSE_ROWS` rows.
    """
    if len(vectors) > DENSE_ROWS:
        raise ConfigError(
            f"affinity paper_dense needs {8 * len(vectors) ** 2 / 2**30:,.0f} GiB for {len(vectors):,} rows and runs "
            f"up to {DENSE_ROWS:,}: take affinity umap or gaussian"
        )
    wide = vectors.astype(np.float64)
    squares = np.maximum(2.0 - 2.0 * (wide @ wide.T), 0.0)
    median = float(np.median(np.sqrt(squares[np.triu_indices(len(squares), 1)])))
    found: Float64 = np.exp(-squares / (2.0 * max(median, _LEAST_SCALE) ** 2))
    np.fill_diagonal(found, 0.0)
    return found


def distances(found: Neighbours) -> Float32:
    """Between unit vectors of these cosines, sqrt(2 - 2 cos), float32 (rows, k); NaN where there is no neighbour."""
    far: Float32 = np.sqrt(np.maximum(2.0 - 2.0 * found.cosines, 0.0)).astype(np.float32)
    return far


def _one_way(found: Neighbours, weights: Float64) -> Any:
    """Each row's weights of its neighbours as scipy CSR (rows, rows)."""
    from scipy import sparse

    known = found.rows >= 0
    ends = np.append(0, np.cumsum(known.sum(axis=1)))
    return sparse.csr_matrix((weights[known], found.rows[known], ends), shape=(len(known), len(known)))


def _clean(graph: Any) -> Any:
    graph.setdiag(0.0)
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph.astype(np.float64)


def _listed(
    vectors: Float32, bits: Any, *, exact_rows: int, probes: int, seed: int, device: str, threads: int | None
) -> tuple[Any, Int64]:
    from datapipe.metrics.assign import Assigner
    from datapipe.metrics.kmeans import spherical_kmeans
    from datapipe.metrics.knn import neighbour_lists
    from datapipe.metrics.pool import ChunkPool
    from datapipe.storage.lists import VectorLists

    count = len(vectors)
    if count <= exact_rows:
        return VectorLists(bits, np.array([0, count]), np.arange(count)), np.zeros((1, 1), np.int64)
    lists = max(round(count**0.5), 1)
    draws = np.random.Generator(np.random.Philox(seed))
    sample = np.sort(draws.permutation(count)[: LIST_SAMPLE * lists // 4])
    centroids = spherical_kmeans(vectors[sample], k=lists, seed=seed, iterations=8, device=device, threads=threads)
    pool = ChunkPool(threads)
    try:
        assigned = Assigner(centroids, pool=pool).assign(vectors)[1]
    finally:
        pool.close()
    rows = np.argsort(assigned, kind="stable").astype(np.int64)
    offsets = np.append(0, np.cumsum(np.bincount(assigned, minlength=lists))).astype(np.int64)
    if not np.isfinite(centroids).all():
        raise VectorError("a centroid of the lists is not finite")
    return VectorLists(bits[rows], offsets, rows), neighbour_lists(centroids, probes, threads=threads)
