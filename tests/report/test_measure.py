from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import MetricError
from datapipe.report.measure import balance_score, class_balance, histogram, map_points, nice_edges, strata_facts

finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def test_edges_are_round() -> None:
    assert nice_edges(0.013, 0.94, bins=20) == (
        0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95,
    )  # fmt: skip
    assert nice_edges(3, 3, bins=10)[0] <= 3 <= nice_edges(3, 3, bins=10)[-1]
    assert nice_edges(0, 1_000_000, bins=5) == (0, 200_000, 400_000, 600_000, 800_000, 1_000_000)


@given(ends=st.tuples(finite, finite), bins=st.integers(2, 80))
def test_edges_ascend_and_cover_the_range_with_at_most_so_many_bins(ends: tuple[float, float], bins: int) -> None:
    low, high = sorted(ends)
    edges = nice_edges(low, high, bins=bins)
    assert 2 <= len(edges) <= bins + 1
    assert all(one < other for one, other in itertools.pairwise(edges))
    slack = 1e-9 * max(1, abs(low), abs(high))
    assert edges[0] <= low + slack
    assert edges[-1] >= high - slack


@pytest.mark.parametrize(("low", "high", "bins"), [(1.0, 0.0, 10), (0.0, float("nan"), 10), (0.0, 1.0, 1)])
def test_edges_of_no_range_are_refused(low: float, high: float, bins: int) -> None:
    with pytest.raises(MetricError, match="edges need finite low <= high and bins >= 2"):
        nice_edges(low, high, bins=bins)


def test_a_histogram_counts_kept_and_dropped_rows() -> None:
    scores = np.array([0.0, 0.1, 0.5, 1.0, np.nan], np.float32)
    kept = np.array([True, False, True, False, True])
    found = histogram(scores, kept, metric="prototypes", edges=(0.0, 0.5, 1.0), cuts=(0.5,))
    assert (found.kept, found.dropped, found.missing) == ((1, 1), (1, 1), 1)


@given(rows=st.lists(st.tuples(finite, st.booleans()), max_size=60))
def test_a_histogram_holds_every_row_once(rows: list[tuple[float, bool]]) -> None:
    scores = np.array([score for score, _ in rows], np.float32)
    kept = np.array([choice for _, choice in rows], np.bool_)
    found = histogram(scores, kept, metric="m")
    assert sum(found.kept) == kept.sum()
    assert sum(found.dropped) == (~kept).sum()


def test_scores_of_other_rows_are_refused() -> None:
    with pytest.raises(MetricError, match="2 scores and 1 choices"):
        histogram(np.zeros(2, np.float32), np.zeros(1, np.bool_), metric="m")


def test_strata_add_up_to_the_histogram() -> None:
    random = np.random.default_rng(0)
    scores, kept = random.random(200, dtype=np.float32), random.random(200) < 0.3
    scores[:3] = np.nan
    names = [f"class {place}" for place in random.integers(0, 5, 200)]
    whole = histogram(scores, kept, metric="m")
    parts = strata_facts(names, kept, scores=scores, edges=whole.edges)
    assert [part.name for part in parts] == sorted(set(names))
    assert sum(part.total for part in parts) == 200
    assert sum(part.kept for part in parts) == kept.sum()
    tables = np.array([part.scores for part in parts]).sum(axis=0)
    assert tables.tolist() == [list(whole.kept), list(whole.dropped)]
    own = scores[(np.array(names) == parts[2].name) & np.isfinite(scores)]
    assert parts[2].mean_score == pytest.approx(own.astype(np.float64).mean())


def test_strata_without_scores_have_counts_alone() -> None:
    (only,) = strata_facts(["all"] * 3, np.array([True, False, True]))
    assert (only.total, only.kept, only.dropped, only.mean_score, only.scores) == (3, 2, 1, None, None)


def test_the_balance_score_is_the_mean_ratio_of_all_pairs() -> None:
    assert balance_score([10, 20, 40]) == pytest.approx((10 / 20 + 10 / 40 + 20 / 40) / 3)
    assert balance_score([5, 5, 5]) == 1
    assert balance_score([7, 0]) == 0
    assert balance_score([0, 0]) == 0
    assert balance_score([3]) == balance_score([]) == 1


@given(counts=st.lists(st.integers(0, 1000), min_size=2, max_size=40))
def test_the_balance_score_equals_its_definition_in_any_order(counts: list[int]) -> None:
    pairs = [min(a, b) / max(a, b) if max(a, b) else 0 for a, b in itertools.combinations(counts, 2)]
    assert balance_score(counts) == pytest.approx(sum(pairs) / len(pairs))
    assert balance_score(counts) == balance_score(counts[::-1])


def test_a_class_that_lost_all_its_rows_is_still_counted() -> None:
    found = class_balance(["a", "a", "b", 3], np.array([True, True, False, True]), column="label")
    assert found.before == {"3": 1, "a": 2, "b": 1}
    assert found.after == {"3": 1, "a": 2, "b": 0}
    assert found.score_after < found.score_before


def test_map_points_carry_what_is_known_of_their_rows() -> None:
    scores = np.array([0.5, np.nan], np.float32)
    points = map_points(np.eye(2, dtype=np.float32), np.array([True, False]), ["a", "b"], scores=scores)
    assert points == ((1.0, 0.0, True, "a", 0.5), (0.0, 1.0, False, "b", None))
