"""Distillation on pruned CIFAR-10 or Fashion-MNIST: random rows and a teacher against chosen rows, for a GPU host.

    prototypes                                       of vectors, where `pruning_images scores` was not run
    teachers --group choice -> trials -> settle      kind of teacher and temperature, on validation images
    -> alphas -> settle                              the weight of the teacher by fraction, likewise, to kd_alpha.json
    -> teachers --group test -> plain, table         methods with and without a teacher on the test split, once
    -> teachers --group sizes, noise -> sizes, noise larger and smaller teachers; wrong labels
    -> merge                                         rows, means, verdicts to benchmarks/results

Run: python -m benchmarks.kd_images STAGE ... --work FOLDER [--shard 0/2] ... The folder is one of `pruning_images`,
whose pictures, scores and recipes it reads; a fraction without a recipe is left out. `--shard i/n` takes every n-th
training, so that n processes, one a GPU, share a stage; each needs its own BENCHMARK_RESULTS below the folder, named
results-*. A finished row is not measured again. Soft labels are those of one clean pass over the training rows.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import image_scores, kd_tables
from benchmarks.image_plans import chosen, setting_of
from benchmarks.image_trainings import CLASSES, frozen, name_of
from benchmarks.kd_plans import (
    ALPHAS,
    FRACTIONS,
    KINDS,
    METHODS,
    NOISES,
    NOISY_FRACTIONS,
    NOISY_METHODS,
    SIZED_FRACTIONS,
    SWEEP_SEEDS,
    TEMPERATURES,
    TRIED_ALPHA,
    TRIED_FRACTIONS,
    Student,
    Teacher,
    noisy,
)
from benchmarks.kd_tables import settled_teacher, weights_of
from benchmarks.kd_trainings import Task, data_of, heard, known, measure, scores_of, taught, teach
from datapipe.proof.images import ImageRecipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from datapipe.storage.arrays import Float32, Int32

ENCODER = "simclr"
TRIED_SEEDS = {0.1: 2, 0.5: 1}


def main() -> None:
    """Do stages one after the other, as far as the time allows."""
    parser = argparse.ArgumentParser(description=__doc__)
    stages = {each.__name__: each for each in _STAGES}
    parser.add_argument("stages", nargs="+", choices=tuple(stages))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--group", choices=("choice", "test", "sizes", "noise"), default="choice")
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--limit-seconds", type=float, default=550.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lanes", type=int, default=0, help="0 takes what `pruning_images speed` found.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fractions", default=",".join(map(str, FRACTIONS)))
    parser.add_argument(
        "--steps", type=int, default=0, help="0 takes as many as `pruning_images speed` found time for."
    )
    for name in ("batch_rows", "width"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(ImageRecipe(), name))
    options = parser.parse_args()
    options.deadline = time.perf_counter() + options.limit_seconds
    options.fractions = [float(each) for each in options.fractions.split(",")]
    for stage in options.stages:
        started = time.perf_counter()
        stages[stage](options)
        print(f"{stage} {options.shard}: {time.perf_counter() - started:.1f} s", flush=True)


def prototypes(options: argparse.Namespace) -> None:
    """Distance of each training row's vector to the nearest of as many prototypes as there are classes."""
    folder = options.work / "scores" / "train"
    if (folder / f"{ENCODER}.prototypes.npy").is_file():
        return
    from datapipe.metrics.assign import Assigner
    from datapipe.metrics.kmeans import spherical_kmeans

    started = time.perf_counter()
    _, _, train, _ = data_of(options, "train")
    vectors = np.load(options.work / f"vectors-{ENCODER}.npy")[train]
    with Assigner(spherical_kmeans(vectors, k=CLASSES, seed=0)) as assigner:
        found = {"prototypes": (1 - assigner.assign(vectors)[0]).astype(np.float32)}
    image_scores.save(folder, found, {"prototypes": time.perf_counter() - started}, prefix=f"{ENCODER}.")


def teachers(options: argparse.Namespace) -> None:
    """Train this shard's teachers of a group and store what they say."""
    width = options.width
    if options.group == "choice":
        wanted = [Teacher(side="part", kind=kind, width=width) for kind in KINDS]
    else:
        kind = settled_teacher(options.work)["kind"]
        test = partial(Teacher, side="train", kind=kind)
        groups = {
            "test": [test(width=width), Teacher(side="part", kind=kind, width=width)],
            "sizes": [test(width=2 * width), test(width=width // 2)],
            "noise": [test(width=width, noise=noise) for noise in NOISES],
        }
        wanted = groups[options.group]
    shard, shards = (int(each) for each in options.shard.split("/"))
    for teacher in wanted[shard::shards]:
        teach(teacher, options)


def trials(options: argparse.Namespace) -> None:
    """Compare kinds of teachers and temperatures for random rows, on the validation images."""
    data, tasks = data_of(options, "part"), []
    for fraction, recipe in _recipes(options, [each for each in TRIED_FRACTIONS if each in options.fractions]):
        for kind in KINDS:
            said = heard(Teacher(side="part", kind=kind, width=options.width), options)
            for temperature in TEMPERATURES:
                for seed in range(TRIED_SEEDS[fraction]):
                    student = _student(options, fraction, "random", seed, recipe)
                    tasks.append(taught(student, said, TRIED_ALPHA, temperature, _rows(data, student)))
    measure("kd_images_trials", known(tasks), options, data)


def alphas(options: argparse.Namespace) -> None:
    """Sweep the weight of the teacher for random rows, on the validation images."""
    data, tasks = data_of(options, "part"), []
    settled = settled_teacher(options.work)
    said = heard(Teacher(side="part", kind=settled["kind"], width=options.width), options)
    for fraction, recipe in _recipes(options, [*options.fractions, 1.0]):
        for seed in range(SWEEP_SEEDS):
            for alpha in ALPHAS:
                student = _student(options, fraction, "random" if fraction < 1 else "full", seed, recipe)
                rows = _rows(data, student)
                tasks.append(taught(student, said, alpha, settled["temperature"], rows))
    measure("kd_images_alpha", known(tasks), options, data)


def settle(options: argparse.Namespace) -> None:
    """Freeze the kind of teacher and the temperature, and then the weight of each fraction that was swept."""
    kd_tables.settle(options.work, classes=CLASSES)


def plain(options: argparse.Namespace) -> None:
    """Methods without a teacher, where `pruning_images` has not measured them; rows and digests are its own."""
    data = data_of(options, "train")
    scores, groups, seconds = _read(options, data)
    tasks = []
    for student in _students(options, {*scores, *groups}):
        cost = seconds.get(student.setting["score"], 0.0) if student.setting and student.method != "random" else 0.0
        rows = _rows(data, student, scores, groups)
        tasks.append(Task(student.config(), student.recipe, rows, told={"scoring_seconds": cost}))
    measure("pruning_images", tasks, options, data)


def table(options: argparse.Namespace) -> None:
    """Methods with a teacher at the recommended weight, on the test split."""
    data = data_of(options, "train")
    scores, groups, _ = _read(options, data)
    settled, tasks = settled_teacher(options.work), []
    said = heard(Teacher(side="train", kind=settled["kind"], width=options.width), options)
    weights = weights_of(options.work, classes=CLASSES)
    for student in _students(options, {*scores, *groups}):
        if not (alpha := weights.get(student.fraction, 0.0)):
            continue  # Not swept, or best without a teacher, which `plain` measures.
        rows = _rows(data, student, scores, groups)
        tasks.append(taught(student, said, alpha, settled["temperature"], rows))
    measure("kd_images", known(tasks), options, data)


def sizes(options: argparse.Namespace) -> None:
    """Random rows with a teacher twice and half as wide as the student, at the weight of the main teacher."""
    data, settled, tasks = data_of(options, "train"), settled_teacher(options.work), []
    weights = weights_of(options.work, classes=CLASSES)
    for fraction, recipe in _recipes(options, [each for each in SIZED_FRACTIONS if each in weights]):
        for width in (2 * options.width, options.width // 2):
            said = heard(Teacher(side="train", kind=settled["kind"], width=width), options)
            for seed in range(options.seeds):
                student = _student(options, fraction, "random", seed, recipe)
                rows = _rows(data, student)
                tasks.append(taught(student, said, weights[fraction], settled["temperature"], rows))
    measure("kd_images", known(tasks), options, data)


def noise(options: argparse.Namespace) -> None:
    """Random rows against the hardest by EL2N where labels are wrong, with and without a teacher that learnt from them.

    Random rows also get a teacher that learnt from the right labels.
    """
    data, settled = data_of(options, "train"), settled_teacher(options.work)
    tasks: list[Task | None] = []
    own = {wrong: noisy(data[1][data[2]], wrong, classes=CLASSES) for wrong in NOISES}
    teacher = partial(Teacher, side="train", kind=settled["kind"], width=options.width)
    clean, misled = heard(teacher(), options), {wrong: heard(teacher(noise=wrong), options) for wrong in NOISES}
    found = _recipes(options, [each for each in NOISY_FRACTIONS if each in weights_of(options.work, classes=CLASSES)])
    cells = [(seed, wrong, each) for seed in range(options.seeds) for wrong in NOISES for each in found]
    # Whole seeds come first, so that a part of the table is a table.
    for seed, wrong, (fraction, recipe) in cells:
        if misled[wrong] is None:
            continue
        scores = {"el2n": np.load(scores_of(wrong, options) / "el2n.npy")}
        weight = weights_of(options.work, classes=CLASSES, noise=wrong)[fraction]
        for method in NOISY_METHODS:
            student = _student(options, fraction, method, seed, recipe, noise=wrong)
            rows = _rows(data, student, scores, {"label": own[wrong].astype(np.int32)})
            tasks.append(Task(student.config(), recipe, rows, labels=own[wrong]))
            heeded = (misled[wrong], clean) if method == "random" else (misled[wrong],)
            temperature = settled["temperature"]
            tasks += [taught(student, said, weight, temperature, rows, labels=own[wrong]) for said in heeded]
    measure("kd_images", known(tasks), options, data)


def merge(options: argparse.Namespace) -> None:
    """Write rows and tables to the results."""
    kd_tables.merge(options.work)


def _students(options: argparse.Namespace, there: set[str]) -> Iterator[Student]:
    """Of the table, without a teacher, in the order of their worth; not those whose scores or groups are not there."""
    for fraction, recipe in _recipes(options, [*options.fractions, 1.0]):
        for seed in range(options.seeds):
            for method in METHODS if fraction < 1 else ("full",):
                if fraction == 1 or setting_of(method, fraction, {}).reads <= there:
                    yield _student(options, fraction, method, seed, recipe)


def _student(
    options: argparse.Namespace, fraction: float, method: str, seed: int, recipe: ImageRecipe, **more: Any
) -> Student:
    return Student(
        dataset=name_of(options),
        encoder=ENCODER,
        fraction=fraction,
        method=method,
        seed=seed,
        recipe=recipe,
        setting=setting_of(method, fraction, {}).as_dict() if fraction < 1 else None,
        **more,
    )


def _rows(
    data: Any,
    student: Student,
    scores: Mapping[str, Float32] | None = None,
    groups: Mapping[str, Int32] | None = None,
) -> Any:
    """What gives the rows of a student; random ones need no scores."""
    count = len(data[2])
    if student.setting is None:
        return partial(np.arange, count)
    setting = setting_of(student.method, student.fraction, {})
    if scores is None:
        # The order is drawn, but the plan names a score and the classes.
        scores, groups = {setting.score: np.zeros(count, np.float32)}, {"label": data[1][data[2]].astype(np.int32)}
    return partial(chosen, setting, scores, groups or {}, fraction=student.fraction, seed=student.seed)


def _read(options: argparse.Namespace, data: Any) -> tuple[dict[str, Float32], dict[str, Int32], dict[str, float]]:
    scores, groups, seconds = image_scores.read(options.work / "scores" / "train", ENCODER)
    return scores, {**groups, "label": data[1][data[2]].astype(np.int32)}, seconds


def _recipes(options: argparse.Namespace, fractions: list[float]) -> list[tuple[float, ImageRecipe]]:
    """Fractions whose recipe is frozen, with it."""
    path = options.work / "recipes.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if missing := [each for each in fractions if str(each) not in told]:
        print(f"no recipe is frozen for {missing}: run `pruning_images` tune and settle", flush=True)
    return [(each, frozen(options, each)) for each in fractions if str(each) in told]


_STAGES = (prototypes, teachers, trials, alphas, settle, plain, table, sizes, noise, merge)

if __name__ == "__main__":
    main()
