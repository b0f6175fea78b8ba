"""Accuracy of a ResNet-9 on pruned CIFAR-10 or Fashion-MNIST, at equal steps and batch, for a GPU host.

    FILE.parquet -> uint8 images -> scores (el2n, dual, aum of one training; prototypes of vectors) -> rows by preset
                 -> trainings, seeds x fractions -> pruning_images.json

Run: python -m benchmarks.pruning_images FILE [--stage tune|run] [--vectors FILE.npy]. `tune` tries recipes for random
rows alone on a tenth of the training rows held out. A finished row is not measured again, so a long table comes of
several short calls. Vectors are float32 (all rows, dim) in the file's order; without them no prototypes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import finished, record, table
from datapipe.proof.images import ImageRecipe, ImageTrainer
from datapipe.proof.statistics import worst_class

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32, Int64

NAME, TUNING = "pruning_images", "pruning_images_tuning"
FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
PRESETS = {
    "random": ("random", "el2n"),
    "el2n": ("sorscher_hard", "el2n"),
    "ccs": ("ccs", "aum"),
    "dual": ("dual", "dual"),
    "prototypes_hard": ("sorscher_hard", "prototypes"),
    "prototypes_easy": ("sorscher_easy", "prototypes"),
    "default_label_free": ("default_label_free", "pseudo_label_aum"),
    "default_labels": ("default_labels", "aum"),
}
"""Method slug: preset of the selection engine, score that it reads."""
LABEL_FREE = ("random", "prototypes_hard", "prototypes_easy", "default_label_free")
"""Their strata never come from labels."""
ROUNDS = 30
RAW_SIDE = 28
TRIED = tuple((rate, steps) for steps in (500, 1000, 2000) for rate in (0.05, 0.1, 0.2, 0.4))


def main() -> None:
    """Measure what is missing until the time is up, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--stage", choices=("tune", "run"), default="run")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--pseudo-label-aum", type=Path, help="Scores of all rows, float32, in the file's order.")
    parser.add_argument("--limit-seconds", type=float, default=550.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fractions", default=",".join(map(str, FRACTIONS)))
    for name in ("steps", "batch_rows", "width", "learning_rate"):
        default = getattr(ImageRecipe(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = parser.parse_args()
    options.deadline = time.perf_counter() + options.limit_seconds
    options.fractions = [float(each) for each in options.fractions.split(",")]
    (tune if options.stage == "tune" else run)(options)


def tune(options: argparse.Namespace) -> None:
    """Try recipes for random rows alone, on a validation part of the training rows."""
    images, labels, held = load(options.file)
    train = np.random.Generator(np.random.Philox(7)).permutation(np.flatnonzero(~held))
    validation, train = train[: len(train) // 10], np.sort(train[len(train) // 10 :])
    for fraction in options.fractions:
        rows = train[_shuffled(len(train), 0)[: round(fraction * len(train))]]
        for rate, steps in TRIED:
            recipe = _recipe(options, learning_rate=rate, steps=steps)
            config = {"dataset": options.file.stem, "fraction": fraction, "recipe": asdict(recipe)}
            if finished(TUNING, config) or time.perf_counter() > options.deadline:
                continue
            trainer = ImageTrainer(images, labels, images[validation], classes=10, recipe=recipe, device=options.device)
            row = _measured(trainer, rows, labels[validation], seed=0)
            record(TUNING, {"learning_rate": rate, "steps": steps, **row}, config)
    print(table(TUNING, ["dataset", "fraction", "steps", "learning_rate", "accuracy", "seconds"]))


def run(options: argparse.Namespace) -> None:
    """Train on what each method keeps; the fraction and method with the fewest rows left come first."""
    images, labels, held = load(options.file)
    train, test = np.flatnonzero(~held), np.flatnonzero(held)
    recipe = _recipe(options)
    trainer = ImageTrainer(images[train], labels[train], images[test], classes=10, recipe=recipe, device=options.device)
    started = time.perf_counter()
    scores = course_scores(trainer, labels[train])
    if options.vectors is not None:
        scores["prototypes"] = prototype_scores(np.load(options.vectors)[train])
    if options.pseudo_label_aum is not None:
        scores["pseudo_label_aum"] = np.load(options.pseudo_label_aum)[train]
    scoring = time.perf_counter() - started
    methods = [method for method, (_, score) in PRESETS.items() if score in scores]
    wanted = [("full", 1.0), *((method, fraction) for fraction in options.fractions for method in methods)]
    for seed in range(options.seeds):
        for method, fraction in wanted:
            config = {
                "dataset": options.file.stem,
                "encoder": options.vectors.stem if options.vectors is not None else "none",
                "fraction": fraction,
                "method": method,
                "seed": seed,
                "recipe": asdict(recipe),
            }
            if finished(NAME, config) or time.perf_counter() > options.deadline:
                continue
            rows = chosen(method, scores, labels[train], fraction=fraction, seed=seed)
            row = _measured(trainer, rows, labels[test], seed=seed)
            record(NAME, {"rows": len(rows), "scoring_seconds": scoring, **row}, config)
    print(table(NAME, ["dataset", "encoder", "fraction", "method", "seed", "accuracy", "worst_class", "seconds"]))


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


def course_scores(trainer: ImageTrainer, labels: Int64) -> dict[str, Float32]:
    """el2n, aum and dual of one training on all rows, watched `ROUNDS` times; higher is harder."""
    from datapipe.metrics.dynamics import aum, dual, el2n

    at = np.arange(len(labels))
    probability, margin, error = ([] for _ in range(3))

    def watch(_: int, found: Float32) -> None:
        own = found[at, labels]
        others = found.copy()
        others[at, labels] = -1.0
        probability.append(own)
        margin.append(own - others.max(1))
        error.append(np.sqrt(np.maximum(0.0, np.square(found).sum(1) - 2 * own + 1)))

    trainer.train(at, seed=1000, watch=watch, rounds=ROUNDS)
    return {"el2n": el2n(np.stack(error)), "aum": aum(np.stack(margin)), "dual": dual(np.stack(probability))}


def prototype_scores(vectors: Float32, *, prototypes: int = 10) -> Float32:
    """One minus the cosine to the nearest of k spherical centroids (Sorscher et al. 2022), scikit-learn's k-means."""
    from sklearn.cluster import KMeans

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    centres = KMeans(prototypes, n_init=3, random_state=0).fit(unit).cluster_centers_
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    distance: Float32 = (1 - (unit @ centres.T).max(1)).astype(np.float32)
    return distance


def chosen(method: str, scores: dict[str, Float32], labels: Int64, *, fraction: float, seed: int) -> Int64:
    """Rows that a method keeps, by the selection engine; random draws anew with each seed, the others but for ties."""
    from datapipe.selection.budget import Budget
    from datapipe.selection.engine import select
    from datapipe.selection.plan import Plan
    from datapipe.selection.presets import get_preset
    from datapipe.selection.result import ScoreBatch

    if method == "full":
        return np.arange(len(labels))
    preset, score = PRESETS[method]
    plan = get_preset(preset).plan(fraction)
    if method in LABEL_FREE and plan.strata == "group":
        plan = Plan(order=plan.order, trim_hard=plan.trim_hard, trim_easy=plan.trim_easy, mix_random=plan.mix_random)
    ids = np.stack([np.zeros(len(labels), np.uint64), np.arange(len(labels), dtype=np.uint64)], 1)
    batch = ScoreBatch(ids=ids, scores=scores[score], groups=labels.astype(np.int32))
    groups = [str(each) for each in range(int(labels.max()) + 1)] if plan.strata == "group" else []
    budget = Budget(fraction=fraction)
    with (
        tempfile.TemporaryDirectory() as scratch,
        select(lambda: iter([batch]), plan, budget, seed=seed, scratch=Path(scratch), groups=groups) as found,
    ):
        kept = np.concatenate([part["kept"].to_numpy() for part in found])
    return np.flatnonzero(kept)


def _measured(trainer: ImageTrainer, rows: Int64, truth: Int64, *, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    predicted = trainer.train(rows, seed=seed)
    return {
        "accuracy": 100 * float((predicted == truth).mean()),
        "worst_class": 100 * worst_class(predicted, truth, classes=10),
        "seconds": time.perf_counter() - started,
    }


def _shuffled(count: int, seed: int) -> Int64:
    return np.random.Generator(np.random.Philox(key=[seed, 2])).permutation(count)


def _recipe(options: argparse.Namespace, **changed: Any) -> ImageRecipe:
    given = {name: getattr(options, name) for name in ("steps", "batch_rows", "width", "learning_rate")}
    return ImageRecipe(**{**given, **changed})


if __name__ == "__main__":
    main()
