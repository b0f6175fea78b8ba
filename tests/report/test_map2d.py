from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from datapipe.errors import VectorError
from datapipe.report.map2d import map_2d, principal_components

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32


def blobs(*, rows: int, groups: int, dim: int = 16) -> tuple[Float32, Float32]:
    random = np.random.default_rng(3)
    own = np.arange(rows) % groups
    vectors = random.normal(size=(groups, dim))[own] + 0.15 * random.normal(size=(rows, dim))
    return vectors.astype(np.float32), own.astype(np.float32)


def test_points_on_a_line_stay_on_it() -> None:
    line = np.outer(np.arange(5), [3.0, 4.0, 0.0]).astype(np.float32)
    assert principal_components(line).tolist() == [[-10, 0], [-5, 0], [0, 0], [5, 0], [10, 0]]


def test_the_sign_of_a_component_does_not_hang_on_the_order_of_the_rows() -> None:
    vectors, _ = blobs(rows=60, groups=4)
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_allclose(principal_components(vectors)[order], principal_components(vectors[order]), atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 4), (3, 1), (5, 2)])
def test_few_rows_or_columns_are_mapped_too(shape: tuple[int, int]) -> None:
    xy, method = map_2d(np.random.default_rng(1).random(shape, dtype=np.float32), seed=0)
    assert (xy.shape, xy.dtype.name, method) == ((shape[0], 2), "float32", "PCA")
    assert np.isfinite(xy).all()


def test_equal_rows_are_mapped_to_one_point() -> None:
    xy, _ = map_2d(np.ones((4, 3), np.float32), seed=0)
    assert not xy.any()


def test_pca_serves_where_umap_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    vectors, _ = blobs(rows=600, groups=3)
    xy, method = map_2d(vectors, seed=0)
    assert method == "PCA"
    np.testing.assert_array_equal(xy, principal_components(vectors))


def test_umap_gives_the_same_map_on_any_number_of_threads_and_keeps_groups_apart() -> None:
    pytest.importorskip("umap")
    vectors, own = blobs(rows=510, groups=3)
    before = vectors.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, method = map_2d(vectors, seed=5)
        with threadpool_limits(limits=2):
            two, _ = map_2d(vectors, seed=5)
        large, _ = map_2d(vectors, seed=2**63 - 1)
    assert method == "UMAP"
    np.testing.assert_array_equal(one, two)
    assert np.isfinite(large).all()
    np.testing.assert_array_equal(vectors, before)
    centres = np.stack([one[own == group].mean(axis=0) for group in range(3)])
    nearest = np.linalg.norm(one[:, None] - centres[None], axis=2).argmin(axis=1)
    assert (nearest == own).mean() > 0.95


def test_vectors_that_cannot_be_mapped_are_refused() -> None:
    with pytest.raises(VectorError, match=r"shape \(rows, dim\); got \(3,\)"):
        map_2d(np.ones(3, np.float32), seed=0)
    with pytest.raises(VectorError, match="row 1 is not"):
        map_2d(np.array([[1, 2], [np.inf, 0]], np.float32), seed=0)
