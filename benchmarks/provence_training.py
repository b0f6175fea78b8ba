"""How the default pruner and its teacher came to be, and how good they are: stages for a short lease of one GPU.

    bank      DATA -> BANK.npz, on any machine: token ids of the training questions and documents
    draw      BANK -> WORK/windows-*.npz: epochs drawn ahead, while the base's weights are still on their way
    teacher   BANK, BASE -> WORK/teacher.pt, held-out figures
    student   BANK, WORK/teacher.pt -> OUT/model, WORK/student.pt, held-out figures
    measure   WORK/MODEL.pt, TESTS -> figures of the test splits, passages alone and joined
    record    OUT/measured_*.json -> benchmarks/results/provence_quality.json

    python -m benchmarks.provence_training teacher --bank bank.npz --base all-mpnet-base-v2 --out out

Needs only torch, transformers, tokenizers, numpy, pyarrow, scikit-learn and safetensors.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.common import environment, record
from provence.evaluation.protocol import PROTOCOL, PassageScores, joined
from provence.evaluation.run import measure
from provence.training.bank import Bank
from provence.training.config import TrainingConfig, load_config
from provence.training.pipeline import (
    STUDENT_EPOCHS,
    Host,
    Trainee,
    build_bank,
    drawer,
    figures,
    open_trainee,
    train_on_labels,
    train_student,
    write_student,
)
from provence.training.scorer import NetworkScorer
from provence.training.templates import open_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provence.evaluation.protocol import Passage

NAME = "provence_quality"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
JOINED = 440.0
"""Estimated tokens of the passages that share a window."""


class Joined:
    """A scorer that sees passages of a question together, up to a limit."""

    def __init__(self, scorer: NetworkScorer) -> None:
        self.name, self.threshold = f"{scorer.name} joint", scorer.threshold
        self._scorer = scorer

    def score(self, passages: Sequence[Passage]) -> list[PassageScores]:
        texts = joined(passages, limit=JOINED)
        found = []
        for text, scores in zip(texts, self._scorer.score(texts), strict=True):
            first = 0
            for part in text.parts:
                found.append(PassageScores(scores.probabilities[first : first + part], scores.score))
                first += part
        return found


class Run:
    """What the stages share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.config = changed(load_config(options.config), options.set)
        self.bank = Bank.load(options.bank)
        self.host = Host(options.out, processes=options.processes, windows=options.work, checkpoint_every=0)

    def student(self) -> Trainee:
        return open_trainee(self.config.student, name="student", device=DEVICE)

    def teacher(self, student: Trainee) -> Trainee:
        base = dataclasses.replace(self.config.teacher, source=str(self.options.base))
        return open_trainee(base, name="teacher", device=DEVICE, bank=student.folder)

    def report(self, name: str, row: dict[str, Any]) -> None:
        whole = {"config": self.config.digest(), "changed": self.options.set, **row}
        print(name, json.dumps({key: value for key, value in whole.items() if key != "test"}), flush=True)
        (self.options.out / f"{name}.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")


def bank(options: argparse.Namespace) -> None:
    builder = build_bank(changed(load_config(options.config), options.set), options.data)
    builder.build().save(options.bank)
    print(json.dumps({"refused": builder.refused, "taken": builder.taken}))


def draw(options: argparse.Namespace) -> None:
    run = Run(options)
    for seed in (run.config.teacher.optimiser.seed, run.config.student.optimiser.seed + STUDENT_EPOCHS):
        with drawer(run.bank, run.config, run.host, seed=seed) as drawn:
            for number in range(options.epochs):
                print(seed, number, len(drawn.windows(number)), flush=True)


def teacher(options: argparse.Namespace) -> None:
    run = Run(options)
    trainee, begun = run.teacher(run.student()), time.monotonic()
    held = train_on_labels(trainee, run.bank, run.config, run.config.teacher, run.host, name="teacher")
    torch.save(trainee.network.state_dict(), options.work / "teacher.pt")
    run.report("teacher", {"held": held, "seconds": time.monotonic() - begun})


def student(options: argparse.Namespace) -> None:
    run = Run(options)
    learner = run.student()
    master = recalled(run.teacher(learner), options.work / "teacher.pt")
    begun = time.monotonic()
    held = train_student(learner, master, run.bank, run.config, run.host)
    write_student(learner.network, run.config, options.out / "model")
    torch.save(learner.network.state_dict(), options.work / "student.pt")
    run.report("student", {"held": held, "seconds": time.monotonic() - begun})


def measured(options: argparse.Namespace) -> None:
    run = Run(options)
    learner = run.student()
    trainee = learner if options.model == "student" else run.teacher(learner)
    recalled(trainee, options.work / f"{options.model}.pt")
    tokenizer, windows = open_tokenizer(learner.folder), run.config.windows
    scorer = NetworkScorer(options.model, trainee.network, tokenizer, trainee.template, DEVICE, windows)
    paths = sorted(options.tests.glob("*.parquet"))
    found = measure([scorer, Joined(scorer)], paths, samples=100, limit=options.limit)
    for line in found.rows:
        print(line["set"], line["method"], line["removed_at_90"], flush=True)
    held = figures(trainee, run.bank, run.config, most=None)
    run.report(f"measured_{options.model}", {"held": held, "test": list(found.rows)})


def recorded(options: argparse.Namespace) -> None:
    """Rows of what was measured on another machine, with its circumstances instead of this one's."""
    environment().update(json.loads(options.circumstances.read_text(encoding="utf-8")))
    for path in sorted(options.out.glob("measured_*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for method in dict.fromkeys(row["method"] for row in content["test"]):
            rows = {row["set"]: row for row in content["test"] if row["method"] == method}
            sets = sorted(rows.keys() - {"macro"})
            about = {"protocol": PROTOCOL, "split": "test", "limit": None, "method": method}
            about |= {"stage": "training network", "config": options.digest or content["config"]}
            for name in sets:
                record(NAME, {**rows[name], "dtype": "bfloat16"}, {**about, "what": "set", "set": name})
            mean = {name: rows[name]["removed_at_90"] for name in sets}
            whole = {key: value for key, value in rows["macro"].items() if key not in {"set", "method"}}
            ends = {f"mean{end}": whole[f"removed_at_90{end}"] for end in ("", "_low", "_high")}
            record(NAME, {**ends, **mean, **whole, "dtype": "bfloat16"}, {**about, "what": "macro", "sets": sets})


def recalled(trainee: Trainee, path: Path) -> Trainee:
    trainee.network.load_state_dict(torch.load(path, weights_only=True, map_location=DEVICE))
    return trainee


def changed(config: TrainingConfig, pairs: list[str]) -> TrainingConfig:
    """Values replaced, such as `student.optimiser.steps=20`."""
    for pair in pairs:
        path, _, value = pair.partition("=")
        config = _changed(config, path.split("."), json.loads(value))
    return config


def _changed(table: Any, path: list[str], value: Any) -> Any:
    inner = value if len(path) == 1 else _changed(getattr(table, path[0]), path[1:], value)
    return dataclasses.replace(table, **{path[0]: inner})


STAGES = {
    "bank": bank,
    "draw": draw,
    "teacher": teacher,
    "student": student,
    "measure": measured,
    "record": recorded,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--config", type=Path, default=Path("provence/training/default.toml"))
    parser.add_argument("--data", type=Path, help="folder of the sets")
    parser.add_argument("--bank", type=Path)
    parser.add_argument("--base", type=Path, help="folder of the teacher's base")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder that stays on the machine")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of what is brought home")
    parser.add_argument("--tests", type=Path, help="folder of the sets that are measured")
    parser.add_argument("--processes", type=int, default=0, help="that draw windows")
    parser.add_argument("--model", choices=("teacher", "student"), default="student", help="that is measured")
    parser.add_argument("--epochs", type=int, default=6, help="that `draw` draws for each of both")
    parser.add_argument("--limit", type=int, help="questions of a test set, at most")
    parser.add_argument("--set", nargs="*", default=[], help="values to change, such as student.optimiser.steps=20")
    parser.add_argument("--circumstances", type=Path, help="JSON: commit, hardware, versions of what is recorded")
    parser.add_argument("--digest", help="of the config that they belong to, if it was written down later")
    options = parser.parse_args()
    for folder in (options.work, options.out):
        folder.mkdir(parents=True, exist_ok=True)
    STAGES[options.stage](options)


if __name__ == "__main__":
    main()
