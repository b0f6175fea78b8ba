"""Which of two rows stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.dedup.keepers import centrality, rank_of
from datapipe.storage.lists import build_lists
from datapipe.storage.vectors import codes, decode, encode

if TYPE_CHECKING:
    from pathlib import Path


def test_the_greatest_comes_first_and_of_equals_the_lower_row() -> None:
    assert rank_of(np.array([1.0, 3.0, 3.0, 2.0])).tolist() == [3, 0, 1, 2]


def test_centrality_is_the_cosine_to_the_centroid_of_the_list_or_to_the_mean_of_the_only_one(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    wide = decode(encode(vectors)).astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    assigned = np.arange(50, dtype=np.int32) % 2
    centroids = np.eye(8, dtype=np.float32)[:2]
    bits = codes(encode(vectors))
    two = build_lists([bits], assigned, lists=2, dim=8, path=tmp_path / "two")
    np.testing.assert_allclose(centrality(two, centroids), wide[np.arange(50), assigned], atol=1e-6)
    one = build_lists([bits], np.zeros(50, np.int32), lists=1, dim=8, path=tmp_path / "one")
    mean = wide.mean(axis=0)
    np.testing.assert_allclose(centrality(one, centroids), wide @ (mean / np.linalg.norm(mean)), atol=1e-6)


def test_vectors_that_cancel_out_have_no_centre(tmp_path: Path) -> None:
    bits = codes(encode(np.array([[1, 0], [-1, 0]], np.float32)))
    lists = build_lists([bits], np.zeros(2, np.int32), lists=1, dim=2, path=tmp_path / "lists")
    assert centrality(lists, np.ones((1, 2), np.float32)).tolist() == [0, 0]
