"""Self-supervised prototypes: how far a row lies from the nearest centroid of its own data set.

Sorscher et al. 2022 (arXiv 2206.14486): k-means in the embedding space of a self-supervised model; the difficulty of a
row is its distance to the nearest centroid ("prototype"). Higher is harder. We take the cosine form of their released
scores ("reversed cosine similarity") with spherical k-means; their text says distance, others read it as Euclidean.

sample of vectors -> fit_prototypes -> prototypes; vectors + prototypes -> prototype_scores -> score and cluster a row.
Raises `VectorError` for vectors that are not unit rows and `MetricError` for a k that does not fit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError
from datapipe.metrics.assign import Assigner
from datapipe.metrics.kmeans import spherical_kmeans

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32, Int32

LEAST_K = 16
GREATEST_K = 50_000


def default_k(rows: int, classes: int | None = None) -> int:
    """Return the number of prototypes for a set of `rows`: the classes if known, else sqrt(rows) within 16 ... 50,000.

    The paper finds that k may miss the number of classes by a factor of ten without effect (arXiv 2206.14486, app. E).
    Never more than `rows`.

    Raises:
        MetricError: `rows` or `classes` is below 1.
    """
    if rows < 1 or (classes is not None and classes < 1):
        raise MetricError(f"Prototypes need at least one row and one class; there are {rows} rows, {classes} classes.")
    wanted = classes if classes is not None else min(max(round(math.sqrt(rows)), LEAST_K), GREATEST_K)
    return min(wanted, rows)


def fit_prototypes(
    sample: Float32, *, k: int, seed: int, iterations: int = 20, device: str = "cpu", threads: int | None = None
) -> Float32:
    """Return k prototypes of a sample, float32 (k, dim), unit length, the same bits every time on one kind of device.

    See `spherical_kmeans` for the rule and the cost.

    Args:
        sample: Float32 (rows, dim), unit length; 256 rows a prototype are plenty.
        k: Prototypes, 1 <= k <= rows.
        seed: Seeds the k-means++ start.
        iterations: Rounds at most.
        device: "cpu", or a torch device such as "cuda".
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.

    Raises:
        MetricError: k or `iterations` is out of range.
        VectorError: A row is not finite or not of unit length; names the first.
    """
    return spherical_kmeans(sample, k=k, seed=seed, iterations=iterations, device=device, threads=threads)


def prototype_scores(
    vectors: Float32, prototypes: Float32, *, device: str = "cpu", threads: int | None = None
) -> tuple[Float32, Int32]:
    """Return s_i = 1 - max_j cos(z_i, c_j), float32 (rows,) in [0, 2], higher is harder; and that j, int32 (rows,).

    The lowest j where several are nearest. Time rows * k * dim; no rows x k matrix. For many shards open one
    `Assigner` and use `scores_of`.

    Args:
        vectors: z, float32 (rows, dim), unit length to within 0.01.
        prototypes: c, float32 (k, dim), unit length, k >= 1.
        device: "cpu", or a torch device such as "cuda".
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.

    Raises:
        VectorError: Dims differ, or a row is not finite or not of unit length; names the first such row.
    """
    with Assigner(prototypes, device=device, threads=threads) as assigner:
        cosines, clusters = assigner.assign(vectors)
    return scores_of(cosines), clusters


def scores_of(cosines: Float32) -> Float32:
    """Return 1 - cosine, float32 of the same shape, held within [0, 2] against rounding."""
    scores: Float32 = np.clip(np.float32(1.0) - cosines, np.float32(0.0), np.float32(2.0))
    return scores
