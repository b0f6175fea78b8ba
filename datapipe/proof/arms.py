"""Kept, random and full: the same training on each choice of rows, and what the difference between them is.

    labels, which rows are kept, a trainer -> arms -> predictions, one a seed -> accuracies -> verdicts -> Proof

Every arm gets the same model, steps and batch. The random arm draws other rows with every seed. Knows no file and no
model: a trainer holds the rows and the test rows. Raises `MetricError` where nothing can be learnt.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from datapipe.errors import MetricError
from datapipe.proof.statistics import bootstrap, compare_paired, compare_unpaired, interval, worst_class
from datapipe.storage.digest import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.proof.statistics import Comparison, Interval
    from datapipe.storage.arrays import Bool, Int64

KEPT, RANDOM, FULL = "kept", "random", "full"
ARMS = (KEPT, RANDOM, FULL)


class Recipe(Protocol):
    """How every arm learns: a frozen dataclass with at least these."""

    @property
    def steps(self) -> int:
        """Updates."""

    @property
    def batch_rows(self) -> int:
        """Rows of an update."""


class Trainer(Protocol):
    """Rows, test rows, and one way to learn."""

    @property
    def recipe(self) -> Recipe:
        """How."""

    def train_many(self, labels: Int64, arms: Sequence[Int64], seeds: Sequence[int], *, classes: int) -> Int64:
        """Train once an arm, and return what is predicted of every test row, int64 (arms, test rows)."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one choice of rows led to.

    Attributes:
        name: kept, random or full.
        rows: Rows that it trains on.
        accuracies: One a seed, in [0, 1].
        worst_classes: Accuracy of the worst class, one a seed.
        accuracy: Mean accuracy with its t interval.
        resampled: The same by bootstrap.
        worst_class: Mean accuracy of the worst class with its t interval.
    """

    name: str
    rows: int
    accuracies: tuple[float, ...]
    worst_classes: tuple[float, ...]
    accuracy: Interval
    resampled: Interval
    worst_class: Interval


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The outcome.

    Attributes:
        arms: kept, random, full.
        against_random: Kept minus random, unpaired: their rows have nothing in common but the number.
        against_full: Kept minus full, paired by the seed of the batches.
        test_rows: Test rows.
        classes: Classes to learn.
        trainer: What is trained: the name of the trainer.
        recipe: How every arm learns.
        seconds: `scoring` (all stages up to the choice, as long as they took when they were made) and `training` of all
            arms and seeds together.
        warnings: What speaks against the outcome, in sentences.
    """

    arms: tuple[Arm, ...]
    against_random: Comparison
    against_full: Comparison
    test_rows: int
    classes: int
    trainer: str
    recipe: Recipe
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The outcome as plain values, for JSON."""
        whole: dict[str, Any] = _finite(plain(self))
        return whole


def compare(  # noqa: PLR0913 - the data; the rest by keyword
    labels: Sequence[str | None],
    trainer: Trainer,
    *,
    kept: Bool,
    pool: Bool,
    test_labels: Sequence[str | None],
    seeds: int,
    name: str = "head",
    scoring: float = 0.0,
    warnings: Sequence[str] = (),
) -> Proof:
    """Compare kept, random and full; `prove` without files.

    Args:
        labels: Class of each row; None for none, such rows are in no arm.
        trainer: Of these rows and test rows.
        kept: Which rows are kept.
        pool: Which rows could have been kept; the kept ones are among them.
        test_labels: Class of each test row.
        seeds: Trainings an arm.
        name: Of the trainer.
        scoring: Seconds that the choice of rows took.
        warnings: What is known to speak against the outcome.

    Raises:
        MetricError: An arm has fewer than two classes, or no test row has a class that the pool has.
    """
    names = sorted({label for label, inside in zip(labels, pool, strict=True) if inside and label is not None})
    place = {name: at for at, name in enumerate(names)}
    codes = np.array([place.get(label, -1) if label is not None else -1 for label in labels], np.int64)
    truth = np.array([place.get(label, -1) if label is not None else -1 for label in test_labels], np.int64)
    known = truth >= 0
    notes = list(warnings)
    if not known.any():
        raise MetricError(f"none of the {len(truth)} test rows has a class of the run; its classes begin {names[:3]}")
    if not known.all():
        notes.append(f"{int((~known).sum())} test rows have no class, or one that the run has not, and are left out.")
    if bool((pool & (codes < 0)).any()):
        notes.append(f"{int((pool & (codes < 0)).sum())} rows of the run have no label and are in no arm.")
    started = time.perf_counter()
    full = np.flatnonzero(pool & (codes >= 0))
    chosen = np.flatnonzero(kept & (codes >= 0))
    drawn = [_draw(full, len(chosen), seed) for seed in range(seeds)]
    arms = [*[chosen] * seeds, *drawn, *[full] * seeds]
    predicted = trainer.train_many(codes, arms, [*range(seeds)] * len(ARMS), classes=len(names))[:, known]
    training = time.perf_counter() - started
    made = tuple(
        _arm(arm, rows, predicted[at * seeds : (at + 1) * seeds], truth[known], len(names))
        for at, (arm, rows) in enumerate(zip(ARMS, (len(chosen), len(chosen), len(full)), strict=True))
    )
    return Proof(
        arms=made,
        against_random=compare_unpaired(made[0].accuracies, made[1].accuracies),
        against_full=compare_paired(made[0].accuracies, made[2].accuracies),
        test_rows=int(known.sum()),
        classes=len(names),
        trainer=name,
        recipe=trainer.recipe,
        seconds={"scoring": scoring, "training": training},
        warnings=tuple(notes),
    )


def _draw(full: Int64, count: int, seed: int) -> Int64:
    # Another key than that of the batches, so that choice and order of the rows are independent.
    draws = np.random.Generator(np.random.Philox(key=[seed, 1]))
    drawn: Int64 = np.sort(draws.choice(full, count, replace=False))
    return drawn


def _arm(name: str, rows: int, predicted: Int64, truth: Int64, classes: int) -> Arm:
    accuracies = tuple(float((each == truth).mean()) for each in predicted)
    worst = tuple(worst_class(each, truth, classes=classes) for each in predicted)
    return Arm(
        name=name,
        rows=rows,
        accuracies=accuracies,
        worst_classes=worst,
        accuracy=interval(accuracies),
        resampled=bootstrap(accuracies),
        worst_class=interval(worst),
    )


def _finite(value: Any) -> Any:
    """JSON has no infinity: such an end of an interval is null."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
