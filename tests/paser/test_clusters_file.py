"""Clusters that were saved give new rows what those in memory give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from datapipe.errors import IntegrityError, VectorError
from datapipe.paser.clusters import ClusterConfig, Clusters, cluster
from datapipe.paser.clusters_file import load_clusters, save_clusters
from datapipe.storage.vectors import decode, encode

if TYPE_CHECKING:
    from pathlib import Path

DIM = 16


def unit(rows: int, *, seed: int, numbers: str) -> np.ndarray:
    draws = np.random.default_rng(seed)
    vectors = draws.normal(size=(4, DIM))[draws.integers(4, size=rows)] + 0.4 * draws.normal(size=(rows, DIM))
    found = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return decode(encode(found)) if numbers == "bfloat16" else found


@pytest.fixture(scope="module")
def clusters() -> Clusters:
    return cluster(unit(120, seed=0, numbers="bfloat16"), ClusterConfig(k=4, affinity="gaussian"))


@pytest.mark.parametrize("numbers", ["bfloat16", "float32"])
def test_saved_and_loaded_clusters_assign_alike(tmp_path: Path, numbers: str) -> None:
    found = cluster(unit(120, seed=0, numbers=numbers), ClusterConfig(k=4, affinity="gaussian"))
    save_clusters(found, tmp_path / "clusters.npz")
    known = load_clusters(tmp_path / "clusters.npz")
    new = unit(3_000, seed=1, numbers="float32")
    own, loaded = found.assign(new), known.assign(new)
    assert own[0].tobytes() == loaded[0].tobytes()
    assert own[1].tobytes() == loaded[1].tobytes()
    assert known.k == found.k
    assert known.eigenvalues.tobytes() == found.eigenvalues.tobytes()


def test_equal_clusters_are_equal_files_of_half_the_size(tmp_path: Path, clusters: Clusters) -> None:
    for name in "ab":
        save_clusters(clusters, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert load_clusters((tmp_path / "a").read_bytes()).base.tobytes() == clusters.base.tobytes()
    assert (tmp_path / "a").stat().st_size < 2 * DIM * 120 + 4 * 4 * 120 + 3_000


def test_vectors_of_another_length_are_refused(tmp_path: Path, clusters: Clusters) -> None:
    with pytest.raises(VectorError, match=r"shape \(3, 8\) and clustered ones of 16 numbers do not compare"):
        clusters.assign(np.ones((3, 8), np.float32))
    assert clusters.assign(np.empty((0, DIM), np.float32))[1].shape == (0, 4)


def test_a_damaged_or_newer_file_is_refused(tmp_path: Path, clusters: Clusters) -> None:
    save_clusters(clusters, tmp_path / "clusters.npz")
    content = (tmp_path / "clusters.npz").read_bytes()
    for wrong in (content[:500], b"", b"text"):
        (tmp_path / "wrong.npz").write_bytes(wrong)
        with pytest.raises(IntegrityError, match=r"wrong\.npz holds no clusters .*; delete it and run again"):
            load_clusters(tmp_path / "wrong.npz")
    np.savez(tmp_path / "newer.npz", format=9, base=1, shares=1, eigenvalues=1)
    with pytest.raises(IntegrityError, match="is of format 9, and this version reads 1"):
        load_clusters(tmp_path / "newer.npz")
