"""Prototype scores are one minus the cosine to the nearest prototype, within [0, 2]."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import integers

from datapipe.errors import MetricError, VectorError
from datapipe.metrics.base import get_metric
from datapipe.metrics.prototypes import default_k, fit_prototypes, prototype_scores

SQUARE = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)


def test_a_row_on_its_prototype_scores_zero_and_an_opposite_one_two() -> None:
    scores, clusters = prototype_scores(SQUARE, SQUARE[:2])
    assert scores.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert clusters.tolist() == [0, 1, 1, 0]
    assert prototype_scores(SQUARE[2:3], SQUARE[:1])[0].tolist() == [2.0]


def test_a_fit_and_its_scores_put_the_outlier_last() -> None:
    rng = np.random.default_rng(0)
    sample = np.repeat(SQUARE[:2], 50, axis=0) + rng.normal(0, 0.01, (100, 2)).astype(np.float32)
    sample[17] = [-0.6, -0.8]
    sample /= np.linalg.norm(sample, axis=1, keepdims=True)
    scores, _ = prototype_scores(sample, fit_prototypes(sample, k=2, seed=0))
    assert np.argmax(scores) == 17


@given(seed=integers(0, 1000), k=integers(1, 20))
def test_scores_lie_in_the_declared_range_and_are_those_of_a_float64_product(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((60, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores, _ = prototype_scores(vectors[20:].astype(np.float32), vectors[:k].astype(np.float32))
    metric = get_metric("prototypes")
    assert metric.low <= scores.min()
    assert scores.max() <= metric.high
    np.testing.assert_allclose(scores, 1 - (vectors[20:] @ vectors[:k].T).max(axis=1), atol=2e-6)


@pytest.mark.parametrize(
    ("rows", "classes", "k"),
    [
        (10**6, None, 1000),
        (10**6, 77, 77),
        (100, None, 16),
        (9, None, 9),
        (5, 10, 5),
        (10**11, None, 50_000),
        (1, None, 1),
    ],
)
def test_the_number_of_prototypes_is_that_of_the_classes_or_the_root_of_the_rows(
    rows: int, classes: int | None, k: int
) -> None:
    assert default_k(rows, classes) == k


@given(rows=integers(1, 10**12))
def test_there_are_never_more_prototypes_than_rows(rows: int) -> None:
    assert 1 <= default_k(rows) <= min(rows, 50_000)


def test_a_set_without_rows_has_no_number_of_prototypes() -> None:
    with pytest.raises(MetricError, match="at least one row and one class; there are 0 rows"):
        default_k(0)


def test_vectors_of_another_model_are_refused() -> None:
    with pytest.raises(VectorError, match="are they of one model"):
        prototype_scores(SQUARE, np.eye(3, dtype=np.float32))
