"""Memorization: how much likelier the label of a row is to models that were trained on it (Feldman & Zhang 2020).

arXiv 2008.03703 trains thousands of networks on random subsets; here heads on frozen vectors learn halves and the
complements of those, so that every row is in as often as it is out. Higher is harder: only learnt by heart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError
from datapipe.storage.order import hash_order, seed_for

if TYPE_CHECKING:
    from datapipe.storage.arrays import Bool, Float32, Ids


def halves_of(ids: Ids, *, pairs: int, seed: int) -> Bool:
    """Which rows are in each of `pairs` random halves, bool (pairs, rows): the top bit of a hash of the row id."""
    keys = [hash_order(ids, seed=seed_for(f"memorization {pair}", seed)) for pair in range(pairs)]
    return np.stack([key >= np.uint64(1 << 63) for key in keys])


def memorization(probability: Float32, inside: Bool) -> Float32:
    """Mean probability of the label where the row was trained on, minus that where not, float32 (rows,) in [-1, 1].

    Args:
        probability: Of each row's label by each model, float32 (models, rows) in [0, 1].
        inside: Whether the row was trained on, bool (models, rows).

    Raises:
        MetricError: A row was in all models or in none; names the first.
    """
    total = np.zeros((2, probability.shape[1]))
    for each, where in zip(probability, inside, strict=True):
        total[0] += np.where(where, each, 0.0)
        total[1] += np.where(where, 0.0, each)
    count = inside.sum(0)
    alone = np.flatnonzero((count == 0) | (count == len(inside)))
    if len(alone):
        raise MetricError(
            f"row {alone[0]} was in {count[alone[0]]} of {len(inside)} subsets: memorization compares models with and "
            "without it"
        )
    difference: Float32 = (total[0] / count - total[1] / (len(inside) - count)).astype(np.float32)
    return difference
