"""The losses and their gradients against a float64 reference written sentence by sentence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from provence.training.loss import gold_score_loss, keep_loss, teacher_score_loss, unit_means


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def reference(logits: np.ndarray, unit: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss and its gradient to the logits, float64, one token at a time."""
    total, gradient = 0.0, np.zeros_like(logits)
    for place, wanted in enumerate(target):
        tokens = np.argwhere(unit == place)
        for row, column in tokens:
            p = sigmoid(logits[row, column])
            total += -(wanted * math.log(p) + (1 - wanted) * math.log(1 - p)) / len(tokens) / len(target)
            gradient[row, column] = (p - wanted) / len(tokens) / len(target)
    return total, gradient


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(2, 12), st.integers(1, 5))
def test_keep_loss_and_its_gradient_are_those_of_the_formula(seed: int, windows: int, tokens: int, units: int) -> None:
    rng = np.random.default_rng(seed)
    logits, target = rng.normal(size=(windows, tokens)) * 3, rng.random(units)
    unit = rng.integers(0, units + 1, size=(windows, tokens))
    held = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    found = keep_loss(held, torch.tensor(unit), torch.tensor(target, dtype=torch.float32))
    torch.autograd.backward(found)
    expected, gradient = reference(logits, unit, target)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert held.grad is not None
    assert np.allclose(held.grad.numpy(), gradient, rtol=1e-4, atol=1e-7)


def test_question_and_padding_have_no_gradient() -> None:
    logits = torch.zeros(1, 6, requires_grad=True)
    unit = torch.tensor([[1, 1, 0, 0, 1, 1]])
    torch.autograd.backward(keep_loss(logits, unit, torch.ones(1)))
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[False, False, True, True, False, False]]


def test_a_long_sentence_weighs_as_much_as_a_short_one() -> None:
    logits = torch.zeros(1, 10, requires_grad=True)
    unit = torch.tensor([[0] * 9 + [1]])
    torch.autograd.backward(keep_loss(logits, unit, torch.ones(2)))
    assert logits.grad is not None
    assert float(logits.grad[0, :9].sum()) == pytest.approx(float(logits.grad[0, 9]))


def test_a_unit_without_tokens_has_mean_zero() -> None:
    means = unit_means(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[0, 0, 2]]), 2)
    assert means.tolist() == [2.0, 0.0]


def test_score_losses_are_cross_entropy_and_squared_error() -> None:
    logits = torch.tensor([0.5, -2.0])
    expected = -(math.log(sigmoid(0.5)) + math.log(1 - sigmoid(-2.0))) / 2
    assert float(gold_score_loss(logits, torch.tensor([1.0, 0.0]))) == pytest.approx(expected)
    assert float(teacher_score_loss(logits, [1.5, -4.0])) == pytest.approx((1.0 + 4.0) / 2)
