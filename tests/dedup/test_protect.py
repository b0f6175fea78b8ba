from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.dedup.exact import text_keys
from datapipe.dedup.protect import RULES, combine_matches, protect_exact, protect_near, sort_keys
from datapipe.errors import ConfigError, VectorError

words = st.integers(0, 2**64 - 1)
few = st.sampled_from([0, 1, 2**64 - 1])
keys = st.lists(st.tuples(few | words, few | words), max_size=20).map(
    lambda pairs: np.array(pairs, np.uint64).reshape(-1, 2)
)


def test_a_row_with_the_text_of_an_evaluation_row_is_found() -> None:
    protected, order = sort_keys(text_keys(["What is a SEPA transfer?", "How old must I be?", "how old must i be"]))
    found, place = protect_exact(text_keys(["HOW OLD MUST I BE", "How old am I?"]), protected)
    assert found.tolist() == [True, False]
    assert place.tolist()[1] == -1
    assert order[place[0]] == 1


@given(own=keys, protected=keys)
def test_exact_matches_are_set_membership(own: np.ndarray, protected: np.ndarray) -> None:
    ordered, order = sort_keys(protected)
    found, place = protect_exact(own, ordered)
    known = [tuple(key) for key in protected.tolist()]
    assert found.tolist() == [tuple(key) in known for key in own.tolist()]
    firsts = [known.index(tuple(key)) if hit else -1 for key, hit in zip(own.tolist(), found, strict=True)]
    assert [int(order[at]) if at >= 0 else -1 for at in place] == firsts


def test_unsorted_protected_keys_are_refused() -> None:
    unsorted = np.array([[1, 5], [1, 4]], np.uint64)
    with pytest.raises(ConfigError, match="must ascend; pass them through sort_keys first"):
        protect_exact(unsorted, unsorted)


def test_a_row_near_an_evaluation_row_is_found_with_its_evidence() -> None:
    protected = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    rows = np.array([[0.1, 1, 0], [0, 0, 1], [3, 0, 0.1], [0, 0, 0]], np.float32)
    found, best, cosine = protect_near(rows, protected, threshold=0.99)
    assert found.tolist() == [True, False, True, False]
    assert best.tolist()[0] == 1
    assert best.tolist()[2] == 0
    np.testing.assert_allclose(cosine, [1 / np.sqrt(1.01), 0, 3 / np.sqrt(9.01), 0], rtol=1e-6)
    assert (best.dtype, cosine.dtype) == (np.int64, np.float32)


@given(seed=st.integers(0, 2**32), rows=st.integers(0, 20), protected=st.integers(1, 20), chunk=st.integers(1, 25))
def test_near_matches_do_not_hang_on_the_chunk(seed: int, rows: int, protected: int, chunk: int) -> None:
    random = np.random.default_rng(seed)
    own, others = (random.normal(size=(count, 5)).astype(np.float32) for count in (rows, protected))
    found, best, cosine = protect_near(own, others, threshold=0.8, chunk=chunk)
    units = [part / np.linalg.norm(part.astype(np.float64), axis=1, keepdims=True) for part in (own, others)]
    exact = units[0] @ units[1].T
    np.testing.assert_allclose(cosine, exact.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(exact[np.arange(rows), best], exact.max(axis=1), atol=1e-6)
    whole = protect_near(own, others, threshold=0.8)
    np.testing.assert_array_equal(found, whole[0])
    np.testing.assert_array_equal(cosine, whole[2])


def test_an_equal_vector_matches_at_threshold_one_and_the_lowest_of_equals_is_named() -> None:
    vector = np.random.default_rng(0).normal(size=(1, 384)).astype(np.float32)
    found, best, cosine = protect_near(vector, np.repeat(vector, 3, axis=0), threshold=1.0, chunk=2)
    assert (found.tolist(), best.tolist()) == ([True], [0])
    assert cosine[0] == 1


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_the_evaluation_row_named_is_its_place_in_the_set_the_first_of_equals(chunk: int) -> None:
    protected = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [0, 0, 1]], np.float32)
    rows = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]], np.float32)
    assert protect_near(rows, protected, chunk=chunk)[1].tolist() == [4, 2, 0, 2]


def test_read_only_arrays_are_taken_and_left_alone() -> None:
    rows = np.eye(3, dtype=np.float32)
    rows.flags.writeable = False
    found, best, _ = protect_near(rows, rows)
    assert found.all()
    assert best.tolist() == [0, 1, 2]


def test_an_empty_evaluation_set_protects_nothing() -> None:
    found, best, cosine = protect_near(np.eye(2, dtype=np.float32), np.empty((0, 2), np.float32))
    assert (found.tolist(), best.tolist(), cosine.tolist()) == ([False, False], [-1, -1], [-1, -1])
    none = np.empty((0, 2), np.uint64)
    assert [part.tolist() for part in protect_exact(text_keys(["a"]), none)] == [[False], [-1]]
    assert [part.tolist() for part in protect_exact(none, none)] == [[], []]


@pytest.mark.parametrize("threshold", [0.0, 1.1, float("nan")])
def test_a_threshold_that_is_no_cosine_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold is a cosine, 0 < threshold <= 1"):
        protect_near(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), threshold=threshold)


def test_vectors_that_cannot_be_compared_are_refused() -> None:
    one, two = np.eye(2, dtype=np.float32), np.eye(3, dtype=np.float32)
    with pytest.raises(VectorError, match=r"vectors \(2, 2\) and protected \(3, 3\)"):
        protect_near(one, two)
    bad = np.ones((5, 2), np.float32)
    bad[3, 1] = np.nan
    with pytest.raises(VectorError, match="vectors: row 3 holds a value that is not finite"):
        protect_near(bad, one, chunk=2)
    with pytest.raises(VectorError, match="protected: row 3"):
        protect_near(one, bad)
    with pytest.raises(ConfigError, match="chunk counts rows, chunk >= 1; got 0"):
        protect_near(one, one, chunk=0)


def test_a_row_that_several_rules_find_stands_once_under_the_strictest() -> None:
    def result(hits: list[int], evaluation: int, similarity: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = np.isin(np.arange(4), hits)
        return found, np.full(4, evaluation), np.full(4, similarity, np.float32)

    matches = combine_matches(
        exact=result([2], 7, 1)[:2], contained=result([2, 3], 8, 0.5), near=result([0, 3], 9, 0.99)
    )
    assert len(matches) == 3
    assert matches.rows.tolist() == [0, 2, 3]
    assert matches.evaluation.tolist() == [9, 7, 8]
    np.testing.assert_allclose(matches.similarity, [0.99, 1, 0.5])
    assert [RULES[rule] for rule in matches.rules] == ["near", "exact", "contained"]


def test_no_rule_gives_no_match() -> None:
    assert len(combine_matches()) == 0
