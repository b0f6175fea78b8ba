"""Divergence of two models' next tokens, against float64, and on a GPU against the host."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from datapipe.errors import MetricError
from datapipe.paser.divergence import LN_2, columns, rows_divergence, token_divergence

VOCABULARY, DIM = 3000, 24


@dataclass
class Linear:
    """A head that is one product."""

    weight: torch.Tensor
    chunk_rows: int = 50
    vocabulary: int = field(init=False)

    def __post_init__(self) -> None:
        self.vocabulary = len(self.weight)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return (states @ self.weight.T).float()


def some(rows: int = 130, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed))


def heads() -> tuple[Linear, Linear]:
    return Linear(some(VOCABULARY, 1)), Linear(some(VOCABULARY, 1) + 0.3 * some(VOCABULARY, 2))


def reference(one: np.ndarray, other: np.ndarray, targets: np.ndarray) -> np.ndarray:
    a, b = (each.astype(np.float64) for each in (one, other))
    a -= np.log(np.exp(a - a.max(1, keepdims=True)).sum(1, keepdims=True)) + a.max(1, keepdims=True)
    b -= np.log(np.exp(b - b.max(1, keepdims=True)).sum(1, keepdims=True)) + b.max(1, keepdims=True)
    p, q = np.exp(a), np.exp(b)
    middle = np.log((p + q) / 2)
    rows = np.arange(len(a))
    return np.stack(
        [
            (0.5 * p * (a - middle) + 0.5 * q * (b - middle)).sum(1),
            (p * (a - b)).sum(1),
            (q * (b - a)).sum(1),
            a.argmax(1) != b.argmax(1),
            -a[rows, targets],
            -b[rows, targets],
        ],
        axis=1,
    )


def test_every_number_agrees_with_float64() -> None:
    original, pruned = heads()
    states_o, states_p = some(), some() + 0.2 * some(seed=5)
    targets = torch.arange(130)
    found = token_divergence(original, pruned, states_o, states_p, targets)
    expected = reference(original.logits(states_o).numpy(), pruned.logits(states_p).numpy(), targets.numpy())
    for place, name in enumerate(columns()):
        np.testing.assert_allclose(getattr(found, name).numpy(), expected[:, place], atol=2e-5, rtol=2e-5)
    assert float(found.jsd.min()) > 0
    assert float(found.jsd.max()) < LN_2


def test_the_same_model_differs_by_nothing() -> None:
    original, _ = heads()
    found = token_divergence(original, original, some(), some(), torch.zeros(130, dtype=torch.int64))
    assert float(found.jsd.max()) < 1e-6
    assert float(found.kl_op.abs().max()) < 1e-6
    assert float(found.disagree.sum()) == 0


def test_models_that_exclude_each_other_reach_ln_2_and_no_more() -> None:
    one, other = torch.full((2, 9), -1e4), torch.full((2, 9), -1e4)
    one[:, 0], other[:, 1] = 0.0, 0.0
    found = rows_divergence(one, other, torch.tensor([0, 1]))
    assert found[:, 0].tolist() == pytest.approx([LN_2, LN_2])
    assert found[:, 3].tolist() == [1.0, 1.0]
    assert found.isfinite().all()


def test_no_tokens_give_no_numbers() -> None:
    original, pruned = heads()
    nothing = token_divergence(original, pruned, some(0), some(0), torch.zeros(0, dtype=torch.int64))
    assert nothing.jsd.shape == (0,)


def test_what_cannot_be_compared_is_refused_in_words() -> None:
    original, pruned = heads()
    targets = torch.zeros(130, dtype=torch.int64)
    with pytest.raises(MetricError, match="3,000 tokens and the pruned model 7"):
        token_divergence(original, Linear(some(7)), some(), some(), targets)
    with pytest.raises(MetricError, match="130 states of the original, 3 of"):
        token_divergence(original, pruned, some(), some(3), targets)
    broken = Linear(torch.full((VOCABULARY, DIM), float("nan")))
    with pytest.raises(MetricError, match="token 0 is not a finite number"):
        token_divergence(original, broken, some(), some(), targets)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("vocabulary", [7, 4096, 49_152, 128_256])
def test_the_kernel_agrees_with_float64(vocabulary: int) -> None:
    draws = torch.Generator("cuda").manual_seed(0)
    one = 3 * torch.randn(300, vocabulary, generator=draws, device="cuda")
    other = one + 0.5 * torch.randn(300, vocabulary, generator=draws, device="cuda")
    targets = torch.randint(0, vocabulary, (300,), generator=draws, device="cuda")
    found = rows_divergence(one, other, targets).cpu().numpy()
    expected = reference(one.cpu().numpy(), other.cpu().numpy(), targets.cpu().numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert float(rows_divergence(one, one.clone(), targets)[:, 0].max()) < 1e-6
