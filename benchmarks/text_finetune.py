"""Accuracy of a fine-tuned MiniLM on pruned text sets, at equal steps and batch, for a GPU host.

    plan (any host) -> FOLDER/SET.npz: texts, labels, rows kept by method, fraction and seed
    tune -> a learning rate for random rows alone, on validation rows -> run -> test rows, once -> merge -> tables

Run: python -m benchmarks.text_finetune STAGE --work FOLDER [--shard 0/2] ... `plan FILE.parquet ...` needs what
datapipe needs; the other stages torch, transformers, numpy and pyarrow. `--shard i/n` takes every n-th training, so
that n processes, one a GPU, share a stage; each needs its own BENCHMARK_RESULTS below the folder, named results-*. A
finished row is not measured again by any of them. Trainings of a set are stacked, so many at once. Let all processes
of a stage end before the next begins.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import common
from datapipe.proof.text import TextRecipe, TextTrainer
from datapipe.storage.digest import digest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from datapipe.storage.arrays import Int64

NAME = "text_finetune"
TUNING = f"{NAME}_tuning"
MODEL = "all-MiniLM-L6-v2"
FRACTIONS = (0.05, 0.1, 0.3, 0.5)
METHODS = ("random", "prototypes_hard", "el2n", "ccs", "default_labels")
SEEDS = 5
RATES = (1e-4, 2e-4, 4e-4, 8e-4)
TUNED_AT = (0.1, 1.0)
HEAD_TIMES = 10.0
"""Times the encoder's learning rate at which the head learns."""
VALIDATION = 5
"""One in so many training rows is for validation, where the learning rate is chosen."""


def main() -> None:
    """Do one stage, as far as the time allows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("plan", "tune", "run", "merge"))
    parser.add_argument("files", nargs="*", type=Path, help="Of `plan`: Parquet with text, label and split.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--limit-seconds", type=float, default=140.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--together", type=int, default=27, help="Trainings stacked into one.")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--fractions", default=",".join(map(str, FRACTIONS)))
    parser.add_argument("--methods", default=",".join((*METHODS, "full")))
    parser.add_argument("--sets", help="Names, separated by commas; default all that were planned.")
    parser.add_argument("--test-rows", type=int, help="Test rows that are read; for a rehearsal.")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--max-length", type=int, default=64)
    options = parser.parse_args()
    options.deadline = time.perf_counter() + options.limit_seconds
    options.work.mkdir(parents=True, exist_ok=True)
    stages = {"plan": plan, "tune": tune, "run": run, "merge": merge}
    started = time.perf_counter()
    stages[options.stage](options)
    print(f"{options.stage} {options.shard}: {time.perf_counter() - started:.1f} s", flush=True)


def plan(options: argparse.Namespace) -> None:
    """Write what each method keeps of each set, and the set."""
    from benchmarks.text_sets import TextSet, told_setting

    for file in options.files:
        texts = TextSet.read(file)
        settings = {}
        found: dict[str, Any] = {"labels": texts.labels, "train": texts.train, "test": texts.test}
        for method, fraction in ((m, f) for m in METHODS for f in FRACTIONS):
            settings[f"{method} {fraction}"] = told_setting(method, fraction)
            for seed in range(SEEDS):
                chosen = np.zeros(len(texts.labels), np.bool_)
                chosen[texts.kept(method, fraction, seed)] = True
                found[f"kept {method} {fraction} {seed}"] = np.packbits(chosen)
        found |= {"texts": np.array(json.dumps(texts.texts)), "settings": np.array(json.dumps(settings))}
        np.savez_compressed(options.work / f"{texts.name}.npz", **found)


@dataclass(frozen=True, eq=False)
class _Planned:
    """A set, read back."""

    name: str
    texts: list[str]
    labels: Int64
    train: Int64
    test: Int64
    settings: dict[str, Any]
    kept: dict[str, NDArray[np.uint8]]

    @classmethod
    def read(cls, file: Path, *, test_rows: int | None) -> _Planned:
        with np.load(file) as known:
            kept = {name: known[name] for name in known.files if name.startswith("kept ")}
            texts, settings = (json.loads(str(known[name])) for name in ("texts", "settings"))
            return cls(file.stem, texts, known["labels"], known["train"], known["test"][:test_rows], settings, kept)

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def arm(self, method: str, fraction: float, seed: int) -> Int64:
        if method == "full":
            return self.train
        chosen = np.unpackbits(self.kept[f"kept {method} {fraction} {seed}"], count=len(self.labels))
        return np.flatnonzero(chosen).astype(np.int64)


@dataclass(frozen=True)
class _Task:
    """A training: what decides it, and the rows that it learns from."""

    config: dict[str, Any]
    rows: Int64


def tune(options: argparse.Namespace) -> None:
    """Accuracy of random rows on validation rows by learning rate, two seeds; a set and rate a process."""
    shard, shards = (int(each) for each in options.shard.split("/"))
    for texts, rate in [(texts, rate) for texts in _sets(options) for rate in RATES][shard::shards]:
        part = texts.train[np.arange(len(texts.train)) % VALIDATION != 0]
        held = np.setdiff1d(texts.train, part)[: options.test_rows]
        recipe, tasks = _recipe(options, rate), []
        for fraction, seed in ((f, s) for f in TUNED_AT for s in range(2)):
            draws = np.random.Generator(np.random.Philox(key=[seed, 2]))
            rows = np.sort(draws.permutation(part)[: round(fraction * len(part))])
            config = {"dataset": texts.name, "fraction": fraction, "seed": seed, "recipe": asdict(recipe)}
            tasks.append(_Task(config, rows))
        _measure(TUNING, options, texts, held, recipe, tasks)


def run(options: argparse.Namespace) -> None:
    """Train on what each method keeps, and look at the test rows."""
    recipe = _recipe(options, _settled(options.work))
    shard, shards = (int(each) for each in options.shard.split("/"))
    wanted = options.methods.split(",")
    fractions = [float(each) for each in options.fractions.split(",")]
    for texts in _sets(options):
        tasks = []
        arms = [("full", 1.0), *((m, f) for f in fractions for m in METHODS)]
        for seed, (method, fraction) in ((s, arm) for s in range(options.seeds) for arm in arms if arm[0] in wanted):
            config = {"dataset": texts.name, "encoder": MODEL, "model": "fine-tuned", "fraction": fraction}
            config |= {"method": method, "seed": seed, "recipe": asdict(recipe)}
            config["setting"] = texts.settings.get(f"{method} {fraction}")
            tasks.append(_Task(config, texts.arm(method, fraction, seed)))
        _measure(NAME, options, texts, texts.test, recipe, tasks[shard::shards])


def merge(options: argparse.Namespace) -> None:
    """Bring the rows of all processes into the results, and write the tables anew."""
    from benchmarks import text_tables

    for name in (TUNING, NAME):
        known = {row["digest"]: row for row in (*common.rows(name), *_rows(options.work, name))}
        common.write_rows(name, list(known.values()))
    text_tables.write(NAME)


def _measure(
    name: str, options: argparse.Namespace, texts: _Planned, test: Int64, recipe: TextRecipe, tasks: Sequence[_Task]
) -> None:
    """Train the tasks that no row tells of, and record what they predict of the test rows."""
    known = {row["digest"] for row in _rows(options.work, name)}
    tasks = [task for task in tasks if digest_of(task.config) not in known]
    if not tasks:
        return
    said = [texts.texts[at] for at in test]
    trainer = TextTrainer(
        texts.texts, said, recipe=recipe, device=options.device, together=min(options.together, len(tasks))
    )
    truth = texts.labels[test]
    for start in range(0, len(tasks), options.together):
        if time.perf_counter() > options.deadline:
            print(f"no time for {len(tasks) - start} trainings on {texts.name}", flush=True)
            return
        some, started = tasks[start : start + options.together], time.perf_counter()
        seeds = [task.config["seed"] for task in some]
        found = trainer.train_many(texts.labels, [task.rows for task in some], seeds, classes=texts.classes)
        took = time.perf_counter() - started
        print(f"{texts.name}: {len(some)} trainings, {1000 * took / recipe.steps:.2f} ms a step", flush=True)
        for task, predicted in zip(some, found, strict=True):
            row = common.outcome(predicted, truth, classes=texts.classes, rows=len(task.rows), seconds=took / len(some))
            common.record(name, row, task.config)


def _settled(work: Path) -> float:
    """The learning rate with the best mean accuracy over sets and fractions; frozen when it is first asked for."""
    file = work / "rate.json"
    if not file.exists():
        found: dict[float, list[float]] = defaultdict(list)
        for row in _rows(work, TUNING):
            found[row["recipe"]["learning_rate"]].append(row["accuracy"])
        means = {rate: sum(values) / len(values) for rate, values in sorted(found.items())}
        if not means or len({len(values) for values in found.values()}) > 1:
            raise SystemExit(f"`tune` has not measured every learning rate equally often: {dict(found)}")
        print("validation:", {rate: round(mean, 2) for rate, mean in means.items()}, flush=True)
        # Two processes may settle at once: both find the same.
        file.write_text(json.dumps(max(means, key=lambda rate: means[rate])) + "\n", encoding="utf-8")
    return float(json.loads(file.read_text(encoding="utf-8")))


def _recipe(options: argparse.Namespace, rate: float) -> TextRecipe:
    recipe = TextRecipe(steps=options.steps, max_length=options.max_length)
    return replace(recipe, learning_rate=rate, head_rate=HEAD_TIMES * rate)


def _sets(options: argparse.Namespace) -> list[_Planned]:
    wanted = options.sets.split(",") if options.sets else None
    files = [file for file in sorted(options.work.glob("*.npz")) if wanted is None or file.stem in wanted]
    return [_Planned.read(file, test_rows=options.test_rows) for file in files]


def _rows(work: Path, name: str) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(work.glob(f"results-*/{name}.json")):
        found |= {row["digest"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    return list(found.values())


if __name__ == "__main__":
    main()
