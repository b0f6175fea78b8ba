"""Near matches of an evaluation set: all of them, whatever the blocks, the sketches and the threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.dedup.near import near_index, protect_near
from datapipe.errors import ConfigError, VectorError


def drawn(rows: int, *, seed: int, dim: int = 128, topics: int = 400, spread: float = 0.4) -> np.ndarray:
    """Vectors around shared topics, with a scatter that a few directions hold most of, as in real embeddings."""
    shared = np.random.default_rng(0)
    centres, scales = shared.normal(size=(topics, dim)), 1 / (1 + np.arange(dim))
    random = np.random.default_rng(seed)
    found = centres[random.integers(0, topics, rows)] + random.normal(size=(rows, dim)) * spread
    return (found * np.sqrt(scales)).astype(np.float32)


def exactly(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    units = [part / np.linalg.norm(part.astype(np.float64), axis=1, keepdims=True) for part in (own, others)]
    return np.asarray(units[0] @ units[1].T)


def test_a_row_near_an_evaluation_row_is_found_with_its_evidence() -> None:
    protected = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    rows = np.array([[0.1, 1, 0], [0, 0, 1], [3, 0, 0.1], [0, 0, 0]], np.float32)
    found, best, cosine = protect_near(rows, near_index(protected, threshold=0.99))
    assert found.tolist() == [True, False, True, False]
    assert best.tolist() == [1, -1, 0, -1]
    np.testing.assert_allclose(cosine, [1 / np.sqrt(1.01), -1, 3 / np.sqrt(9.01), -1], rtol=1e-6)
    assert (best.dtype.name, cosine.dtype.name) == ("int64", "float32")


@pytest.mark.parametrize(("threshold", "sketched"), [(0.98, True), (0.9, True), (0.6, True), (0.05, False)])
def test_sketches_miss_no_match_and_add_none(threshold: float, *, sketched: bool) -> None:
    own, others = drawn(900, seed=1), drawn(3000, seed=2)
    own[:50] = others[100:150] + np.random.default_rng(3).normal(size=(50, 128)) * 0.02
    index = near_index(others, threshold=threshold)
    assert (index.basis.shape[1] > 0) is sketched
    found, best, cosine = protect_near(own, index, chunk=700)
    exact = exactly(own, others)
    greatest = exact.max(axis=1)
    clear = np.abs(greatest - threshold) > 1e-6
    np.testing.assert_array_equal(found[clear], (greatest >= threshold)[clear])
    np.testing.assert_allclose(cosine[found], greatest[found], atol=1e-6)
    np.testing.assert_allclose(exact[found, best[found]], greatest[found], atol=1e-6)
    assert found[:50].all() or threshold > 0.95
    assert found.any()


def test_blocks_in_which_most_pairs_are_near_are_compared_in_full() -> None:
    others = np.concatenate([drawn(2000, seed=4), drawn(200, seed=5, topics=1, spread=0.02)])
    own = drawn(64, seed=6, topics=1, spread=0.02)
    index = near_index(others)
    assert index.basis.shape[1] > 0
    found, best, _ = protect_near(own, index, chunk=2100)
    assert found.all()
    np.testing.assert_array_equal(best, exactly(own, others).argmax(axis=1))


@given(seed=st.integers(0, 2**32), rows=st.integers(0, 20), protected=st.integers(1, 20), chunk=st.integers(1, 25))
def test_near_matches_do_not_hang_on_the_chunk(seed: int, rows: int, protected: int, chunk: int) -> None:
    random = np.random.default_rng(seed)
    own, others = (random.normal(size=(count, 5)).astype(np.float32) for count in (rows, protected))
    index = near_index(others, threshold=0.8)
    found, best, cosine = protect_near(own, index, chunk=chunk)
    exact = exactly(own, others)
    np.testing.assert_allclose(cosine[found], exact.max(axis=1)[found], atol=1e-6)
    np.testing.assert_array_equal(best[found], exact.argmax(axis=1)[found])
    for one, other in zip((found, best, cosine), protect_near(own, index), strict=True):
        np.testing.assert_array_equal(one, other)


def test_nor_do_they_with_sketches() -> None:
    own, others = drawn(300, seed=7), drawn(1500, seed=8)
    index = near_index(others, threshold=0.93)
    assert index.basis.shape[1] > 0
    whole = protect_near(own, index)
    assert whole[0].any()
    for chunk in (40, 299, 1499):
        for one, other in zip(protect_near(own, index, chunk=chunk), whole, strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_equal_vector_matches_at_threshold_one_and_the_lowest_of_equals_is_named() -> None:
    vector = np.random.default_rng(0).normal(size=(1, 384)).astype(np.float32)
    found, best, cosine = protect_near(vector, near_index(np.repeat(vector, 3, axis=0), threshold=1.0), chunk=2)
    assert (found.tolist(), best.tolist()) == ([True], [0])
    assert cosine[0] == 1


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_the_evaluation_row_named_is_its_place_in_the_set_the_first_of_equals(chunk: int) -> None:
    protected = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [0, 0, 1]], np.float32)
    rows = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]], np.float32)
    assert protect_near(rows, near_index(protected), chunk=chunk)[1].tolist() == [4, 2, 0, -1]
    assert protect_near(rows, near_index(protected, threshold=0.7), chunk=chunk)[1].tolist() == [4, 2, 0, 2]


def test_read_only_arrays_are_taken_and_left_alone() -> None:
    rows = np.eye(3, dtype=np.float32)
    rows.flags.writeable = False
    found, best, _ = protect_near(rows, near_index(rows))
    assert found.all()
    assert best.tolist() == [0, 1, 2]


def test_an_empty_evaluation_set_is_near_nothing() -> None:
    index = near_index(np.empty((0, 2), np.float32))
    found, best, cosine = protect_near(np.eye(2, dtype=np.float32), index)
    assert (found.tolist(), best.tolist(), cosine.tolist()) == ([False, False], [-1, -1], [-1, -1])


@pytest.mark.parametrize("threshold", [0.0, 1.1, float("nan")])
def test_a_threshold_that_is_no_cosine_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold is a cosine, 0 < threshold <= 1"):
        near_index(np.eye(2, dtype=np.float32), threshold=threshold)


def test_vectors_that_cannot_be_compared_are_refused() -> None:
    one = near_index(np.eye(2, dtype=np.float32))
    with pytest.raises(VectorError, match=r"vectors \(3, 3\) and protected \(2, 2\)"):
        protect_near(np.eye(3, dtype=np.float32), one)
    bad = np.ones((5, 2), np.float32)
    bad[3, 1] = np.nan
    with pytest.raises(VectorError, match="vectors: row 3 holds a value that is not finite"):
        protect_near(bad, one, chunk=2)
    with pytest.raises(VectorError, match="protected: row 3"):
        near_index(bad)
    with pytest.raises(VectorError, match=r"protected \(4,\) must be \(rows, dim\)"):
        near_index(np.ones(4, np.float32))
    with pytest.raises(ConfigError, match="chunk counts rows, chunk >= 1; got 0"):
        protect_near(np.eye(2, dtype=np.float32), one, chunk=0)
