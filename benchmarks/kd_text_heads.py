"""Students and teachers of the text benchmark with frozen encoders: linear heads that also learn soft labels.

    vectors, labels, a teacher's log-probabilities, lanes (rows, seed, alpha, temperature) -> train_students -> answers

A student is the head of `datapipe.proof.heads`, step for step, but for its loss,

    (1 - a) CE(label, student) + a T^2 KL(teacher || student)

(Hinton et al. 2015, arXiv 1503.02531; so weighted by Ben-Baruch et al. 2024, arXiv 2403.07854): alpha 0 is that head.
A teacher is the mean of several heads with a hidden layer; what it says of a row comes from heads that did not learn
that row, unless `fit_included` is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.proof.heads import HeadRecipe
    from datapipe.proxies.heads import HeadConfig, HeadData
    from datapipe.storage.arrays import Float32, Int64

LANES_AT_ONCE = 5
FOLDS, TEACHER_HEADS = 5, 3


@dataclass(frozen=True, eq=False)
class Lane:
    """One student.

    Attributes:
        rows: Places of the rows that it learns from, int64.
        seed: Of the order of its batches.
        alpha: Weight of the soft labels, 0 ... 1.
        temperature: Of both distributions, > 0.
    """

    rows: Int64
    seed: int
    alpha: float = 0.0
    temperature: float = 1.0


def train_students(
    vectors: Float32,
    labels: Int64,
    soft: Float32,
    lanes: Sequence[Lane],
    test: Float32,
    *,
    recipe: HeadRecipe,
    threads: int | None = None,
) -> Int64:
    """Train a head for each lane and return what each predicts, int64 (lanes, test rows).

    Args:
        vectors: Float32 (rows, dim), of unit length.
        labels: int64 (rows,) in [0, classes).
        soft: The teacher's log-probabilities at temperature 1, float32 (rows, classes).
        lanes: The students.
        test: Float32 (test rows, dim).
        recipe: How; the same for all.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
    """
    from datapipe.proxies.heads import each_head

    found = np.empty((len(lanes), len(test)), np.int64)

    def work(group: int) -> None:
        part = slice(group * LANES_AT_ONCE, (group + 1) * LANES_AT_ONCE)
        found[part] = _train(vectors, labels, soft, lanes[part], test, recipe=recipe)

    each_head(work, -(-len(lanes) // LANES_AT_ONCE), device="cpu", threads=threads)
    return found


def _train(
    vectors: Float32, labels: Int64, soft: Float32, lanes: Sequence[Lane], test: Float32, *, recipe: HeadRecipe
) -> Int64:
    import torch

    from datapipe.proof.heads import batches
    from datapipe.proxies.adamw import AdamW

    drawn = np.stack(
        [batches(lane.rows, steps=recipe.steps, batch_rows=recipe.batch_rows, seed=lane.seed) for lane in lanes]
    )
    scale = float(vectors.shape[1]) ** 0.5
    all_vectors, all_labels, all_soft = (torch.from_numpy(np.ascontiguousarray(x)) for x in (vectors, labels, soft))
    alpha, temperature = (
        torch.tensor([getattr(lane, name) for lane in lanes], dtype=torch.float32)[:, None, None]
        for name in ("alpha", "temperature")
    )
    weights = torch.zeros(len(lanes), vectors.shape[1], soft.shape[1])
    biases = torch.zeros(len(lanes), 1, soft.shape[1])
    descent = AdamW([weights, biases], [recipe.weight_decay, 0.0])
    with torch.inference_mode():
        for step in range(recipe.steps):
            rows = torch.from_numpy(drawn[:, step])
            seen = all_vectors[rows] * scale
            logits = torch.baddbmm(biases, seen, weights)
            error = slope(logits, all_labels[rows], all_soft[rows], alpha=alpha, temperature=temperature)
            error /= recipe.batch_rows
            now = recipe.learning_rate / scale * (1.0 - step / recipe.steps)
            descent.move([seen.transpose(1, 2) @ error, error.sum(1, keepdim=True)], rate=now)
        wide = torch.from_numpy(np.ascontiguousarray(test)) * scale
        told = [torch.addmm(bias[0], wide, weight).argmax(1) for weight, bias in zip(weights, biases, strict=True)]
    predicted: Int64 = torch.stack(told).numpy()
    return predicted


def slope(
    logits: torch.Tensor, labels: torch.Tensor, soft: torch.Tensor, *, alpha: torch.Tensor, temperature: torch.Tensor
) -> torch.Tensor:
    """Gradient of each row's loss by its logits, (lanes, rows, classes): (1 - a) (p - y) + a T (p_T - q_T).

    Args:
        logits: Of the students, (lanes, rows, classes).
        labels: int64 (lanes, rows).
        soft: Log-probabilities of the teacher, (lanes, rows, classes).
        alpha: (lanes, 1, 1).
        temperature: (lanes, 1, 1).
    """
    import torch

    hard = logits.softmax(2)
    hard.scatter_add_(2, labels[:, :, None], torch.full_like(hard[:, :, :1], -1.0))
    kind = (logits / temperature).softmax(2) - (soft / temperature).softmax(2)
    return (1.0 - alpha) * hard + (alpha * temperature) * kind


def teach(
    vectors: Float32, labels: Int64, *, classes: int, fit_included: bool = False, heads: int = TEACHER_HEADS
) -> Float32:
    """What a teacher says of the rows, log-probabilities, float32 (rows, classes).

    Args:
        vectors: Float32 (rows, dim), of unit length.
        labels: int64 (rows,) in [0, classes).
        classes: Their number.
        fit_included: Whether the heads that speak of a row have learnt it; else each of `FOLDS` parts is told of by
            heads that learnt the others.
        heads: That speak together.
    """
    count = len(labels)
    total = np.zeros((count, classes))
    folds = (
        np.zeros(count, np.int64)
        if fit_included
        else np.random.Generator(np.random.Philox(7)).integers(FOLDS, size=count)
    )
    for fold in range(1 if fit_included else FOLDS):
        told = np.flatnonzero(folds == fold)
        learnt = np.arange(count) if fit_included else np.flatnonzero(folds != fold)
        total[told] = _told(vectors, labels, learnt, told, classes, heads)
    return total.astype(np.float32)


def teacher_accuracy(vectors: Float32, labels: Int64, test: Float32, truth: Int64, *, classes: int) -> float:
    """Percent of the test rows that a teacher which learnt all rows gets right."""
    together = np.concatenate([vectors, test])
    padded = np.concatenate([labels, np.zeros(len(test), np.int64)])
    told = _told(
        together, padded, np.arange(len(labels)), np.arange(len(labels), len(together)), classes, TEACHER_HEADS
    )
    return 100 * float((told.argmax(1) == truth).mean())


def _told(vectors: Float32, labels: Int64, learnt: Int64, told: Int64, classes: int, heads: int) -> Float32:
    """Log of the heads' geometric mean, made to sum to one, float32 (told rows, classes)."""
    import torch

    from datapipe.proxies.heads import HeadData, each_head, train_head

    codes = (np.ascontiguousarray(vectors).view(np.uint32) >> 16).astype(np.uint16)
    data = HeadData(codes, labels.astype(np.int32), learnt.astype(np.int64), classes)
    found: dict[int, torch.Tensor] = {}

    def work(seed: int) -> None:
        head = train_head(data, teacher_config(data), seed=100 + seed, watch=None)
        with torch.inference_mode():
            seen = head.features(data.vectors(told, torch.device("cpu")))
            found[seed] = head.probabilities(seen).clamp_(min=1e-12).log_()

    each_head(work, heads, device="cpu", threads=None)
    mean = sum(found[seed].double() for seed in range(heads)) / heads
    spoken: Float32 = torch.as_tensor(mean).log_softmax(1).float().numpy()
    return spoken


def teacher_config(data: HeadData) -> HeadConfig:
    """How the heads of a teacher learn."""
    from datapipe.proxies.heads import HeadConfig
    from datapipe.proxies.training import default_batch

    return HeadConfig(batch_rows=default_batch(len(data.trained)))
