"""Intervals and verdicts against SciPy's float64 figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers, lists

from datapipe.errors import MetricError
from datapipe.proof.statistics import (
    bootstrap,
    class_accuracies,
    compare_paired,
    compare_unpaired,
    interval,
    student_t,
    worst_class,
)

stats = pytest.importorskip("scipy.stats")
ACCURACIES = lists(floats(0.0, 1.0), min_size=2, max_size=12)


def test_a_difference_above_the_noise_is_a_win_and_its_mirror_a_loss() -> None:
    kept, random = [0.91, 0.92, 0.93, 0.915, 0.925], [0.90, 0.905, 0.915, 0.90, 0.91]
    assert compare_paired(kept, random).verdict == "win"
    assert compare_paired(random, kept).verdict == "loss"


def test_a_difference_inside_the_noise_is_no_win() -> None:
    found = compare_paired([0.91, 0.89, 0.93], [0.90, 0.90, 0.92])
    assert found.verdict == "no difference inside the noise"
    assert found.difference.mean > 0
    assert found.detectable > found.difference.mean


@given(floats(0.5, 200.0), floats(0.01, 0.999))
def test_quantiles_of_student_are_those_of_scipy(freedom: float, probability: float) -> None:
    assert student_t(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-7, abs=1e-9)


@given(ACCURACIES)
def test_the_interval_is_that_of_scipy(values: list[float]) -> None:
    found = interval(values)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.high - found.mean == pytest.approx(half, rel=1e-7, abs=1e-12)


def test_unpaired_intervals_are_those_of_welch() -> None:
    first, second = [0.91, 0.89, 0.93, 0.95], [0.80, 0.86, 0.82]
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    found = compare_unpaired(first, second).difference
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-7)


@given(ACCURACIES, integers(0, 2**32))
def test_a_bootstrap_interval_lies_within_its_values_and_repeats(values: list[float], seed: int) -> None:
    found = bootstrap(values, draws=200, seed=seed)
    assert min(values) - 1e-12 <= found.low <= found.high <= max(values) + 1e-12
    assert found == bootstrap(values, draws=200, seed=seed)


def test_one_seed_decides_nothing() -> None:
    assert compare_paired([0.9], [0.1]).verdict == "no difference inside the noise"
    assert compare_unpaired([0.9], [0.1, 0.2]).verdict == "no difference inside the noise"
    assert math.isinf(compare_paired([0.9], [0.1]).detectable)


def test_constant_arms_have_intervals_of_no_width() -> None:
    assert compare_unpaired([0.5, 0.5], [0.4, 0.4]).verdict == "win"
    assert compare_paired([0.5, 0.5], [0.5, 0.5]).verdict == "no difference inside the noise"


def test_arms_that_do_not_match_are_refused() -> None:
    with pytest.raises(MetricError, match="one has 2 values and the other 1"):
        compare_paired([0.1, 0.2], [0.1])
    with pytest.raises(MetricError, match="at least one seed"):
        interval([])
    with pytest.raises(MetricError, match="value 1 of an arm is nan"):
        interval([0.1, math.nan])


def test_the_worst_class_is_that_with_the_least_accuracy_and_absent_classes_do_not_count() -> None:
    predicted, labels = np.array([0, 0, 1, 1, 3]), np.array([0, 0, 0, 1, 1])
    assert class_accuracies(predicted, labels, classes=4)[:2] == pytest.approx([2 / 3, 1 / 2])
    assert worst_class(predicted, labels, classes=4) == 0.5
    with pytest.raises(MetricError, match="no test row"):
        worst_class(predicted[:0], labels[:0], classes=4)
