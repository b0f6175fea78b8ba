"""Which rows go for saying the same, against all pairs in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from datapipe.dedup.semantic import pair_recall, semantic_duplicates
from datapipe.errors import ConfigError
from datapipe.storage.lists import VectorLists, build_lists
from datapipe.storage.vectors import codes, decode, encode

if TYPE_CHECKING:
    from pathlib import Path

DIM, THRESHOLD = 12, 0.9


def some() -> np.ndarray:
    rng = np.random.default_rng(4)
    near = rng.normal(size=(60, DIM))[rng.integers(0, 60, 1500)] + 0.25 * rng.normal(size=(1500, DIM))
    vectors = np.concatenate([near, near[:40]])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def listed(vectors: np.ndarray, assigned: np.ndarray, path: Path) -> VectorLists:
    lists = int(assigned.max()) + 1
    return build_lists(
        [codes(encode(vectors))], assigned.astype(np.int32), lists=lists, dim=vectors.shape[1], path=path
    )


def one_list(vectors: np.ndarray, path: Path) -> tuple[VectorLists, np.ndarray]:
    return listed(vectors, np.zeros(len(vectors)), path), np.zeros((1, 1), np.int64)


def test_what_stays_is_pairwise_below_the_threshold_and_what_goes_is_near_what_stays(tmp_path: Path) -> None:
    vectors = some()
    lists, near = one_list(vectors, tmp_path / "lists")
    rank = np.random.default_rng(0).permutation(len(vectors))
    found = semantic_duplicates(lists, near, rank, threshold=THRESHOLD)
    wide = decode(encode(vectors)).astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    stays = np.setdiff1d(np.arange(len(vectors)), found.rows)
    cosines = wide[stays] @ wide[stays].T
    assert np.triu(cosines, 1).max() < THRESHOLD + 1e-6
    assert set(found.kept) <= set(stays.tolist())
    np.testing.assert_allclose((wide[found.rows] * wide[found.kept]).sum(axis=1), found.similarity, atol=1e-5)
    assert found.similarity.min() >= THRESHOLD - 1e-6


def test_lists_change_nothing_where_all_are_neighbours(tmp_path: Path) -> None:
    vectors, rank = some(), np.arange(1540)
    lists, near = one_list(vectors, tmp_path / "one")
    one = semantic_duplicates(lists, near, rank, threshold=THRESHOLD)
    # Copies lie in one list, as the nearest centroid of equal vectors is equal.
    assigned = (vectors[:, 0] > 0).astype(np.int64) + (vectors[:, 1] > 0)
    three = semantic_duplicates(
        listed(vectors, assigned, tmp_path / "three"), np.tile(np.arange(3), (3, 1)), rank, threshold=THRESHOLD
    )
    assert one.rows.tolist() == three.rows.tolist()
    assert one.kept.tolist() == three.kept.tolist()


def test_threads_change_no_bit(tmp_path: Path) -> None:
    vectors, rank = some(), np.arange(1540)
    lists, near = one_list(vectors, tmp_path / "lists")
    one, three = (semantic_duplicates(lists, near, rank, threshold=THRESHOLD, threads=count) for count in (1, 3))
    assert one.similarity.tobytes() == three.similarity.tobytes()
    assert (one.rows.tolist(), one.kept.tolist()) == (three.rows.tolist(), three.kept.tolist())


def test_the_way_of_an_accelerator_finds_the_same(tmp_path: Path) -> None:
    lists, near = one_list(some(), tmp_path / "lists")
    # To torch `cpu:0` is the processor; to this project it is a device that is not the host.
    one, other = (
        semantic_duplicates(lists, near, np.arange(1540), threshold=THRESHOLD, device=device)
        for device in ("cpu", "cpu:0")
    )
    assert one.similarity.tobytes() == other.similarity.tobytes()
    assert (one.rows.tolist(), one.kept.tolist()) == (other.rows.tolist(), other.kept.tolist())


def test_more_pairs_than_memory_is_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datapipe.dedup.semantic.MOST_PAIRS", 100)
    lists, near = one_list(some(), tmp_path / "lists")
    with pytest.raises(ConfigError, match=r"more than 100 pairs .* raise dedup_threshold"):
        semantic_duplicates(lists, near, np.arange(1540), threshold=THRESHOLD)


def test_a_copy_of_a_row_that_goes_is_gone_for_the_row_that_stays(tmp_path: Path) -> None:
    angles = np.deg2rad([0, 10, 10])
    vectors = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    lists, near = one_list(vectors, tmp_path / "lists")
    found = semantic_duplicates(lists, near, np.arange(3), threshold=THRESHOLD)
    assert (found.rows.tolist(), found.kept.tolist()) == ([1, 2], [0, 0])
    assert found.similarity.tolist() == pytest.approx([np.cos(np.deg2rad(10))] * 2, abs=0.01)


def test_a_chain_does_not_fall_together_into_its_first_row(tmp_path: Path) -> None:
    angles = np.deg2rad([0, 20, 40])
    vectors = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    lists, near = one_list(vectors, tmp_path / "chain")
    found = semantic_duplicates(lists, near, np.arange(3), threshold=THRESHOLD)
    assert (found.rows.tolist(), found.kept.tolist()) == ([1], [0])


def test_copies_make_no_pairs(tmp_path: Path) -> None:
    lists, near = one_list(np.repeat(some()[:1], 5000, axis=0), tmp_path / "copies")
    found = semantic_duplicates(lists, near, np.arange(5000)[::-1].copy(), threshold=THRESHOLD)
    assert (len(found.rows), set(found.kept.tolist()), found.pairs) == (4999, {4999}, 0)


def test_a_threshold_out_of_range_is_refused(tmp_path: Path) -> None:
    lists, near = one_list(some(), tmp_path / "lists")
    with pytest.raises(ConfigError, match="0 < dedup_threshold <= 1; got 0"):
        semantic_duplicates(lists, near, np.arange(1540), threshold=0)


def test_pairs_are_decided_alike_in_any_cut_into_lists(tmp_path: Path) -> None:
    vectors, rank = some(), np.arange(1540)
    similar = []
    for count in (1, 4, 40):
        assigned = (vectors[:, 0] * 1e4).astype(np.int64) % count  # copies have equal first numbers
        lists = listed(vectors, np.append(assigned[:-1], count - 1), tmp_path / f"{count}")
        near = np.tile(np.arange(len(lists)), (len(lists), 1))
        found = semantic_duplicates(lists, near, rank, threshold=THRESHOLD)
        similar.append((found.rows.tolist(), found.kept.tolist(), found.similarity.tobytes()))
    assert similar[0] == similar[1] == similar[2]


def test_zero_vectors_are_copies_of_each_other_and_near_nothing_else(tmp_path: Path) -> None:
    vectors = np.concatenate([np.zeros((3, DIM)), some()[:5]]).astype(np.float32)
    lists, near = one_list(vectors, tmp_path / "lists")
    found = semantic_duplicates(lists, near, np.arange(8), threshold=1e-3)
    assert {0, 1, 2} & set(found.rows.tolist()) == {1, 2}
    assert found.kept[np.isin(found.rows, [1, 2])].tolist() == [0, 0]


def test_the_recall_counts_the_pairs_of_lists_that_are_compared(tmp_path: Path) -> None:
    vectors = some()[:1500]
    assigned = np.arange(1500) % 3
    lists = listed(vectors, assigned, tmp_path / "three")
    wide = decode(encode(vectors)).astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    cosines = wide @ wide.T
    np.fill_diagonal(cosines, 0)
    one, other = np.nonzero(cosines[:300] >= THRESHOLD)
    near = np.array([[0, 1], [1, 0], [2, 2]])
    together = np.isin(assigned[one], [0, 1]) == np.isin(assigned[other], [0, 1])
    sample = np.flatnonzero(lists.rows < 300)
    assert pair_recall(lists, near, sample, threshold=THRESHOLD) == (int(together.sum()), len(one))
