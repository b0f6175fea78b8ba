"""Coverage against the literal algorithm on the same draws."""

from __future__ import annotations

import numpy as np
import pytest

from datapipe.errors import MetricError
from datapipe.metrics.coverage import coverage, draw
from datapipe.storage.vectors import codes, decode, encode

ROWS, DIM, DRAWS, PLANES = 400, 10, 600, 12


def columns(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(codes(encode(vectors.astype(np.float32))).T)


def some() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(ROWS, DIM))


def literal(vectors: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and gains, draw by draw over all rows (arXiv 2411.15349); no two rows of a plane coincide."""
    wide = decode(encode(vectors.astype(np.float32))).astype(np.float64)
    scores, gains = np.zeros(len(wide)), np.zeros(len(wide))
    for plane in range(PLANES):
        drawn = draw(columns(vectors), DRAWS // PLANES, seed=0, plane=plane)
        flat = wide[:, drawn.dims]
        for point in drawn.points:
            winner = int(np.abs(flat - point).sum(axis=1).argmin())
            gains[winner] += 1
            apart = np.abs(flat - flat[winner]).sum(axis=1)
            nearest = np.argsort(apart, kind="stable")[1 : neighbours + 1]
            loss = apart[nearest] ** -4.0
            scores[nearest] -= loss / loss.sum()
    return scores + gains, gains


def test_scores_are_those_of_the_literal_algorithm_over_as_many_neighbours() -> None:
    found = coverage(columns(some()), seed=0, draws=DRAWS, planes=PLANES)
    np.testing.assert_allclose(found, literal(some(), 32)[0], atol=1e-5)


def test_cutting_the_neighbours_hardly_changes_the_ranks() -> None:
    found = coverage(columns(some()), seed=0, draws=DRAWS, planes=PLANES)
    ranks = [np.argsort(np.argsort(scores)) for scores in (found, literal(some(), ROWS - 1)[0])]
    assert np.corrcoef(ranks[0], ranks[1])[0, 1] > 0.99


def test_threads_change_no_bit_and_another_seed_does() -> None:
    one = coverage(columns(some()), seed=0, draws=DRAWS, planes=PLANES, threads=1)
    assert one.tobytes() == coverage(columns(some()), seed=0, draws=DRAWS, planes=PLANES, threads=3).tobytes()
    assert one.tobytes() != coverage(columns(some()), seed=1, draws=DRAWS, planes=PLANES).tobytes()


def test_copies_share_what_one_of_them_gains() -> None:
    vectors = np.concatenate([some(), np.repeat(some()[:1], 50, axis=0)])
    found = coverage(columns(vectors), seed=0, draws=DRAWS, planes=PLANES)
    assert np.isfinite(found).all()
    assert abs(found.astype(np.float64).sum()) < 1e-2
    assert found[1:ROWS].mean() > found[ROWS:].mean()


def test_constant_vectors_and_a_lone_row_have_finite_scores() -> None:
    same = coverage(columns(np.ones((5, 3))), seed=0, draws=20, planes=4)
    assert same.tolist() == [20, -5, -5, -5, -5]
    assert coverage(columns(np.ones((1, 3))), seed=0, draws=20, planes=4).tolist() == [20]


def test_one_dim_is_no_plane() -> None:
    with pytest.raises(MetricError, match="planes of two dims; the vectors have 1"):
        coverage(columns(np.ones((5, 1))), seed=0)
