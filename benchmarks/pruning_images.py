"""Accuracy of a small ResNet on pruned CIFAR-10 or Fashion-MNIST, at equal steps and batch, for a GPU host.

    pictures -> speed -> tune -> settle   recipes for random rows alone, on validation images
    pictures -> courses, vectors -> scores, cluster_courses -> choose -> settle   settings of our defaults, likewise
    scores, recipes, settings -> run -> merge   trainings on the test split, once; analyse: why they differ

Run: python -m benchmarks.pruning_images STAGE --work FOLDER [--file FILE.parquet] [--shard 0/2] ... Each stage reads
what the ones before left in the folder. `--shard i/n` takes every n-th training, so that n processes, one a GPU, share
a stage; each needs its own BENCHMARK_RESULTS below the folder, named results-*. A finished row is not measured again
by any of them. `ssl_encoder` writes vectors-simclr.npy, `vectors` those of a folder of weights. Validation images are a
tenth of the training split, and no choice sees the test split.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import image_scores, image_scoring, image_tables
from benchmarks.image_plans import (
    ATTEMPTS,
    BY_VECTORS,
    FRACTIONS,
    METHODS,
    OURS,
    candidates,
    choice_seeds,
    chosen,
    setting_of,
)
from benchmarks.image_scoring import MAIN
from benchmarks.image_trainings import (
    Task,
    frozen,
    measure,
    name_of,
    opened,
    parts_of,
    recipe_of,
    trainer_of,
)
from datapipe.proof.images import ImageRecipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from datapipe.storage.arrays import Int64

RAW_SIDE = 28
RATES = (0.3, 0.6, 1.2)
VIEWS = ((2, 0), (2, 8), (4, 12))
"""Greatest shift of the crop and side of the blanked square that are tried."""
LENGTHS = ((500, 512), (3000, 512), (3000, 256))
"""Steps and rows of a batch that are tried beside those of the recipe, for the record."""
EARLY = ((0.05, 0.1), (0.3, 0.5), (0.2, 0.7, 0.9))
"""Fractions in the order in which they are measured: the table is useful before it is whole."""
SPEED_STEPS = 200


def main() -> None:
    """Do one stage, as far as the time allows."""
    parser = argparse.ArgumentParser(description=__doc__)
    stages = {each.__name__: each for each in _STAGES}
    parser.add_argument("stage", choices=(*stages, "merge"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--rows", type=int, help="Training images, evenly taken; for a rehearsal.")
    parser.add_argument("--model", type=Path, help="Folder of a vision model, for `vectors`.")
    parser.add_argument("--encoder", default=MAIN)
    parser.add_argument(
        "--attempts", action="store_true", help="Have `choose` and `run` measure the further attempts instead."
    )
    parser.add_argument("--clusters", default="cluster", choices=image_scores.GROUPS, help="For `cluster_courses`.")
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--limit-seconds", type=float, default=550.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lanes", type=int, default=0, help="0 takes what `speed` found.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fractions", default=",".join(map(str, FRACTIONS)))
    parser.add_argument("--lengths", action="store_true", help="Have `tune` try other lengths too, for the record.")
    parser.add_argument("--steps", type=int, default=0, help="0 takes as many as `speed` found time for.")
    for name in ("batch_rows", "width"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(ImageRecipe(), name))
    options = parser.parse_args()
    options.deadline = time.perf_counter() + options.limit_seconds
    options.fractions = [float(each) for each in options.fractions.split(",")]
    options.work.mkdir(parents=True, exist_ok=True)
    if options.stage == "merge":
        image_tables.merge(options.work, main_encoder=MAIN)
        return
    started = time.perf_counter()
    stages[options.stage](options)
    print(f"{options.stage} {options.encoder} {options.shard}: {time.perf_counter() - started:.1f} s", flush=True)


def pictures(options: argparse.Namespace) -> None:
    """Decode the images once."""
    images, labels, held = load(options.file)
    if options.rows is not None:
        some = [np.flatnonzero(held == side) for side in (False, True)]
        some = [rows[:: max(1, len(rows) // count)] for rows, count in zip(some, (options.rows, 500), strict=True)]
        kept = np.concatenate(some)
        images, labels, held = images[kept], labels[kept], held[kept]
    for name, array in (("images", images), ("labels", labels), ("held", held)):
        np.save(options.work / f"{name}.npy", array)
    (options.work / "name").write_text(options.file.stem, encoding="utf-8")


def load(file: Path) -> tuple[NDArray[np.uint8], Int64, NDArray[np.bool_]]:
    """Images uint8 (rows, side, side, channels), labels, and which rows are of the test split."""
    import pyarrow.parquet as pq

    from datapipe.proof.pictures import decode_images

    rows = pq.read_table(file, columns=["split", "label", "image"])
    encoded = rows["image"].to_pylist()
    raw = all(len(each) == RAW_SIDE * RAW_SIDE for each in encoded)
    images = (
        np.frombuffer(b"".join(encoded), np.uint8).reshape(-1, RAW_SIDE, RAW_SIDE, 1).copy()
        if raw
        else decode_images(encoded)
    )
    return images, rows["label"].to_numpy().astype(np.int64), np.array(rows["split"].to_pylist()) == "test"


def speed(options: argparse.Namespace) -> None:
    """Seconds of a training by lanes; the best goes to speed.json."""
    images, labels, held = opened(options)
    train = np.flatnonzero(~held)
    found: dict[int, float] = {}
    for lanes in (1, 2, 3):
        if time.perf_counter() > options.deadline:
            continue
        data = (images, labels, train, np.flatnonzero(held))
        recipe = replace(recipe_of(options), steps=options.steps or SPEED_STEPS)
        trainer = trainer_of(options, data, recipe, lanes=lanes)
        arms = [np.arange(len(train))] * lanes
        try:
            trainer.train_many(arms, range(lanes))
            started = time.perf_counter()
            trainer.train_many(arms, range(lanes))
        except Exception as error:  # noqa: BLE001 - a way that fails here is one not taken
            print(f"lanes {lanes}: {type(error).__name__}: {error}"[:600], flush=True)
            continue
        found[lanes] = (time.perf_counter() - started) / lanes / recipe.steps
        print(f"lanes {lanes}: {1000 * found[lanes]:.3f} ms a step", flush=True)
    best = min(found, key=lambda lanes: found[lanes])
    told = {"lanes": best, "seconds_a_step": found[best], "tried": found}
    (options.work / "speed.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


def tune(options: argparse.Namespace) -> None:
    """Try recipes for random rows alone, on the validation images."""
    images, labels, held = opened(options)
    part, validation = parts_of(held)
    base = recipe_of(options)
    recipes = [replace(base, shift=shift, cutout=cutout) for shift, cutout in VIEWS]
    if options.lengths:
        recipes += [replace(base, steps=steps, batch_rows=rows) for steps, rows in LENGTHS]
    for recipe in recipes:
        rates = RATES if (recipe.steps, recipe.batch_rows) == (base.steps, base.batch_rows) else (0.6,)
        tasks = []
        for fraction in (*options.fractions, 1.0):
            rows = _shuffled(len(part), 0)[: round(fraction * len(part))]
            for rate in rates:
                tried = {**asdict(recipe), "learning_rate": rate}
                config = {"dataset": name_of(options), "fraction": fraction, "recipe": tried, "seed": 0}
                tasks.append(Task(config, partial(np.sort, rows)))
        measure("pruning_images_tuning", tasks, recipe, options, (images, labels, part, validation))


def choose(options: argparse.Namespace) -> None:
    """Measure the candidates of our defaults on the validation images."""
    images, labels, held = opened(options)
    part, validation = parts_of(held)
    found, groups, _ = image_scores.read(options.work / "scores" / "part", options.encoder)
    groups = {**groups, "label": labels[part].astype(np.int32)}
    for fraction in _in_order(options.fractions):
        recipe, tasks = frozen(options, fraction), []
        for choice in (ATTEMPTS if options.attempts else OURS).values():
            for name, setting in candidates(fraction, choice).items():
                if not setting.reads <= {*found, *groups}:
                    continue
                for seed in range(choice_seeds(fraction)):
                    config = {
                        "dataset": name_of(options),
                        "encoder": options.encoder,
                        "fraction": fraction,
                        "choice": choice,
                        "candidate": name,
                        "seed": seed,
                        "setting": setting.as_dict(),
                        "recipe": asdict(recipe),
                    }
                    rows = partial(chosen, setting, found, groups, fraction=fraction, seed=seed)
                    tasks.append(Task(config, rows))
        measure("pruning_images_choice", tasks, recipe, options, (images, labels, part, validation))


def settle(options: argparse.Namespace) -> None:
    """Freeze the best recipe of each fraction, and then the best setting of our defaults."""
    recipe = recipe_of(options)
    tried = len(VIEWS) * len(RATES)
    image_tables.settle(options.work, steps=recipe.steps, batch_rows=recipe.batch_rows, tried=tried)


def run(options: argparse.Namespace) -> None:
    """Train on what each method keeps, and look at the test split."""
    images, labels, held = opened(options)
    train, test = np.flatnonzero(~held), np.flatnonzero(held)
    found, groups, seconds = image_scores.read(options.work / "scores" / "train", options.encoder)
    groups = {**groups, "label": labels[train].astype(np.int32)}
    ours = json.loads((options.work / "settings.json").read_text(encoding="utf-8"))
    methods: Sequence[str] = METHODS if options.encoder == MAIN else BY_VECTORS
    name, methods = ("pruning_images_attempts", tuple(ATTEMPTS)) if options.attempts else ("pruning_images", methods)
    for fraction in (*([1.0] if "random" in methods else []), *_in_order(options.fractions)):
        recipe, tasks = frozen(options, fraction), []
        for seed in range(options.seeds):
            for method in methods if fraction < 1 else ("full",):
                if (choice := (OURS | ATTEMPTS).get(method)) and str(fraction) not in ours.get(choice, {}):
                    continue
                setting = setting_of(method, fraction, ours) if fraction < 1 else None
                if setting is not None and not setting.reads <= {*found, *groups}:
                    continue
                config = {
                    "dataset": name_of(options),
                    "encoder": options.encoder,
                    "fraction": fraction,
                    "method": method,
                    "seed": seed,
                    "recipe": asdict(recipe),
                    "setting": setting.as_dict() if setting is not None else None,
                }
                cost = seconds.get(setting.score, 0.0) if setting is not None and method != "random" else 0.0
                rows = partial(np.arange, len(train))
                if setting is not None:
                    rows = partial(chosen, setting, found, groups, fraction=fraction, seed=seed)
                tasks.append(Task(config, rows, {"scoring_seconds": cost}))
        measure(name, tasks, recipe, options, (images, labels, train, test))


def _in_order(fractions: Iterable[float]) -> list[float]:
    wanted = list(fractions)
    return [each for group in EARLY for each in group if each in wanted]


def _shuffled(count: int, seed: int) -> Int64:
    return np.random.Generator(np.random.Philox(key=[seed, 2])).permutation(count)


_SCORING = ("courses", "vectors", "scores", "agree", "cluster_courses", "ranks", "analyse")
_STAGES = (pictures, speed, tune, *(getattr(image_scoring, name) for name in _SCORING), choose, settle, run)

if __name__ == "__main__":
    main()
