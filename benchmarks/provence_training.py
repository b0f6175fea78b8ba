"""How good the default pruner and its teacher are, and how they came to be: training and measuring on one GPU.

    bank      DATA folder -> BANK.npz, on any machine: token ids of the training questions and documents
    teacher   BANK, base -> WORK/teacher.safetensors; figures
    student   BANK, WORK/teacher.safetensors -> OUT/model; figures
    measure   a model in WORK, test sets -> figures

Needs only torch, transformers, tokenizers, numpy, pyarrow, scikit-learn and safetensors. Figures go to OUT/NAME.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from provence.evaluation.protocol import joined
from provence.evaluation.run import measure
from provence.training.bank import Bank
from provence.training.config import TrainingConfig, load_config
from provence.training.pipeline import (
    Trainee,
    build_bank,
    figures,
    open_trainee,
    train_student,
    train_teacher,
    write_student,
)
from provence.training.scorer import NetworkScorer
from provence.training.templates import open_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provence.evaluation.protocol import Passage, PassageScores

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Joined:
    """A scorer that sees passages of a question together, up to a limit."""

    def __init__(self, scorer: NetworkScorer, limit: float) -> None:
        self.name, self.threshold = f"{scorer.name}, joined to {limit:.0f}", scorer.threshold
        self._scorer, self._limit = scorer, limit

    def score(self, passages: Sequence[Passage]) -> list[PassageScores]:
        from provence.evaluation.protocol import PassageScores

        texts = joined(passages, limit=self._limit)
        found = []
        for text, scores in zip(texts, self._scorer.score(texts), strict=True):
            first = 0
            for part in text.parts:
                found.append(PassageScores(scores.probabilities[first : first + part], scores.score))
                first += part
        return found


def main() -> None:
    options = arguments()
    config = load_config(options.config)
    if options.set:
        config = changed(config, options.set)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage == "bank":
        builder = build_bank(config, options.data)
        builder.build().save(options.bank)
        print(json.dumps({"refused": builder.refused, "taken": builder.taken}))
        return
    bank = Bank.load(options.bank)
    student = open_trainee(config.student, name="student", device=DEVICE)
    teacher = open_trainee(
        dataclasses.replace(config.teacher, source=str(options.base)),
        name="teacher",
        device=DEVICE,
        student=student.folder,
    )
    begun = time.monotonic()
    drawn = {"out": options.out, "processes": options.processes, "checkpoints": False}
    if options.stage == "teacher":
        held = train_teacher(teacher, bank, config, **drawn)
        torch.save(teacher.network.state_dict(), options.work / "teacher.pt")
        report("teacher", {"held": held, "seconds": time.monotonic() - begun}, config, options)
        return
    if options.stage == "student" or options.model == "teacher":
        recall(teacher, options.work / "teacher.pt")
    if options.stage == "student":
        held = train_student(student, teacher, bank, config, **drawn)
        write_student(student.network, config, options.out / "model")
        torch.save(student.network.state_dict(), options.work / "student.pt")
        report("student", {"held": held, "seconds": time.monotonic() - begun}, config, options)
        return
    if options.model == "student":
        recall(student, options.work / "student.pt")
    chosen = teacher if options.model == "teacher" else student
    row = {"held": figures(chosen, bank, config, most=None)}
    scorer = NetworkScorer(
        options.model, chosen.network, open_tokenizer(student.folder), chosen.template, DEVICE, config.windows
    )
    paths = sorted(options.tests.glob("*.parquet"))
    found = measure([scorer, Joined(scorer, 440.0)], paths, samples=100, limit=options.limit)
    for line in found.rows:
        print(line["set"], line["method"], line["removed_at_90"], flush=True)
    report(f"measured_{options.model}", row | {"test": list(found.rows)}, config, options)


def recall(trainee: Trainee, path: Path) -> None:
    trainee.network.load_state_dict(torch.load(path, weights_only=True, map_location=DEVICE))


def report(name: str, row: dict[str, Any], config: TrainingConfig, options: argparse.Namespace) -> None:
    whole = {"config": config.digest(), "changed": options.set, **row}
    print(name, json.dumps({key: value for key, value in whole.items() if key != "test"}), flush=True)
    (options.out / f"{name}.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")


def changed(config: TrainingConfig, pairs: list[str]) -> TrainingConfig:
    """Values replaced, such as `student.optimiser.steps=20`."""
    for pair in pairs:
        path, _, value = pair.partition("=")
        config = _changed(config, path.split("."), json.loads(value))
    return config


def _changed(table, path: list[str], value):  # noqa: ANN001, ANN202
    inner = value if len(path) == 1 else _changed(getattr(table, path[0]), path[1:], value)
    return dataclasses.replace(table, **{path[0]: inner})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("bank", "teacher", "student", "measure"))
    parser.add_argument("--config", type=Path, default=Path("provence/training/default.toml"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp"))  # noqa: S108
    parser.add_argument("--out", type=Path, default=Path("/tmp/out"))  # noqa: S108
    parser.add_argument("--tests", type=Path)
    parser.add_argument("--processes", type=int, default=0, help="that draw windows")
    parser.add_argument("--model", choices=("teacher", "student"), default="student", help="that is measured")
    parser.add_argument("--limit", type=int, help="questions of a test set, at most")
    parser.add_argument("--set", nargs="*", default=[], help="values to change, such as student.optimiser.steps=20")
    return parser.parse_args()


if __name__ == "__main__":
    main()
