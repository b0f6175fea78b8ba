"""Metrics of dynamics against plain float64 references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import MetricError
from datapipe.metrics.dynamics import aum, dual, early_epoch, el2n, fill_gaps, forgetting, metrics_of
from datapipe.metrics.errors_of_heads import last_layer_gradient, predicted
from datapipe.metrics.memorization import halves_of, memorization


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_predictions_are_reduced_as_the_definitions_say(seed: int, classes: int) -> None:
    draws = np.random.default_rng(seed)
    p, y = softmax(draws.normal(0, 4, (20, classes))), draws.integers(classes, size=20)
    found = predicted(torch.from_numpy(p), torch.from_numpy(y))
    for row in range(20):
        rest = np.delete(p[row], y[row])
        top = np.sort(p[row])
        assert float(found.probability[row]) == pytest.approx(p[row, y[row]])
        assert float(found.margin[row]) == pytest.approx(p[row, y[row]] - rest.max())
        assert float(found.error[row]) == pytest.approx(np.linalg.norm(p[row] - np.eye(classes)[y[row]]))
        assert float(found.gap[row]) == pytest.approx(top[-1] - top[-2])
        assert float(found.entropy[row]) == pytest.approx(-(p[row] * np.log(p[row])).sum())


def test_grand_is_the_length_of_the_gradient_that_autograd_finds() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 4, dtype=torch.float64)
    features, labels = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    found = last_layer_gradient(predicted(layer(features).softmax(1), labels).error, features).detach()
    for row in range(5):
        layer.zero_grad()
        torch.nn.functional.cross_entropy(layer(features[row : row + 1]), labels[row : row + 1]).backward()
        length = torch.cat([each.grad.flatten() for each in layer.parameters() if each.grad is not None]).norm()
        assert float(found[row]) == pytest.approx(float(length))


def test_el2n_is_read_at_a_quarter_of_the_epochs() -> None:
    assert [early_epoch(n) for n in (1, 4, 5, 20, 30)] == [0, 0, 1, 4, 7]
    assert el2n(np.array([[0.5], [0.25], [0.125]] * 7))[0] == 0.125


def test_forgetting_counts_falls_and_puts_what_was_never_right_last() -> None:
    margins = np.array([[1, -1, 1, -1, np.nan], [-1, -1, 1, 1, np.nan], [1, -1, 1, -1, np.nan]]).astype(np.float16)
    assert forgetting(margins)[:4].tolist() == [1.0, 4.0, 0.0, 1.0]
    assert math.isnan(forgetting(margins)[4])


@given(st.integers(0, 2**32 - 1), st.integers(2, 25))
def test_aum_and_dual_are_what_a_plain_loop_gives(seed: int, epochs: int) -> None:
    p = np.random.default_rng(seed).random((epochs, 3))
    size = min(10, epochs)
    course = {"probability": p, "margin": p, "error": p, "gap": p[-1], "entropy": p[-1]}
    for row in range(3):
        windows = [p[i : i + size, row] for i in range(epochs - size + 1)]
        expected = np.mean([np.std(w, ddof=1) * (1 - np.mean(w)) for w in windows])
        assert dual(p)[row] == pytest.approx(expected, abs=1e-6)
        assert aum(p)[row] == pytest.approx(-p[:, row].mean(), abs=1e-6)
        assert metrics_of(course)["mean_probability"][row] == pytest.approx(p[:, row].mean(), abs=1e-6)
    assert np.array_equal(dual(p)[1:2], dual(p[:, 1:2]))


def test_dual_needs_two_epochs() -> None:
    with pytest.raises(MetricError, match="dual needs at least 2 epochs of dynamics, there is 1"):
        dual(np.ones((1, 3)))


def test_a_missed_epoch_repeats_the_one_before() -> None:
    course = np.array([[np.nan, 1.0, np.nan], [2.0, np.nan, np.nan], [np.nan, 3.0, np.nan]])
    assert fill_gaps(course)[:, :2].tolist() == [[2.0, 1.0], [2.0, 1.0], [2.0, 3.0]]
    assert np.isnan(fill_gaps(course)[:, 2]).all()


def test_memorization_is_the_difference_of_two_means() -> None:
    probability = np.array([[0.9, 0.2], [0.1, 0.4], [0.7, 0.6]], np.float32)
    inside = np.array([[True, False], [False, True], [True, False]])
    assert memorization(probability, inside) == pytest.approx([0.8 - 0.1, 0.4 - 0.4], abs=1e-6)
    with pytest.raises(MetricError, match="row 1 was in 0 of 2 subsets"):
        memorization(probability[:2], np.array([[True, False], [False, False]]))


def test_halves_hang_on_the_row_and_not_on_its_neighbours() -> None:
    ids = np.random.default_rng(0).integers(0, 2**63, (400, 2)).astype(np.uint64)
    halves = halves_of(ids, pairs=3, seed=4)
    assert np.array_equal(halves[:, 100:], halves_of(ids[100:], pairs=3, seed=4))
    assert 0.4 < halves.mean() < 0.6
