"""Linear heads on frozen vectors, many at once: one a seed and arm, all with the same steps and batch size.

    vectors, labels, rows of each arm -> batches drawn per head -> (heads, dim, classes) by AdamW -> test predictions

Heads share each matrix product, so ten cost little more than one. On one kind of device, with one thread, the bits
depend on the arguments alone. Raises `MetricError` for arms from which nothing can be learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Float32, Int64

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True, kw_only=True)
class HeadRecipe:
    """How a head learns; the same for every arm.

    Attributes:
        steps: Updates, >= 1, whatever the number of rows.
        batch_rows: Rows of an update, drawn in a fresh order each pass over the arm's rows.
        learning_rate: Of AdamW at the start; falls to zero in a straight line.
        weight_decay: Decoupled, of the weights and not of the biases.
        heads_at_once: Bounds memory: so many (dim, classes) matrices are trained together.
    """

    steps: int = 1000
    batch_rows: int = 128
    learning_rate: float = 0.05
    weight_decay: float = 0.01
    heads_at_once: int = 16


def train_heads(
    vectors: Float32,
    labels: Int64,
    arms: Sequence[Int64],
    seeds: Sequence[int],
    test: Float32,
    *,
    classes: int,
    recipe: HeadRecipe,
    device: str = "cpu",
) -> Int64:
    """Train a head for each arm with the seed beside it, and return what each predicts, int64 (arms, test rows).

    Args:
        vectors: Float32 (rows, dim), of unit length.
        labels: int64 (rows,) in [0, classes).
        arms: Rows to learn from, one array a head.
        seeds: Of the order of the batches, one a head.
        test: Float32 (test rows, dim).
        classes: Their number.
        recipe: How.
        device: Where.

    Raises:
        MetricError: An arm has fewer than two classes, or seeds and arms differ in number.
    """
    check_arms(labels, arms, seeds)
    found = [
        _train(
            vectors,
            labels,
            arms[at : at + recipe.heads_at_once],
            seeds[at : at + recipe.heads_at_once],
            test,
            classes=classes,
            recipe=recipe,
            device=device,
        )
        for at in range(0, len(arms), recipe.heads_at_once)
    ]
    return np.concatenate(found)


def check_arms(labels: Int64, arms: Sequence[Int64], seeds: Sequence[int]) -> None:
    """Refuse arms from which no classifier can be learnt. Raises `MetricError`."""
    if len(arms) != len(seeds):
        raise MetricError(f"each arm needs its seed, but there are {len(arms)} arms and {len(seeds)} seeds")
    for at, rows in enumerate(arms):
        present = len(np.unique(labels[rows]))
        if present < 2:  # noqa: PLR2004 - one class is predicted without looking
            raise MetricError(
                f"arm {at} has {len(rows)} rows of {present} classes; a classifier learns from at least two: keep more"
            )


def batches(rows: Int64, *, steps: int, batch_rows: int, seed: int) -> Int64:
    """Rows of each step, int64 (steps, batch_rows): fresh permutations of the arm, one after the other."""
    draws = np.random.Generator(np.random.Philox(seed))
    needed = steps * batch_rows
    passes = [draws.permutation(len(rows)) for _ in range(-(-needed // len(rows)))]
    drawn: Int64 = rows[np.concatenate(passes)[:needed]].reshape(steps, batch_rows)
    return drawn


def _train(
    vectors: Float32,
    labels: Int64,
    arms: Sequence[Int64],
    seeds: Sequence[int],
    test: Float32,
    *,
    classes: int,
    recipe: HeadRecipe,
    device: str,
) -> Int64:
    import torch

    place = torch.device(device)
    drawn = np.stack(
        [
            batches(rows, steps=recipe.steps, batch_rows=recipe.batch_rows, seed=seed)
            for rows, seed in zip(arms, seeds, strict=True)
        ]
    )
    # Unit vectors have entries of about 1 / sqrt(dim); scaled, one learning rate fits every width.
    scale = float(vectors.shape[1]) ** 0.5
    all_vectors = torch.from_numpy(np.ascontiguousarray(vectors)).to(place) * scale
    all_labels = torch.from_numpy(labels).to(place)
    weights = torch.zeros(len(arms), vectors.shape[1], classes, device=place)
    biases = torch.zeros(len(arms), 1, classes, device=place)
    rate = recipe.learning_rate / scale
    moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in (weights, biases)]
    # The gradient of a linear head is written out: autograd and torch.optim cost more than the arithmetic.
    with torch.inference_mode():
        for step in range(recipe.steps):
            rows = torch.from_numpy(drawn[:, step]).to(place)
            seen = all_vectors[rows]
            error = torch.baddbmm(biases, seen, weights).softmax(2)
            error.scatter_add_(2, all_labels[rows][:, :, None], torch.full_like(error[:, :, :1], -1.0))
            error /= recipe.batch_rows
            now = rate * (1.0 - step / recipe.steps)
            weights *= 1.0 - now * recipe.weight_decay
            slopes = (seen.transpose(1, 2) @ error, error.sum(1, keepdim=True))
            for value, slope, (mean, square) in zip((weights, biases), slopes, moments, strict=True):
                _adam(value, slope, mean, square, step=step + 1, rate=now)
    return _predict(torch.from_numpy(np.ascontiguousarray(test)).to(place) * scale, weights, biases)


def _predict(test: torch.Tensor, weights: torch.Tensor, biases: torch.Tensor) -> Int64:
    import torch

    with torch.inference_mode():
        found = [torch.addmm(bias[0], test, weight).argmax(1) for weight, bias in zip(weights, biases, strict=True)]
        predicted: Int64 = torch.stack(found).cpu().numpy()
    return predicted


def _adam(
    value: torch.Tensor, slope: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, *, step: int, rate: float
) -> None:
    mean.lerp_(slope, 1.0 - _BETAS[0])
    square.mul_(_BETAS[1]).addcmul_(slope, slope, value=1.0 - _BETAS[1])
    first, second = (1.0 - beta**step for beta in _BETAS)
    value.addcdiv_(mean, (square / second).sqrt_().add_(_EPSILON), value=-rate / first)
