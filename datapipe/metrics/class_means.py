"""Supervised prototypes: how far a row lies from the mean vector of its own class.

Sorscher et al. 2022 (arXiv 2206.14486, supervised prototypes): one prototype a class, the mean of its vectors; the
difficulty of a row is its distance to that mean. Higher is harder. The cosine form, as for `prototypes`.

shards of vectors and class numbers -> ClassSums.add -> ClassSums.means -> class_distance -> one float32 a row.
Sums are float64 in row order, so the cut into shards leaves the bits alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError, VectorError

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32, Float64, Int64

_BLOCK = 4096  # rows whose float64 products are held at a time


class ClassSums:
    """The sum of the vectors of each class, in one pass.

    Attributes:
        sums: float64 (classes, dim).
        rows: Rows of each class, int64 (classes,).

    Args:
        classes: How many, >= 1.
        dim: Numbers in a vector, >= 1.

    Raises:
        MetricError: `classes` or `dim` is below 1.
    """

    def __init__(self, classes: int, dim: int) -> None:
        if classes < 1 or dim < 1:
            raise MetricError(f"class means need at least one class and one dim; got {classes} classes, dim {dim}")
        self.sums: Float64 = np.zeros((classes, dim))
        self.rows: Int64 = np.zeros(classes, np.int64)

    def add(self, vectors: Float32, classes: Int64) -> None:
        """Add rows one after the other; rows of class -1 have no label and count nowhere.

        Args:
            vectors: float32 (rows, dim), unit length.
            classes: int64 (rows,), -1 <= class < classes.

        Raises:
            VectorError: The shapes do not fit, or a labelled row is not finite.
        """
        if vectors.shape != (len(classes), self.sums.shape[1]):
            raise VectorError(
                f"{len(classes)} class numbers of dim {self.sums.shape[1]} beside vectors {vectors.shape}"
            )
        labelled = np.flatnonzero(classes >= 0)
        finite = np.isfinite(vectors[labelled]).all(axis=1)
        if not finite.all():
            raise VectorError(f"the vector of row {int(labelled[~finite][0])} is not finite")
        # `add.at` goes through the rows in order: the same sum for any cut.
        np.add.at(self.sums, classes[labelled], vectors[labelled].astype(np.float64))
        self.rows += np.bincount(classes[labelled], minlength=len(self.rows))

    def means(self) -> Float64:
        """Directions of the class means, float64 (classes, dim), unit length; zero where a class has no direction."""
        lengths = np.sqrt(np.square(self.sums).sum(axis=1, keepdims=True))
        # A sum of unit vectors that cancel leaves only the rounding of each.
        clear = lengths > np.finfo(np.float64).eps * np.maximum(self.rows, 1)[:, None]
        means: Float64 = np.where(clear, self.sums / np.where(clear, lengths, 1.0), 0.0)
        return means


def class_distance(vectors: Float32, classes: Int64, means: Float64) -> Float32:
    """Return 1 - cos(z_i, mean of its class), float32 (rows,) in [0, 2]; NaN for a row of class -1.

    The only row of a class is its own mean: 0. Where the vectors of a class cancel out, the mean has no direction and
    the score is 1. Computed in float64, each row by itself. Time rows * dim.

    Args:
        vectors: z, float32 (rows, dim); their length does not matter.
        classes: int64 (rows,), -1 for a row without a label.
        means: float64 (classes, dim), unit length or zero.
    """
    scores = np.full(len(vectors), np.nan, np.float32)
    for start in range(0, len(vectors), _BLOCK):
        rows = np.flatnonzero(classes[start : start + _BLOCK] >= 0) + start
        z = vectors[rows].astype(np.float64)
        lengths = np.sqrt(np.square(z).sum(axis=1))
        cosines = (z * means[classes[rows]]).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
        scores[rows] = np.clip(1.0 - cosines, 0.0, 2.0)
    return scores
