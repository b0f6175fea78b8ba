"""What a teacher's distributions say of the rows besides: scores that cost nothing once the teacher has looked.

    log probabilities (rows, classes), labels -> el2n, margin, entropy, disagreement, confidence, one number a row

EL2N is the length of probabilities minus one-hot label (Paul et al. 2021, arXiv 2107.07075), here of a teacher that has
learnt and not of a network early in training; AUM's term is `margin` (Pleiss et al. 2020, arXiv 2001.10528). Also the
mean of several teachers. Pure numpy, float64 inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Bool, Float32, Float64, Int32, Int64

__all__ = ["SCORES", "averaged", "contradictions", "scores_of"]

SCORES = ("el2n", "margin", "entropy", "disagreement", "confidence")
"""el2n, entropy and disagreement are high where the row is hard; margin and confidence where it is easy."""


def averaged(parts: Sequence[Float64]) -> Float64:
    """Return the normalised geometric mean of several teachers' distributions (a logarithmic opinion pool).

    log p = mean_t log p_t - log sum_c exp(mean_t log p_t). A class that one teacher rules out is ruled out. Of one
    teacher it is the teacher's own.

    Args:
        parts: log p_t in nats, float64 (rows, classes) each, at least one; summed in this order.
    """
    if len(parts) == 1:
        return parts[0]
    mean = parts[0].copy()
    for part in parts[1:]:
        mean += part
    mean /= len(parts)
    mean -= mean.max(axis=1, keepdims=True)
    mean -= np.log(np.exp(mean).sum(axis=1, keepdims=True))
    return mean


def scores_of(log_probabilities: Float64, labels: Int32 | Int64) -> dict[str, Float32]:
    """Return the scores of `SCORES`, float32 (rows,) each; NaN, but for the entropy, where a row has no label.

    el2n: sqrt((1 - p_y)^2 + sum of the other p^2), in [0, sqrt 2]. margin: p_y - greatest other p, in [-1, 1].
    entropy: in nats. disagreement: probability of the most probable class where that is not the label, else 0.
    confidence: p_y.

    Args:
        log_probabilities: In nats, float64 (rows, classes >= 2), each row a distribution.
        labels: Class of each row, in [0, classes); -1 for none.
    """
    chances = np.exp(log_probabilities)
    terms = np.zeros_like(chances)
    np.multiply(chances, log_probabilities, out=terms, where=chances > 0)
    known = labels >= 0
    at = np.where(known, labels, 0)[:, None]
    own = np.take_along_axis(chances, at, axis=1)[:, 0]
    others = chances
    np.put_along_axis(others, at, 0.0, axis=1)
    rival = others.max(axis=1)
    found = {
        "el2n": np.sqrt((1.0 - own) ** 2 + (others**2).sum(axis=1)),
        "margin": own - rival,
        "entropy": -terms.sum(axis=1),
        "disagreement": np.where(rival > own, rival, 0.0),
        "confidence": own,
    }
    for name, values in found.items():
        if name != "entropy":
            values[~known] = np.nan
    return {name: found[name].astype(np.float32) for name in SCORES}


def contradictions(disagreement: Float32, *, threshold: float) -> Bool:
    """Which rows have a label that the teacher contradicts with at least that probability, bool (rows,)."""
    found: Bool = np.nan_to_num(disagreement, nan=0.0) >= np.float32(threshold)
    return found
