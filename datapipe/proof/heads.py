"""Linear heads on frozen vectors, many at once: one a seed and arm, all with the same steps and batch size.

    vectors, labels, rows of each arm -> batches drawn per head -> (heads, dim, classes) by AdamW -> test predictions

A few heads share each matrix product; one thread trains them, and threads share out the groups. So on one kind of
device the bits depend on the arguments alone. Raises `MetricError` for arms from which nothing can be learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError
from datapipe.proxies.adamw import AdamW
from datapipe.proxies.heads import each_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Float32, Int64


@dataclass(frozen=True, kw_only=True)
class HeadRecipe:
    """How a head learns; the same for every arm.

    Attributes:
        steps: Updates, >= 1, whatever the number of rows.
        batch_rows: Rows of an update, drawn in a fresh order each pass over the arm's rows.
        learning_rate: Of AdamW at the start; falls to zero in a straight line.
        weight_decay: Decoupled, of the weights and not of the biases.
        heads_at_once: So many (dim, classes) matrices are trained together, by one thread.
    """

    steps: int = 1000
    batch_rows: int = 128
    learning_rate: float = 0.05
    weight_decay: float = 0.01
    heads_at_once: int = 4


class HeadTrainer:
    """Vectors, those of the test rows, and heads of one recipe on parts of them.

    Args:
        vectors: Float32 (rows, dim), of unit length.
        test: Float32 (test rows, dim).
        recipe: How.
        device: Where.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
    """

    def __init__(
        self,
        vectors: Float32,
        test: Float32,
        *,
        recipe: HeadRecipe,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.recipe, self._vectors, self._test = recipe, vectors, test
        self._device, self._threads = device, threads

    def train_many(self, labels: Int64, arms: Sequence[Int64], seeds: Sequence[int], *, classes: int) -> Int64:
        """Train a head an arm; see `train_heads`."""
        return train_heads(
            self._vectors,
            labels,
            arms,
            seeds,
            self._test,
            classes=classes,
            recipe=self.recipe,
            device=self._device,
            threads=self._threads,
        )


def train_heads(  # noqa: PLR0913 - the data; the rest by keyword
    vectors: Float32,
    labels: Int64,
    arms: Sequence[Int64],
    seeds: Sequence[int],
    test: Float32,
    *,
    classes: int,
    recipe: HeadRecipe,
    device: str = "cpu",
    threads: int | None = None,
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
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.

    Raises:
        MetricError: An arm has fewer than two classes, or seeds and arms differ in number.
    """
    check_arms(labels, arms, seeds)
    found = np.empty((len(arms), len(test)), np.int64)

    def work(group: int) -> None:
        part = slice(group * recipe.heads_at_once, (group + 1) * recipe.heads_at_once)
        found[part] = _train(
            vectors, labels, arms[part], seeds[part], test, classes=classes, recipe=recipe, device=device
        )

    each_head(work, -(-len(arms) // recipe.heads_at_once), device=device, threads=threads)
    return found


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
    all_vectors = torch.from_numpy(np.ascontiguousarray(vectors)).to(place)
    all_labels = torch.from_numpy(labels).to(place)
    weights = torch.zeros(len(arms), vectors.shape[1], classes, device=place)
    biases = torch.zeros(len(arms), 1, classes, device=place)
    rate = recipe.learning_rate / scale
    descent = AdamW([weights, biases], [recipe.weight_decay, 0.0])
    with torch.inference_mode():
        for step in range(recipe.steps):
            rows = torch.from_numpy(drawn[:, step]).to(place)
            seen = all_vectors[rows] * scale
            error = torch.baddbmm(biases, seen, weights).softmax(2)
            error.scatter_add_(2, all_labels[rows][:, :, None], torch.full_like(error[:, :, :1], -1.0))
            error /= recipe.batch_rows
            now = rate * (1.0 - step / recipe.steps)
            descent.move([seen.transpose(1, 2) @ error, error.sum(1, keepdim=True)], rate=now)
    return _predict(torch.from_numpy(np.array(test, order="C")).to(place) * scale, weights, biases)


def _predict(test: torch.Tensor, weights: torch.Tensor, biases: torch.Tensor) -> Int64:
    import torch

    with torch.inference_mode():
        found = [torch.addmm(bias[0], test, weight).argmax(1) for weight, bias in zip(weights, biases, strict=True)]
        predicted: Int64 = torch.stack(found).cpu().numpy()
    return predicted
