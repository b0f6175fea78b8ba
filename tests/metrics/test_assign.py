"""Each row finds its nearest prototype: exactly, in chunks, and with the same bits on any number of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from datapipe.errors import VectorError
from datapipe.metrics import assign as module
from datapipe.metrics.assign import CHUNK_ROWS, Assigner

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32

RNG = np.random.default_rng(0)


def unit(rows: int, dim: int = 24) -> Float32:
    vectors = RNG.standard_normal((rows, dim)).astype(np.float32)
    unit_rows: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit_rows


@pytest.mark.parametrize("rows", [0, 1, CHUNK_ROWS, 2 * CHUNK_ROWS + 5])
@pytest.mark.parametrize("k", [1, 7, 100])
def test_rows_find_the_prototype_that_a_float64_product_finds(rows: int, k: int) -> None:
    vectors, prototypes = unit(rows), unit(k)
    with Assigner(prototypes, threads=2) as assigner:
        cosines, clusters = assigner.assign(vectors)
    exact = vectors.astype(np.float64) @ prototypes.T.astype(np.float64)
    assert [cosines.dtype.name, clusters.dtype.name] == ["float32", "int32"]
    np.testing.assert_allclose(cosines, exact.max(axis=1), atol=1e-6)
    chosen = exact[np.arange(rows), clusters]
    assert (chosen >= exact.max(axis=1) - 1e-6).all()
    clear = np.sort(exact, axis=1)[:, -1] - (np.sort(exact, axis=1)[:, -2] if k > 1 else -2) > 1e-6
    assert np.array_equal(clusters[clear], exact.argmax(axis=1)[clear])


def test_ties_go_to_the_lowest_prototype_also_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_PROTOTYPES", 4)
    prototypes = np.tile(unit(3), (4, 1))
    vectors = unit(500)
    with Assigner(prototypes) as assigner:
        cosines, clusters = assigner.assign(vectors)
    assert clusters.max() <= 2
    np.testing.assert_allclose(cosines, (vectors @ prototypes.T).max(axis=1), atol=1e-6)


def test_more_prototypes_than_a_block_are_assigned_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, prototypes = unit(700), unit(50)
    with Assigner(prototypes) as assigner:
        whole = assigner.assign(vectors)
    monkeypatch.setattr(module, "BLOCK_PROTOTYPES", 16)
    with Assigner(prototypes) as assigner:
        blocks = assigner.assign(vectors)
    assert np.array_equal(whole[1], blocks[1])
    np.testing.assert_allclose(whole[0], blocks[0], atol=1e-6)


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    vectors, prototypes = unit(5 * CHUNK_ROWS + 77, 100), unit(300, 100)
    results = []
    for threads in (1, 2, 5):
        with Assigner(prototypes, threads=threads) as assigner:
            results.append(assigner.assign(vectors))
    for cosines, clusters in results[1:]:
        assert cosines.tobytes() == results[0][0].tobytes()
        assert clusters.tobytes() == results[0][1].tobytes()


def test_a_second_call_gives_the_same_bits_whatever_came_between() -> None:
    vectors, prototypes = unit(1500), unit(9)
    with Assigner(prototypes, threads=2) as assigner:
        first = assigner.assign(vectors)
        assigner.assign(unit(3000))
        second = assigner.assign(vectors)
    assert first[0].tobytes() == second[0].tobytes()


def test_the_padding_of_the_last_chunk_does_not_reach_the_rows_before_it() -> None:
    vectors, prototypes = unit(CHUNK_ROWS), unit(9)
    with Assigner(prototypes) as assigner:
        whole, part = assigner.assign(vectors), assigner.assign(vectors[:300])
    assert part[0].tobytes() == whole[0][:300].tobytes()


def test_bfloat16_bits_are_assigned_like_their_values() -> None:
    codes = (unit(1300).view(np.uint32) >> 16).astype(np.uint16)
    values = (codes.astype(np.uint32) << 16).view(np.float32)
    with Assigner(unit(11), threads=2) as assigner:
        assert assigner.assign_bfloat16(codes)[0].tobytes() == assigner.assign(values)[0].tobytes()


def test_the_cosine_is_that_of_the_direction_where_rounding_changed_the_length() -> None:
    vectors = unit(200)
    with Assigner(unit(5)) as assigner:
        exact, stretched = assigner.assign(vectors), assigner.assign(vectors * np.float32(1.004))
    np.testing.assert_allclose(exact[0], stretched[0], atol=1e-6)


def test_arrays_that_may_not_be_written_are_taken() -> None:
    vectors = unit(10)
    vectors.flags.writeable = False
    with Assigner(vectors) as assigner:
        assert np.array_equal(assigner.assign(vectors)[1], np.arange(10))


def test_the_path_of_an_accelerator_gives_the_same_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEVICE_ROWS", 100)
    monkeypatch.setattr(module, "BLOCK_PROTOTYPES", 16)
    vectors, prototypes = unit(450), unit(50)
    codes = (vectors.view(np.uint32) >> 16).astype(np.uint16)
    with Assigner(prototypes) as assigner:
        host, host_codes = assigner.assign(vectors), assigner.assign_bfloat16(codes)
        monkeypatch.setattr(assigner, "_pool", None)
        there, there_codes = assigner.assign(vectors), assigner.assign_bfloat16(codes)
    for ours, theirs in ((host, there), (host_codes, there_codes)):
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
        assert np.array_equal(ours[1], theirs[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_an_accelerator_gives_the_assignment_of_the_host() -> None:
    vectors, prototypes = unit(200_000, 128), unit(500, 128)
    with Assigner(prototypes) as host, Assigner(prototypes, device="cuda") as device:
        ours, theirs, again = host.assign(vectors), device.assign(vectors), device.assign(vectors)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
    assert (ours[1] == theirs[1]).mean() > 0.999
    assert theirs[0].tobytes() == again[0].tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.nan, "vector of row 1030 is not finite"),
        (np.inf, "vector of row 1030 is not finite"),
        (0.0, "vector of row 1030 has length"),
    ],
)
def test_a_row_that_is_no_unit_vector_is_named(change: float, message: str) -> None:
    vectors = unit(CHUNK_ROWS + 20)
    vectors[1030] = change
    with Assigner(unit(3)) as assigner, pytest.raises(VectorError, match=message):
        assigner.assign(vectors)


def test_vectors_of_another_dimension_are_refused() -> None:
    with (
        Assigner(unit(3)) as assigner,
        pytest.raises(VectorError, match=r"shape \(4, 7\) and the prototypes dimension 24"),
    ):
        assigner.assign(unit(4, 7))


@pytest.mark.parametrize(
    ("prototypes", "message"),
    [
        (np.zeros((0, 4), np.float32), r"at least one row; their shape is \(0, 4\)"),
        (np.zeros(4, np.float32), r"their shape is \(4,\)"),
        (np.ones((2, 4), np.float32), "vector of prototype 0 has length 2"),
    ],
)
def test_prototypes_that_cannot_be_used_are_refused(prototypes: Float32, message: str) -> None:
    with pytest.raises(VectorError, match=message):
        Assigner(prototypes)
