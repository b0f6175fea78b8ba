"""Neighbours and the scores made of them, against plain float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from datapipe.errors import MetricError
from datapipe.metrics.density import knn_density, typicality
from datapipe.metrics.knn import measured_recall, nearest_cosines, nearest_neighbours, neighbour_lists
from datapipe.storage.lists import VectorLists, build_lists
from datapipe.storage.vectors import codes, decode, encode

if TYPE_CHECKING:
    from pathlib import Path

ROWS, DIM, K = 2700, 24, 7


def some(rows: int = ROWS) -> np.ndarray:
    vectors = np.random.default_rng(1).normal(size=(rows, DIM))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def listed(vectors: np.ndarray, assigned: np.ndarray, path: Path) -> VectorLists:
    bits = codes(encode(vectors))
    return build_lists([bits[:1000], bits[1000:]], assigned, lists=int(assigned.max()) + 1, dim=DIM, path=path)


def reference(vectors: np.ndarray, k: int) -> np.ndarray:
    wide = decode(encode(vectors)).astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    cosines = wide @ wide.T
    np.fill_diagonal(cosines, -np.inf)
    return -np.sort(-cosines, axis=1)[:, :k]


def test_all_neighbours_are_found_whatever_the_lists_as_long_as_all_are_probed(tmp_path: Path) -> None:
    vectors = some()
    for lists in (1, 5):
        assigned = np.random.default_rng(2).integers(0, lists, ROWS).astype(np.int32)
        every = np.tile(np.arange(lists), (lists, 1))
        found = nearest_cosines(listed(vectors, assigned, tmp_path / f"{lists}"), every, k=K)
        np.testing.assert_allclose(found, reference(vectors, K), atol=1e-6)
        assert measured_recall(found, reference(vectors, K).astype(np.float32)) == 1.0


def test_threads_change_no_bit(tmp_path: Path) -> None:
    lists = listed(some(), np.zeros(ROWS, np.int32), tmp_path / "lists")
    near = np.zeros((1, 1), np.int64)
    one = nearest_cosines(lists, near, k=K, threads=1)
    assert one.tobytes() == nearest_cosines(lists, near, k=K, threads=3).tobytes()


def test_threads_change_no_name_where_many_neighbours_are_equally_near(tmp_path: Path) -> None:
    vectors = np.repeat(some(900), 6, axis=0)
    lists = listed(vectors, np.random.default_rng(2).integers(0, 4, len(vectors)).astype(np.int32), tmp_path / "lists")
    near = np.array([[0, 1, 2], [1, 0, 3], [2, 3, 1], [3, 2, 0]])
    one = nearest_neighbours(lists, near, k=4, threads=1)
    for _ in range(3):
        several = nearest_neighbours(lists, near, k=4, threads=4)
        assert [part.tobytes() for part in several] == [part.tobytes() for part in one]
    np.testing.assert_array_equal(nearest_cosines(lists, near, k=4, threads=2), one[1])


def test_a_list_is_compared_with_those_it_names_and_with_no_list_that_only_names_it(tmp_path: Path) -> None:
    vectors, assigned = some(), np.random.default_rng(2).integers(0, 4, ROWS).astype(np.int32)
    near = np.array([[0, 1], [1, 3], [2, 0], [3, 2]])
    who, cosines = nearest_neighbours(listed(vectors, assigned, tmp_path / "lists"), near, k=K)
    wide = decode(encode(vectors)).astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    every = wide @ wide.T
    every[~(near[assigned][:, :, None] == assigned).any(axis=1)] = -np.inf
    np.fill_diagonal(every, -np.inf)
    np.testing.assert_array_equal(who, np.argsort(-every, axis=1)[:, :K])
    np.testing.assert_allclose(cosines, -np.sort(-every, axis=1)[:, :K], atol=1e-6)


def test_a_vector_without_length_is_at_a_right_angle_to_all(tmp_path: Path) -> None:
    vectors = some(40)
    vectors[7] = 0
    bits = codes(encode(vectors))
    lists = build_lists([bits], np.zeros(40, np.int32), lists=1, dim=DIM, path=tmp_path / "lists")
    found = nearest_cosines(lists, np.zeros((1, 1), np.int64), k=K)
    assert found[7].tolist() == [0.0] * K
    assert np.isfinite(found).all()


def test_neighbours_are_named_with_their_cosines_in_whichever_list_they_stand(tmp_path: Path) -> None:
    vectors = some()
    assigned = np.random.default_rng(2).integers(0, 5, ROWS).astype(np.int32)
    done: list[int] = []
    who, cosines = nearest_neighbours(
        listed(vectors, assigned, tmp_path / "lists"), np.tile(np.arange(5), (5, 1)), k=K, tick=done.append
    )
    wide = decode(encode(vectors)).astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    np.testing.assert_allclose(np.einsum("id,ikd->ik", wide, wide[who]), cosines, atol=1e-6)
    np.testing.assert_allclose(cosines, reference(vectors, K), atol=1e-6)
    assert not (who == np.arange(ROWS)[:, None]).any()
    assert sum(done) == ROWS


def test_the_way_of_an_accelerator_walked_on_the_host_finds_the_same(tmp_path: Path) -> None:
    assigned = np.random.default_rng(2).integers(0, 3, ROWS).astype(np.int32)
    lists, near = listed(some(), assigned, tmp_path / "lists"), np.array([[0, 1], [1, 2], [2, 1]])
    host, other = (nearest_neighbours(lists, near, k=K, device=device) for device in ("cpu", "cpu:0"))
    np.testing.assert_array_equal(other[0], host[0])
    np.testing.assert_allclose(other[1], host[1], atol=1e-6)


def test_where_fewer_can_be_compared_nobody_is_named(tmp_path: Path) -> None:
    who, cosines = nearest_neighbours(
        listed(some(3), np.zeros(3, np.int32), tmp_path / "lists"), np.zeros((1, 1), np.int64), k=4
    )
    assert (np.sort(who[:, :2], axis=1) == [[1, 2], [0, 2], [0, 1]]).all()
    assert (who[:, 2:] == -1).all()
    assert np.isnan(cosines[:, 2:]).all()


def test_scores_are_means_over_the_neighbours(tmp_path: Path) -> None:
    vectors = some()
    found = nearest_cosines(listed(vectors, np.zeros(ROWS, np.int32), tmp_path / "l"), np.zeros((1, 1), np.int64), k=K)
    expected = reference(vectors, K)
    np.testing.assert_allclose(knn_density(found), (1 - expected).mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(typicality(found), 1 / np.sqrt(2 - 2 * expected).mean(axis=1), rtol=1e-5)


def test_copies_are_dense_and_typical_within_bounds_and_a_lone_row_is_neither(tmp_path: Path) -> None:
    copies = np.repeat(some(1), 30, axis=0)
    lists = build_lists([codes(encode(copies))], np.zeros(30, np.int32), lists=1, dim=DIM, path=tmp_path / "copies")
    found = nearest_cosines(lists, np.zeros((1, 1), np.int64), k=K)
    assert knn_density(found).max() < 1e-6
    assert set(typicality(found)) == {256.0}
    none = np.full((1, K), np.nan, np.float32)
    assert knn_density(none).tolist() == [2.0]
    assert typicality(none).tolist() == [0.5]


def test_fewer_rows_than_neighbours_leave_the_rest_open(tmp_path: Path) -> None:
    lists = build_lists([codes(encode(some(3)))], np.zeros(3, np.int32), lists=1, dim=DIM, path=tmp_path / "few")
    found = nearest_cosines(lists, np.zeros((1, 1), np.int64), k=K)
    assert np.isfinite(found).sum(axis=1).tolist() == [2, 2, 2]


def test_a_list_is_nearest_to_itself() -> None:
    assert neighbour_lists(some(9), 4)[:, 0].tolist() == list(range(9))


def test_k_out_of_range_is_refused(tmp_path: Path) -> None:
    lists = listed(some(), np.zeros(ROWS, np.int32), tmp_path / "lists")
    with pytest.raises(MetricError, match="1 <= k <= 2048; got 0"):
        nearest_cosines(lists, np.zeros((1, 1), np.int64), k=0)
