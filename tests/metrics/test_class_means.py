"""The distance to the mean of a row's own class, against plain float64."""

from __future__ import annotations

import numpy as np
import pytest

from datapipe.errors import MetricError, VectorError
from datapipe.metrics.class_means import ClassSums, class_distance

ROWS, DIM = 900, 16


def some() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(ROWS, DIM)) + 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), rng.integers(-1, 5, ROWS)


def test_scores_are_one_minus_the_cosine_to_the_class_mean() -> None:
    vectors, classes = some()
    sums = ClassSums(5, DIM)
    sums.add(vectors, classes)
    scores = class_distance(vectors, classes, sums.means())
    for number in range(5):
        own = vectors[classes == number].astype(np.float64)
        mean = own.mean(axis=0)
        expected = 1 - own @ mean / np.linalg.norm(mean) / np.linalg.norm(own, axis=1)
        np.testing.assert_allclose(scores[classes == number], expected, atol=1e-6)
    assert np.isnan(scores[classes == -1]).all()


def test_the_cut_into_shards_changes_no_bit() -> None:
    vectors, classes = some()
    whole, parts = ClassSums(5, DIM), ClassSums(5, DIM)
    whole.add(vectors, classes)
    for start in range(0, ROWS, 37):
        parts.add(vectors[start : start + 37], classes[start : start + 37])
    assert whole.sums.tobytes() == parts.sums.tobytes()


def test_the_only_row_of_a_class_scores_nothing_and_vectors_that_cancel_score_one() -> None:
    vectors = np.array([[1, 0], [0, 1], [0, -1]], np.float32)
    classes = np.array([0, 1, 1])
    sums = ClassSums(2, 2)
    sums.add(vectors, classes)
    assert class_distance(vectors, classes, sums.means()).tolist() == [0, 1, 1]


def test_bad_input_is_refused_with_what_was_found() -> None:
    with pytest.raises(MetricError, match="got 0 classes, dim 4"):
        ClassSums(0, 4)
    with pytest.raises(VectorError, match="the vector of row 1 is not finite"):
        ClassSums(1, 2).add(np.array([[1, 0], [np.nan, 0]], np.float32), np.zeros(2, np.int64))
