"""How the vectors of a sample lie: near copies, effective dimensions, balance of their clusters.

unit vectors -> products of one thread each -> the fields of `datapipe.advisor.look.Facts` from `near_repeats` on
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32

NEAR = 0.98
"""Cosine from which two rows count as near copies; the default of `protect_threshold`."""


def geometry(vectors: Float32) -> dict[str, Any]:
    """Measure unit vectors, float32 (rows, dim), rows >= 2; the fields of `Facts` from `near_repeats` on.

    Products have one thread each, so that the same rows have the same facts on any number of cores.
    """
    import numpy as np

    from datapipe.metrics.assign import Assigner
    from datapipe.metrics.kmeans import spherical_kmeans
    from datapipe.metrics.pool import ChunkPool
    from datapipe.metrics.prototypes import default_k

    found: dict[str, float] = {}
    pool = ChunkPool(1)
    try:
        pool.map(lambda _: found.update(_spread(vectors)), [0])
        k = default_k(len(vectors))
        with Assigner(spherical_kmeans(vectors, k=k, seed=0, threads=1), pool=pool) as assigner:
            clusters = assigner.assign(vectors)[1]
    finally:
        pool.close()
    shares = np.bincount(clusters, minlength=k) / len(vectors)
    shares = shares[shares > 0]
    entropy = float(-(shares * np.log(shares)).sum())
    return {
        **found,
        "sampled": len(vectors),
        "cluster_balance": entropy / math.log(k) if k > 1 else 1.0,
    }


def _spread(vectors: Float32) -> dict[str, float]:
    """Part of the rows with a near copy, and effective dimensions: trace(C)^2 / |C|^2 of the covariance C."""
    import torch

    rows = torch.from_numpy(vectors).double()
    nearest = (rows @ rows.T).fill_diagonal_(-1.0).amax(1)
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred
    squares = float(covariance.square().sum())
    return {
        "near_repeats": float((nearest >= NEAR).double().mean()),
        "dimensions": float(covariance.trace()) ** 2 / squares if squares else 0.0,
    }
