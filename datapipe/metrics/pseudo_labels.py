"""Labels for rows that have none: clusters of their vectors, of several sizes and starts (ELFS, arXiv 2406.04273)."""

from __future__ import annotations

import math

DRAWS = 3
"""Clusterings whose scores are averaged."""


def cluster_sizes(rows: int, *, prototypes: int | None) -> list[int]:
    """Clusters of each clustering: `prototypes`, or 2 sqrt(rows) within 8 ... 1,000; 2 ... rows / 2 in any case.

    Twice the root lost least of what knows no classes: one root, three sizes from half to twice, and one, two or four
    clusters a class (validation rows of TREC and BANKING77; `benchmarks/results/pruning_settings.json`).

    Args:
        rows: Rows that there are to cluster, >= 2.
        prototypes: The number of classes, where it is known.
    """
    k = prototypes or min(1000, max(8, 2 * math.isqrt(rows)))
    return [max(2, min(k, rows // 2))] * DRAWS
