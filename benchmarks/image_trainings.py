"""Trainings of the image benchmark: what a stage asks for, shared out over processes, each measured once.

Task(config, rows) -> those of this shard that no row tells of -> as many at once as there are lanes -> a row each
"""

from __future__ import annotations

import gc
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import image_tables
from benchmarks.common import outcome, record
from datapipe.proof.images import ImageRecipe, ImageTrainer
from datapipe.storage.digest import digest_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from datapipe.storage.arrays import Int64

CLASSES = 10
STEPS = (1000, 1500, 2000)
MOST_SECONDS = 2.5
"""A training may take so long at most, by which the steps of all are chosen among `STEPS`."""


@dataclass(frozen=True)
class Task:
    """A training to measure.

    Attributes:
        config: What decides it.
        rows: Gives the rows to learn from.
        told: What else its row says.
    """

    config: dict[str, Any]
    rows: Callable[[], Int64]
    told: dict[str, Any] = field(default_factory=dict)


def measure(
    name: str,
    tasks: Sequence[Task],
    recipe: ImageRecipe,
    options: argparse.Namespace,
    data: tuple[NDArray[np.uint8], Int64, Int64, Int64],
) -> None:
    """Train this shard's tasks that no row tells of; their rows count from the first of the training rows."""
    _, labels, _, test = data
    shard, shards = (int(each) for each in options.shard.split("/"))
    known = {row["digest"] for row in image_tables.rows_of(options.work, name)}
    tasks = [task for task in tasks[shard::shards] if digest_of(task.config) not in known]
    if not tasks or time.perf_counter() > options.deadline:
        return
    trainer = trainer_of(options, data, recipe)

    def train(some: Sequence[Task], arms: list[Int64]) -> Int64:
        rates = [task.config["recipe"]["learning_rate"] for task in some]
        return trainer.train_many(arms, [task.config["seed"] for task in some], rates=rates)

    in_lanes(name, tasks, train, options, labels[test])


def in_lanes(
    name: str,
    tasks: Sequence[Any],
    train: Callable[[Sequence[Any], list[Int64]], Int64],
    options: argparse.Namespace,
    truth: Int64,
) -> None:
    """Record what `train` predicts for as many tasks at once as there are lanes, until the deadline.

    Args:
        name: Of the benchmark.
        tasks: Each with `config`, `rows` and `told`.
        train: From tasks and their rows to the classes of the asked rows, int64 (tasks, asked).
        options: Deadline and lanes.
        truth: Of the asked rows, int64 (asked,).
    """
    lanes = fastest(options)
    with ThreadPoolExecutor(4) as pool:
        # Rows are chosen on the host while the device trains on those before.
        rows = [pool.submit(task.rows) for task in tasks]
        for start in range(0, len(tasks), lanes):
            some, arms = tasks[start : start + lanes], [each.result() for each in rows[start : start + lanes]]
            started = time.perf_counter()
            if started > options.deadline:
                pool.shutdown(cancel_futures=True)
                return
            predicted = train(some, arms)
            took = (time.perf_counter() - started) / len(some)
            for task, arm, own in zip(some, arms, predicted, strict=True):
                row = outcome(own, truth, classes=CLASSES, rows=len(arm), seconds=took)
                record(name, {**row, **task.told}, task.config)


_open: dict[str, ImageTrainer] = {}
"""Trainers in use: one of the same recipe, whatever its learning rate, need not be opened again."""
_MOST_OPEN = 3


def trainer_of(
    options: argparse.Namespace,
    data: tuple[NDArray[np.uint8], Int64, Int64, Int64],
    recipe: ImageRecipe,
    *,
    lanes: int | None = None,
) -> ImageTrainer:
    images, labels, train, test = data
    lanes = fastest(options) if lanes is None else lanes
    key = digest_of({"recipe": asdict(replace(recipe, learning_rate=1.0)), "rows": len(train), "lanes": lanes})
    if key not in _open:
        if len(_open) == _MOST_OPEN:
            del _open[next(iter(_open))]
            gc.collect()
        _open[key] = ImageTrainer(
            images[train],
            labels[train],
            images[test],
            classes=CLASSES,
            recipe=recipe,
            device=options.device,
            lanes=lanes,
        )
    return _open[key]


def opened(options: argparse.Namespace, *, images: bool = True) -> tuple[NDArray[np.uint8], Int64, NDArray[np.bool_]]:
    """Images, which may be left out, labels, and which rows are of the test split."""
    labels, held = (np.load(options.work / f"{name}.npy") for name in ("labels", "held"))
    return np.load(options.work / "images.npy") if images else np.zeros((0, 0, 0, 0), np.uint8), labels, held


def parts_of(held: NDArray[np.bool_]) -> tuple[Int64, Int64]:
    """Training rows without the validation rows, and those."""
    train = np.random.Generator(np.random.Philox(7)).permutation(np.flatnonzero(~held))
    count = len(train) // 10
    return np.sort(train[count:]), np.sort(train[:count])


def recipe_of(options: argparse.Namespace) -> ImageRecipe:
    recipe = ImageRecipe(steps=options.steps or _steps(options), batch_rows=options.batch_rows, width=options.width)
    # Clothes are shown upright, and as they were laid.
    return recipe if "mnist" not in name_of(options) else replace(recipe, cutout=6, flip=False)


def frozen(options: argparse.Namespace, fraction: float) -> ImageRecipe:
    """The recipe of a fraction, with the steps, batch and width of the command line."""
    path = options.work / "recipes.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return replace(recipe_of(options), **told.get(str(fraction), {}))


def _steps(options: argparse.Namespace) -> int:
    path = options.work / "speed.json"
    if not path.is_file():
        return STEPS[0]
    each = json.loads(path.read_text(encoding="utf-8"))["seconds_a_step"]
    return max((steps for steps in STEPS if steps * each <= MOST_SECONDS), default=STEPS[0])


def fastest(options: argparse.Namespace) -> int:
    path = options.work / "speed.json"
    if options.lanes or not path.is_file():
        return max(1, options.lanes)
    return int(json.loads(path.read_text(encoding="utf-8"))["lanes"])


def name_of(options: argparse.Namespace) -> str:
    told: str = (options.work / "name").read_text(encoding="utf-8")
    return told
