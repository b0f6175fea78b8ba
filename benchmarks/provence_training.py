"""How the default pruner and its teacher came to be, and how good they are: stages for a short lease of one GPU.

    bank      DATA -> BANK.npz, on any machine: token ids of the training questions and documents
    draw      BANK -> WORK/windows-*.npz: epochs drawn ahead, while the base's weights are still on their way
    teacher   BANK, BASE -> WORK/NAME.pt, held-out figures
    label     WORK/NAME.pt -> WORK/NAME.labels, of the windows that students learn from
    student   BANK, WORK/TEACHER.labels of one or more -> OUT/NAME, WORK/NAME.pt, held-out figures
    measure   WORK/MODEL.pt, TESTS -> figures of the test splits, alone and joined, of one model or several's mean
    record    OUT/measured_*.json -> benchmarks/results/provence_quality.json; OUT/*.json -> provence_training.json

    python -m benchmarks.provence_training teacher --name teacher-a --bank bank.npz --base all-mpnet-base-v2 --out out

Stages of different names may run at the same time, each with a GPU of its own.

Needs only torch, transformers, tokenizers, numpy, pyarrow, scikit-learn and safetensors.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
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
    predict_windows,
    student_windows,
    train_on_labels,
    train_student,
    write_student,
)
from provence.training.scorer import NetworkScorer
from provence.training.templates import open_tokenizer
from provence.training.train import Predictions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provence.evaluation.protocol import Passage

NAME, TRAINING = "provence_quality", "provence_training"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
JOINED = 440.0
"""Estimated tokens of the passages that share a window."""


class Joined:
    """A scorer that sees passages of a question together, up to a limit."""

    def __init__(self, scorer: NetworkScorer | Mean) -> None:
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
    held = train_on_labels(trainee, run.bank, run.config, run.config.teacher, run.host, name=options.name)
    torch.save(trainee.network.state_dict(), options.work / f"{options.name}.pt")
    run.report(options.name, {"held": held, "seconds": time.monotonic() - begun, "loss": losses(options)})


def label(options: argparse.Namespace) -> None:
    run = Run(options)
    master = recalled(run.teacher(run.student()), options.work / f"{options.name}.pt")
    windows = student_windows(run.bank, run.config, run.host)
    said = predict_windows(master, run.bank, windows)
    torch.save((said.keep.cpu(), said.score.cpu()), options.work / f"{options.name}.labels")
    print(options.name, len(windows), "windows", len(said.keep), "sentences", flush=True)


def student(options: argparse.Namespace) -> None:
    run = Run(options)
    learner, begun = run.student(), time.monotonic()
    windows = student_windows(run.bank, run.config, run.host)
    paths = [options.work / f"{name}.labels" for name in options.models]
    said = [Predictions(*torch.load(path, weights_only=True, map_location=DEVICE)) for path in paths]
    held = train_student(learner, said, windows, run.bank, run.config, run.host, name=options.name)
    write_student(learner.network, run.config, options.out / options.name)
    torch.save(learner.network.state_dict(), options.work / f"{options.name}.pt")
    seconds = time.monotonic() - begun
    run.report(options.name, {"held": held, "seconds": seconds, "windows": len(windows), "loss": losses(options)})


def losses(options: argparse.Namespace) -> list[float]:
    """Mean loss of each eighth of the updates."""
    lines = (options.out / f"{options.name}.jsonl").read_text(encoding="utf-8").splitlines()
    found = np.array([json.loads(line)["keep_loss"] for line in lines if "keep_loss" in json.loads(line)])
    return [round(float(part.mean()), 5) for part in np.array_split(found, 8) if len(part)]


class Mean:
    """A scorer that takes the mean of several."""

    def __init__(self, name: str, scorers: Sequence[NetworkScorer]) -> None:
        self.name, self.threshold, self._scorers = name, scorers[0].threshold, scorers

    def score(self, passages: Sequence[Passage]) -> list[PassageScores]:
        found = [scorer.score(passages) for scorer in self._scorers]
        return [
            PassageScores(np.mean([one.probabilities for one in each], axis=0), float(np.mean([o.score for o in each])))
            for each in zip(*found, strict=True)
        ]


def measured(options: argparse.Namespace) -> None:
    run = Run(options)
    learner = run.student()
    tokenizer, windows = open_tokenizer(learner.folder), run.config.windows
    opened = [run.teacher(learner) if options.of == "teacher" else run.student() for _ in options.models]
    scorers = [
        NetworkScorer(
            name, recalled(one, options.work / f"{name}.pt").network, tokenizer, one.template, DEVICE, windows
        )
        for name, one in zip(options.models, opened, strict=True)
    ]
    scorer = scorers[0] if len(scorers) == 1 else Mean(options.name, scorers)
    paths = sorted(options.tests.glob("*.parquet"))
    found = measure([scorer, Joined(scorer)], paths, samples=100, limit=options.limit)
    for line in found.rows:
        print(line["set"], line["method"], line["removed_at_90"], flush=True)
    held = figures(opened[0], run.bank, run.config, most=None) if len(opened) == 1 else {}
    run.report(f"measured_{scorer.name}", {"held": held, "test": list(found.rows)})


def recorded(options: argparse.Namespace) -> None:
    """Rows of what was measured on another machine, with its circumstances instead of this one's."""
    environment().update(json.loads(options.circumstances.read_text(encoding="utf-8")))
    for path in sorted(options.out.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "loss" in content:
            about = {"model": path.stem, "config": content["config"], "changed": content["changed"]}
            held = content["held"]
            found = {"seconds": content["seconds"], "held_macro": held["macro"], "held": held, "loss": content["loss"]}
            record(TRAINING, found, about)
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
        found = json.loads(value)
        config = _changed(config, path.split("."), tuple(found) if isinstance(found, list) else found)
    return config


def _changed(table: Any, path: list[str], value: Any) -> Any:
    inner = value if len(path) == 1 else _changed(getattr(table, path[0]), path[1:], value)
    return dataclasses.replace(table, **{path[0]: inner})


STAGES = {
    "bank": bank,
    "draw": draw,
    "teacher": teacher,
    "label": label,
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
    parser.add_argument("--name", default="student", help="of the model that is trained, or of the mean of several")
    parser.add_argument("--of", choices=("teacher", "student"), default="student", help="what is measured")
    parser.add_argument("--models", nargs="*", default=[], help="that are measured, or that teach")
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
