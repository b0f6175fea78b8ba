"""The random metric: a row's place in the seeded hash order, as a score.

Random pruning is the baseline that every metric must beat, and with a teacher the method that none beats clearly
(Ben-Baruch et al., arXiv 2403.07854). Here the number comes from the row's id and the seed alone, so it does not
depend on sharding, order or machine, and smaller samples lie inside larger ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.storage.order import hash_order

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32, Ids

_BITS = 24  # the significand of a float32: every value below is exact and stays below 1


def random_scores(ids: Ids, *, seed: int) -> Float32:
    """Return h_i / 2^24 with h_i the top 24 bits of the row's hash order, float32 (rows,) in [0, 1).

    Never decreases along the hash order; rows that share a score keep their hash order in a selection. Time: one hash
    a row.

    Args:
        ids: Row ids, uint64 (rows, 2).
        seed: Another seed is another order.
    """
    top = hash_order(ids, seed=seed) >> np.uint64(64 - _BITS)
    return top.astype(np.float32) * np.float32(2.0**-_BITS)
