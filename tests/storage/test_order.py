"""Hash order depends on ids and seed alone, and smaller samples lie within larger ones."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import ConfigError
from datapipe.storage.order import hash_order, seed_for, smallest

words = st.integers(0, 2**64 - 1)
id_sets = st.lists(st.tuples(words, words), max_size=30, unique=True)


def as_ids(rows: list[tuple[int, int]]) -> np.ndarray:
    return np.array(rows, np.uint64).reshape(-1, 2)


def test_the_key_is_a_keyed_blake2b_of_the_id() -> None:
    row_id = (1).to_bytes(8, "big") + (2).to_bytes(8, "big")
    digest = hashlib.blake2b(row_id, key=(7).to_bytes(8, "big"), digest_size=8).digest()
    assert hash_order(as_ids([(1, 2)]), seed=7).tolist() == [int.from_bytes(digest, "big")]


def test_another_seed_is_another_order() -> None:
    ids = as_ids([(i, i) for i in range(50)])
    assert np.argsort(hash_order(ids, seed=0)).tolist() != np.argsort(hash_order(ids, seed=1)).tolist()


@given(rows=id_sets, order=st.randoms(use_true_random=False))
def test_a_key_does_not_depend_on_the_other_rows(rows: list[tuple[int, int]], order: object) -> None:
    shuffled = sorted(rows, key=lambda _: order.random())  # type: ignore[attr-defined]
    keys = dict(zip(rows, hash_order(as_ids(rows), seed=3).tolist(), strict=True))
    assert hash_order(as_ids(shuffled), seed=3).tolist() == [keys[row] for row in shuffled]


@given(rows=id_sets, n=st.integers(0, 35), cut=st.integers(0, 30), seed=st.integers(0, 2**64 - 1))
def test_the_smallest_are_the_first_of_the_whole_order_for_any_cut(
    rows: list[tuple[int, int]], n: int, cut: int, seed: int
) -> None:
    ids = as_ids(rows)
    expected = ids[np.lexsort((ids[:, 1], ids[:, 0], hash_order(ids, seed=seed)))][:n]
    assert (smallest([ids[:cut], ids[cut:]], n, seed) == expected).all()
    assert (smallest((ids[i : i + 1] for i in range(len(ids))), n, seed) == expected).all()


def test_samples_of_the_same_seed_are_nested() -> None:
    ids = as_ids([(i, i * i) for i in range(200)])
    large = smallest([ids], 60, 5)
    assert (large[:20] == smallest([ids], 20, 5)).all()


def test_samples_for_two_purposes_are_independent_of_each_other_and_of_the_seed_itself() -> None:
    ids = as_ids([(i, i * i) for i in range(4000)])
    seeds = [5, seed_for("fit", 5), seed_for("report", 5), seed_for("report", 2**64 - 1)]
    samples = [set(map(tuple, smallest([ids], 1000, seed).tolist())) for seed in seeds]
    shared = [len(one & other) for place, one in enumerate(samples) for other in samples[:place]]
    assert all(200 < rows < 300 for rows in shared)


def test_no_rows_have_no_order() -> None:
    assert hash_order(as_ids([]), seed=0).shape == (0,)
    assert smallest([], 5, 0).shape == (0, 2)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_of_more_than_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=rf"a seed lies between 0 and 2\*\*64 - 1; got {seed}"):
        hash_order(as_ids([(0, 0)]), seed=seed)


def test_a_negative_number_of_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="the number of rows to take is at least 0; got -1"):
        smallest([], -1, 0)
