"""A fine-tuned MiniLM on what four methods keep, with and without a teacher's soft labels, for a GPU host.

    plan (any host, after `text_finetune plan`) -> FOLDER/teachers/SET.npz: what heads on MPNet vectors say of the rows
    teach -> what fine-tuned networks say of rows that they have not learnt (and, apart, of those that they have)
    tune -> alpha by fraction and teacher for random rows, on validation rows -> run -> test rows, once -> merge

Run: python -m benchmarks.kd_text_finetune STAGE --work FOLDER [--shard 0/2] ... FOLDER is that of `text_finetune`,
with its SET.npz and the rate.json that its `tune` has settled; rows without soft labels are those of its `run`, with
the same recipe, and are not measured again. `--shard i/n` takes every n-th training, so that n processes, one a GPU,
share a stage; each needs its own BENCHMARK_RESULTS below the folder, named results-*. Let all processes of a stage end
before the next begins.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import common
from benchmarks.kd_text_rows import Texts, spread, taught
from benchmarks.kd_text_trainer import SoftTextTrainer
from datapipe.proof.text import TextRecipe
from datapipe.storage.digest import digest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Int64

NAME = "kd_text_finetune"
TUNING = f"{NAME}_tuning"
MODEL = "all-MiniLM-L6-v2"
SETS = ("trec6", "banking77")
FRACTIONS = (0.05, 0.1, 0.3, 0.5)
METHODS = ("random", "el2n", "ccs", "prototypes_hard")
TEACHERS = ("self", "mpnet_head")
LEARNT = "self_fit_included"
ALPHAS, TEMPERATURE = (0.5, 0.75, 1.0), 2.0
SEEDS, TUNING_SEEDS, FOLDS = 5, 2, 5
HEAD_TIMES = 10.0
"""As in `text_finetune`: times the encoder's learning rate at which the head learns."""


def main() -> None:
    """Do one stage, as far as the time allows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("plan", "teach", "tune", "run", "merge"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--limit-seconds", type=float, default=140.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--together", type=int, default=27, help="Trainings stacked into one.")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--fractions", default=",".join(map(str, FRACTIONS)))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--test-rows", type=int, help="Rows that are asked; for a rehearsal.")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--max-length", type=int, default=64)
    options = parser.parse_args()
    options.deadline = time.perf_counter() + options.limit_seconds
    started = time.perf_counter()
    {"plan": plan, "teach": teach, "tune": tune, "run": run, "merge": merge}[options.stage](options)
    print(f"{options.stage} {options.shard}: {time.perf_counter() - started:.1f} s", flush=True)


def plan(options: argparse.Namespace) -> None:
    """What heads on MPNet vectors say of the training rows that they have not learnt, under both cuts."""
    from benchmarks.kd_text import CACHE
    from benchmarks.kd_text_heads import teach as heads

    folder = options.work / "teachers"
    folder.mkdir(parents=True, exist_ok=True)
    for texts in _sets(options):
        vectors = np.load(CACHE / f"{texts.name}-mpnet.npy")
        told: dict[str, Any] = {}
        for split in ("validation", "test"):
            learnt, _ = texts.cut(split)
            found = heads(vectors[learnt], texts.labels[learnt], classes=texts.classes)
            told[f"mpnet_head {split}"] = spread(texts, learnt, found).astype(np.float16)
        np.savez_compressed(folder / f"{texts.name}.npz", **told)


def teach(options: argparse.Namespace) -> None:
    """Fine-tune `FOLDS` networks a cut on the other folds, and one on all rows; a set a process."""
    shard, shards = (int(each) for each in options.shard.split("/"))
    for texts in _sets(options)[shard::shards]:
        file = options.work / "teachers" / f"{texts.name}-self.npz"
        if file.exists():
            continue
        folds = np.random.Generator(np.random.Philox(7)).integers(FOLDS, size=len(texts.labels))
        arms, made = [], []
        for split in ("validation", "test"):
            learnt, _ = texts.cut(split)
            arms += [*(learnt[folds[learnt] != fold] for fold in range(FOLDS)), learnt]
            made += [(split, fold) for fold in range(FOLDS + 1)]
        said = [texts.texts[at] for at in texts.train]
        trainer = _trainer(options, texts, said, len(arms))
        found = trainer.tell(texts.labels, arms, list(range(len(arms))), classes=texts.classes)
        told: dict[str, Any] = {
            f"{name} {split}": np.zeros((len(texts.labels), texts.classes), np.float16)
            for name in ("self", LEARNT)
            for split in ("validation", "test")
        }
        for (split, fold), each in zip(made, found, strict=True):
            whole = spread(texts, texts.train, each)
            if fold == FOLDS:
                told[f"{LEARNT} {split}"] = whole.astype(np.float16)
            else:
                own = folds == fold
                told[f"self {split}"][own] = whole[own]
        np.savez_compressed(file, **told)


@dataclass(frozen=True)
class Task:
    """A training: what decides it, what it learns from, and from whom."""

    config: dict[str, Any]
    rows: Int64
    teacher: str
    alpha: float


def tune(options: argparse.Namespace) -> None:
    """Random rows under every alpha and teacher, asked of validation rows; a part of the trainings a process."""
    shard, shards = (int(each) for each in options.shard.split("/"))
    recipe = _recipe(options)
    for texts in _sets(options):
        part, _ = texts.cut("validation")
        arms = [("none", 0.0), *((teacher, alpha) for teacher in TEACHERS for alpha in ALPHAS)]
        cells = [(f, *arm) for f in (*_fractions(options), 1.0) for arm in arms]
        cells += [(fraction, LEARNT, alpha) for fraction in (0.1, 0.5) for alpha in (0.5, 1.0)]
        tasks = []
        for seed, (fraction, teacher, alpha) in ((s, cell) for s in range(TUNING_SEEDS) for cell in cells):
            draws = np.random.Generator(np.random.Philox(key=[seed, 2]))
            rows = np.sort(draws.permutation(part)[: round(fraction * len(part))])
            config = _config(texts, recipe, "validation", "random", fraction, teacher, alpha, seed)
            tasks.append(Task(config, rows, teacher, alpha))
        _measure(TUNING, options, texts, "validation", tasks[shard::shards])


def run(options: argparse.Namespace) -> None:
    """Every method with each teacher at the alpha that validation chose for random rows, asked of the test rows."""
    shard, shards = (int(each) for each in options.shard.split("/"))
    recipe, settled = _recipe(options), _settled(options)
    for texts in _sets(options):
        tasks = []
        cells = [(method, fraction) for fraction in _fractions(options) for method in options.methods.split(",")]
        for seed, (method, fraction) in ((s, cell) for s in range(options.seeds) for cell in (*cells, ("full", 1.0))):
            for teacher in TEACHERS:
                alpha = settled[f"{teacher} {fraction}"]
                config = _config(texts, recipe, "test", method, fraction, teacher, alpha, seed)
                config["setting"] = texts.settings.get(f"{method} {fraction}")
                tasks.append(Task(config, texts.arm(method, fraction, seed), teacher, alpha))
        _measure(NAME, options, texts, "test", tasks[shard::shards])


def merge(options: argparse.Namespace) -> None:
    """Bring the rows of all processes into the results, and print the tables."""
    for name in (TUNING, NAME):
        known = {row["digest"]: row for row in (*common.rows(name), *_rows(options.work, name))}
        content = json.dumps({"name": name, "rows": list(known.values())}, indent=1, ensure_ascii=False)
        (common.RESULTS / f"{name}.json").write_text(content + "\n", encoding="utf-8")
    print(told())


def told() -> str:
    """Mean and standard deviation of the test accuracy; labels alone are the rows of `text_finetune`."""
    cells: dict[tuple[str, float, str], dict[str, list[float]]] = {}
    for row in (*common.rows("text_finetune"), *common.rows(NAME)):
        if row["dataset"] in SETS and row["method"] in {*METHODS, "full"}:
            at = cells.setdefault((row["dataset"], row["fraction"], row["method"]), {})
            at.setdefault(row.get("teacher", "none"), []).append(row["accuracy"])
    lines = [["dataset", "fraction", "method", "labels alone", *(f"+ KD, {name}" for name in TEACHERS)]]
    lines.append(["---"] * len(lines[0]))
    for (dataset, fraction, method), at in sorted(cells.items()):
        shown = [f"{np.mean(at[c]):.1f} ± {np.std(at[c]):.1f}" if c in at else "" for c in ("none", *TEACHERS)]
        lines.append([dataset, f"{fraction:g}", method, *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _config(
    texts: Texts, recipe: TextRecipe, split: str, method: str, fraction: float, teacher: str, alpha: float, seed: int
) -> dict[str, Any]:
    return {
        "dataset": texts.name,
        "encoder": MODEL,
        "model": "fine-tuned",
        "split": split,
        "fraction": fraction,
        "method": method,
        "kd": teacher != "none",
        "alpha": alpha,
        "temperature": TEMPERATURE if teacher != "none" else 1.0,
        "teacher": teacher,
        "noise": 0.0,
        "seed": seed,
        "recipe": asdict(recipe),
    }


def _measure(name: str, options: argparse.Namespace, texts: Texts, split: str, tasks: Sequence[Task]) -> None:
    """Train the tasks that no row tells of, and record what they predict."""
    known = {row["digest"] for row in _rows(options.work, name)}
    tasks = [task for task in tasks if digest_of(task.config) not in known]
    if not tasks:
        return
    asked = texts.cut(split)[1][: options.test_rows]
    names = sorted({task.teacher for task in tasks} - {"none"})
    soft = np.stack([taught(options.work, texts, each, split) for each in names or ["self"]])
    trainer = _trainer(options, texts, [texts.texts[at] for at in asked], len(tasks))
    truth = texts.labels[asked]
    for start in range(0, len(tasks), options.together):
        if time.perf_counter() > options.deadline:
            print(f"no time for {len(tasks) - start} trainings on {texts.name}", flush=True)
            return
        some, started = tasks[start : start + options.together], time.perf_counter()
        found = trainer.learn_many(
            texts.labels,
            [task.rows for task in some],
            [task.config["seed"] for task in some],
            classes=texts.classes,
            soft=soft,
            how=[(names.index(t.teacher) if t.teacher in names else 0, t.alpha, TEMPERATURE) for t in some],
        )
        took = time.perf_counter() - started
        print(f"{texts.name}: {len(some)} trainings, {1000 * took / options.steps:.2f} ms a step", flush=True)
        for task, predicted in zip(some, found, strict=True):
            row = common.outcome(predicted, truth, classes=texts.classes, rows=len(task.rows), seconds=took / len(some))
            common.record(name, row, task.config)


def _trainer(options: argparse.Namespace, texts: Texts, asked: list[str], trainings: int) -> SoftTextTrainer:
    together = min(options.together, trainings)
    return SoftTextTrainer(texts.texts, asked, recipe=_recipe(options), device=options.device, together=together)


def _settled(options: argparse.Namespace) -> dict[str, float]:
    """Alpha by teacher and fraction, of the greatest mean accuracy over sets; frozen when it is first asked for."""
    file = options.work / "alpha.json"
    if not file.exists():
        found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in _rows(options.work, TUNING):
            if row["teacher"] in TEACHERS:
                found[f"{row['teacher']} {row['fraction']}"][row["alpha"]].append(row["accuracy"])
        wanted = {f"{teacher} {fraction}" for teacher in TEACHERS for fraction in (*_fractions(options), 1.0)}
        counts = {len(values) for at in found.values() for values in at.values()}
        if found.keys() < wanted or len(counts) != 1:
            raise SystemExit(f"`tune` has not measured every alpha equally often: {sorted(found)}, {counts}")
        best = {cell: max(sorted(at), key=lambda alpha: np.mean(at[alpha])) for cell, at in found.items()}
        print("validation:", best, flush=True)
        # Two processes may settle at once: both find the same.
        file.write_text(json.dumps(best) + "\n", encoding="utf-8")
    settled: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    return settled


def _recipe(options: argparse.Namespace) -> TextRecipe:
    rate = float(json.loads((options.work / "rate.json").read_text(encoding="utf-8")))
    return TextRecipe(
        steps=options.steps, max_length=options.max_length, learning_rate=rate, head_rate=HEAD_TIMES * rate
    )


def _fractions(options: argparse.Namespace) -> list[float]:
    return [float(each) for each in options.fractions.split(",")]


def _sets(options: argparse.Namespace) -> list[Texts]:
    return [Texts.read(options.work / f"{name}.npz") for name in options.sets.split(",")]


def _rows(work: Path, name: str) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(work.glob(f"results-*/{name}.json")):
        found |= {row["digest"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    return list(found.values())


if __name__ == "__main__":
    main()
