from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.dedup.exact import text_keys
from datapipe.dedup.protect import RULES, combine_matches, protect_exact, sort_keys
from datapipe.errors import ConfigError

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


def test_an_empty_evaluation_set_protects_nothing() -> None:
    none = np.empty((0, 2), np.uint64)
    assert [part.tolist() for part in protect_exact(text_keys(["a"]), none)] == [[False], [-1]]
    assert [part.tolist() for part in protect_exact(none, none)] == [[], []]


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
