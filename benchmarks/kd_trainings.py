"""Trainings of the benchmark of distillation on images: teachers' soft labels stored, students measured once each.

Teacher -> soft/SIDE/NAME.npy, float16 log-probabilities (rows, classes) -> SoftLabels -> Task -> a row each
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import image_scores, image_tables
from benchmarks.image_trainings import CLASSES, frozen, in_lanes, opened, parts_of, trainer_of
from benchmarks.kd_plans import Student, Teacher, noisy
from datapipe.proof.images import SoftLabels
from datapipe.storage.digest import digest_of, file_sha256

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from datapipe.proof.images import ImageRecipe, ImageTrainer
    from datapipe.storage.arrays import Float32, Int64

    Data = tuple[NDArray[np.uint8], Int64, Int64, Int64]
    """Images, labels, training rows and the rows that are predicted."""


@dataclass(frozen=True)
class Task:
    """A training to measure.

    Attributes:
        config: What decides it.
        recipe: How the network learns.
        rows: Gives the rows to learn from, counted from the first of the training rows.
        soft: What its teacher says, if it has one.
        labels: Of all training rows, in place of their own.
        told: What else its row says.
    """

    config: dict[str, Any]
    recipe: ImageRecipe
    rows: Callable[[], Int64]
    soft: SoftLabels | None = None
    labels: Int64 | None = None
    told: dict[str, Any] = field(default_factory=dict)


def taught(
    student: Student,
    said: tuple[Float32, str, str] | None,
    alpha: float,
    temperature: float,
    rows: Callable[[], Int64],
    *,
    labels: Int64 | None = None,
) -> Task | None:
    """A task with a teacher; None before the teacher is trained."""
    if said is None:
        return None
    targets, digest, name = said
    soft = SoftLabels(targets=targets, alpha=alpha, temperature=temperature)
    config = student.taught(alpha, temperature, name, digest)
    return Task(config, student.recipe, rows, soft=soft if alpha else None, labels=labels)


def known(tasks: list[Task | None]) -> list[Task]:
    found = [each for each in tasks if each is not None]
    if len(found) < len(tasks):
        print(f"{len(tasks) - len(found)} trainings wait for their teacher", flush=True)
    return found


def measure(name: str, tasks: Sequence[Task], options: argparse.Namespace, data: Data) -> None:
    """Train this shard's tasks that no row tells of, those of one recipe together, as far as the time allows."""
    shard, shards = (int(each) for each in options.shard.split("/"))
    done = {row["digest"] for row in image_tables.rows_of(options.work, name)}
    groups: dict[str, list[Task]] = {}
    for task in tasks[shard::shards]:
        if digest_of(task.config) not in done:
            # A trainer serves every learning rate.
            groups.setdefault(digest_of(asdict(replace(task.recipe, learning_rate=1.0))), []).append(task)
    for group in groups.values():
        if time.perf_counter() > options.deadline:
            return
        _measure(name, group, trainer_of(options, data, group[0].recipe), options, data)


def _measure(name: str, tasks: list[Task], trainer: ImageTrainer, options: argparse.Namespace, data: Data) -> None:
    _, labels, train, test = data

    def learnt(some: Sequence[Task], arms: list[Int64]) -> Int64:
        return trainer.train_many(
            arms,
            [task.config["seed"] for task in some],
            rates=[task.recipe.learning_rate for task in some],
            labels=[labels[train] if task.labels is None else task.labels for task in some],
            soft=[task.soft for task in some],
        )

    in_lanes(name, tasks, learnt, options, labels[test])


def data_of(options: argparse.Namespace, side: str) -> Data:
    """`part` predicts the validation rows, `train` the test rows."""
    images, labels, held = opened(options)
    train, asked = parts_of(held) if side == "part" else (np.flatnonzero(~held), np.flatnonzero(held))
    return images, labels, train, asked


def teach(teacher: Teacher, options: argparse.Namespace) -> None:
    """Train a teacher and store what it says of every training row, once; with noise, EL2N of the noisy labels too."""
    path = path_of(teacher, options)
    if path.is_file() or time.perf_counter() > options.deadline:
        return
    data = data_of(options, teacher.side)
    _, labels, train, asked = data
    learnt = noisy(labels[train], teacher.noise, classes=CLASSES)
    started = time.perf_counter()
    recipe = teacher.recipe(frozen(options, 1.0))
    trainer = trainer_of(options, data, recipe, lanes=1)
    predicted, said = trainer.teach(np.arange(len(train)), seed=teacher.seed, labels=learnt)
    told: dict[str, Any] = {
        "teacher": teacher.name,
        "side": teacher.side,
        "accuracy": 100 * float((predicted == labels[asked]).mean()),
        "agrees_with_labels": 100 * float((said.argmax(1) == learnt).mean()),
        "agrees_with_truth": 100 * float((said.argmax(1) == labels[train]).mean()),
        "seconds": time.perf_counter() - started,
        "recipe": asdict(recipe),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if teacher.noise:
        # One training, where clean scores are the mean of several.
        student = trainer_of(options, data, frozen(options, 1.0), lanes=1)
        found = image_scores.courses(student, learnt, trainings=1)
        image_scores.save(scores_of(teacher.noise, options), {"el2n": found["el2n"]}, {})
    path.with_suffix(".json").write_text(json.dumps(told) + "\n", encoding="utf-8")
    partial = path.with_suffix(".partial.npy")
    np.save(partial, said.astype(np.float16))
    partial.replace(path)
    print({key: value for key, value in told.items() if key != "recipe"}, flush=True)


def path_of(teacher: Teacher, options: argparse.Namespace) -> Path:
    work: Path = options.work
    return work / "soft" / teacher.side / f"{teacher.name}.npy"


def scores_of(noise: float, options: argparse.Namespace) -> Path:
    """Where scores of noisy labels lie."""
    work: Path = options.work
    return work / "scores" / f"noise{round(100 * noise)}"


def heard(teacher: Teacher, options: argparse.Namespace) -> tuple[Float32, str, str] | None:
    """What a teacher says, float32 (training rows, classes), its digest, and its name; None before it is trained."""
    path = path_of(teacher, options)
    return (*_read(path), teacher.name) if path.is_file() else None


@cache
def _read(path: Path) -> tuple[Float32, str]:
    return np.load(path).astype(np.float32), file_sha256(path)[:16]
