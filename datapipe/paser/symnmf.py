"""Symmetric non-negative factors of a sparse affinity: soft clusters of a graph.

    affinity W, labels -> H >= 0 with D^-1/2 W D^-1/2 ~ H H^T -> memberships

Multiplicative updates with exponent 1/2 (Ding, He & Simon 2005; Kuang, Ding & Park 2012), O(non-zeros * k) a round.
PASER (arXiv 2502.12594) factors the dense |V V^T| instead. Started from a clustering, so that nothing is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float64, Int64

_START = 0.1
"""What a row has of the clusters that it does not start in; zero could never grow."""
_TINY = 1e-12


def memberships(graph: Any, labels: Int64, *, k: int, rounds: int = 30) -> Float64:
    """Share of each cluster in each row, float64 (rows, k), rows summing to 1.

    Minimises |S - H H^T|^2 for S = D^-1/2 W D^-1/2 by H <- H * (1/2 + 1/2 (S H) / (H H^T H)), which never increases it.
    A row without neighbours keeps its start.

    Args:
        graph: W, symmetric scipy CSR (rows, rows), >= 0.
        labels: Where each row starts, int64 (rows,) in [0, k).
        k: Clusters.
        rounds: Updates.
    """
    from scipy import sparse

    degrees = np.asarray(graph.sum(axis=1)).ravel()
    roots = sparse.diags(1.0 / np.sqrt(np.where(degrees > 0, degrees, 1.0)))
    scaled = (roots @ graph @ roots).tocsr()
    # The scale that makes H H^T as large as S where the clusters are clean: a row of S sums to about 1.
    sizes = np.maximum(np.bincount(labels, minlength=k), 1)
    found = np.full((len(labels), k), _START) / np.sqrt(sizes)
    found[np.arange(len(labels)), labels] = 1.0 / np.sqrt(sizes[labels])
    joined = degrees > 0
    for _ in range(rounds):
        pulled, pushed = scaled @ found, found @ (found.T @ found)
        found[joined] *= 0.5 + 0.5 * pulled[joined] / np.maximum(pushed[joined], _TINY)
    # H's columns have unit length, about; a row's share compares them at equal size.
    weighed = found / np.maximum(np.sqrt(np.einsum("ij,ij->j", found, found)), _TINY) * np.sqrt(sizes)
    total = weighed.sum(axis=1, keepdims=True)
    shares: Float64 = np.where(total > 0, weighed / np.maximum(total, _TINY), 1.0 / k)
    return shares
