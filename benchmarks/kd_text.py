"""Random rows and metrics with and without a teacher's soft labels, on labelled texts with a frozen encoder.

    texts -> MiniLM vectors (students), MPNet vectors (the larger teacher), cached
    validation rows: alpha, temperature -> frozen choice a fraction and teacher -> test rows, once -> kd_text.json

Run: python -m benchmarks.kd_text validate|test|print FILE.parquet... [--mpnet FOLDER]. A file has text, label and
split. Every fifth training row by a hash of its text is for validation; there alpha and temperature are chosen for
random rows, by their mean gain over the sets. All students take equal steps and batches; teachers learn all training
rows, and what they say of a row comes from heads that did not learn it.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import kd_text_tables
from benchmarks.common import finished, outcome, record, rows
from benchmarks.image_plans import chosen, setting_of
from benchmarks.kd_text_heads import Lane, teach, teacher_accuracy, train_students

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datapipe.storage.arrays import Bool, Float32, Int64

NAME = "kd_text"
FRACTIONS = (0.05, 0.1, 0.3, 0.5, 1.0)
ALPHAS, TEMPERATURES = (0.5, 0.75, 1.0), (1.0, 2.0)
METHODS = ("random", "el2n", "ccs", "prototypes_hard")
TEACHERS = ("minilm", "mpnet")
VALIDATION_SEEDS, TEST_SEEDS = 3, 5
SCORING_HEADS = 4
CACHE = Path("/tmp") / "secateur-kd-text"  # noqa: S108 - vectors only; made again where they are lost


def main() -> None:
    """Measure what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["validate", "test", "print"])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--mpnet", type=Path, help="Folder of all-mpnet-base-v2; needed until its vectors are cached.")
    parser.add_argument("--teachers", default=",".join(TEACHERS))
    options = parser.parse_args()
    teachers = options.teachers.split(",")
    sets = [TextSet(file, options.mpnet, teachers) for file in options.files]
    for each in sets:
        each.measure(_trials(teachers) if options.what == "validate" else _tests(teachers), options.what)
    kd_text_tables.write(NAME, teachers=TEACHERS)


@dataclass(frozen=True)
class Arm:
    """A cell of the tables.

    Attributes:
        method: How rows are kept.
        fraction: Of the training rows.
        teacher: Whose soft labels; "none" for labels alone.
        alpha: Weight of the soft labels.
        temperature: Of both distributions.
        seeds: Trainings.
    """

    method: str
    fraction: float
    teacher: str
    alpha: float
    temperature: float
    seeds: int


def _trials(teachers: list[str]) -> Iterable[Arm]:
    """Random rows under every alpha and temperature; and soft labels of heads that learnt the rows they speak of."""
    for fraction in FRACTIONS:
        yield Arm("random", fraction, "none", 0.0, 1.0, VALIDATION_SEEDS)
        for teacher in teachers:
            for alpha in ALPHAS:
                for temperature in TEMPERATURES:
                    yield Arm("random", fraction, teacher, alpha, temperature, VALIDATION_SEEDS)
    for fraction in (0.1, 0.5):
        for alpha in (0.5, 1.0):
            yield Arm("random", fraction, "minilm_fit_included", alpha, 2.0, VALIDATION_SEEDS)


def _tests(teachers: list[str]) -> Iterable[Arm]:
    """Every method with labels alone, and with each teacher at what validation chose for random rows."""
    for fraction in FRACTIONS:
        for method in METHODS if fraction < 1 else ("random",):
            yield Arm(method, fraction, "none", 0.0, 1.0, TEST_SEEDS)
            for teacher in teachers:
                alpha, temperature = kd_text_tables.choice(rows(NAME), teacher, fraction)
                yield Arm(method, fraction, teacher, alpha, temperature, TEST_SEEDS)


@dataclass(frozen=True, eq=False)
class Part:
    """What students learn from and are asked, under one cut.

    Attributes:
        split: `validation` or `test`.
        vectors: By encoder, float32 (rows, dim), the rows learnt from.
        labels: int64 (rows,).
        asked: By encoder, float32 (asked rows, dim).
        truth: int64 (asked rows,).
        classes: Number of classes.
    """

    split: str
    vectors: dict[str, Float32]
    labels: Int64
    asked: dict[str, Float32]
    truth: Int64
    classes: int

    def soft(self, teacher: str) -> Float32:
        """What the teacher says of the rows learnt from."""
        if teacher == "none":
            return np.zeros((len(self.labels), self.classes), np.float32)
        vectors = self.vectors[teacher.removesuffix("_fit_included")]
        return teach(vectors, self.labels, classes=self.classes, fit_included=teacher.endswith("_fit_included"))

    def accuracy_of(self, teacher: str) -> float | None:
        """Of the teacher itself on the rows asked, percent."""
        if teacher == "none":
            return None
        encoder = teacher.removesuffix("_fit_included")
        return teacher_accuracy(
            self.vectors[encoder], self.labels, self.asked[encoder], self.truth, classes=self.classes
        )

    @cached_property
    def scores(self) -> dict[str, Float32]:
        """By name, each float32 (rows,), higher is harder."""
        from datapipe.metrics.assign import Assigner
        from datapipe.metrics.dynamics import DYNAMICS
        from datapipe.metrics.kmeans import spherical_kmeans
        from datapipe.proxies.heads import HeadConfig, HeadData
        from datapipe.proxies.training import Place, default_batch, dynamics_of_heads

        vectors = self.vectors["minilm"]
        codes = (np.ascontiguousarray(vectors).view(np.uint32) >> 16).astype(np.uint16)
        data = HeadData(codes, self.labels.astype(np.int32), np.arange(len(vectors)), self.classes)
        config = HeadConfig(batch_rows=default_batch(len(vectors)))
        with tempfile.TemporaryDirectory() as scratch:
            found = dynamics_of_heads(data, config, heads=SCORING_HEADS, seed=0, place=Place(scratch=Path(scratch)))
        with Assigner(spherical_kmeans(vectors, k=self.classes, seed=0), device="cpu", threads=1) as assigner:
            cosines, _ = assigner.assign(vectors)
        return {**dict(zip(DYNAMICS, found, strict=True)), "prototypes": 1 - cosines}

    def kept(self, method: str, fraction: float, seed: int) -> Int64:
        """Rows that a method keeps."""
        if fraction == 1:
            return np.arange(len(self.labels))
        setting = setting_of(method, fraction, {})
        scores = {setting.score: np.zeros(len(self.labels), np.float32)} if method == "random" else self.scores
        return chosen(setting, scores, {"label": self.labels.astype(np.int32)}, fraction=fraction, seed=seed)


class TextSet:
    """A labelled set with the vectors of both encoders."""

    def __init__(self, file: Path, mpnet: Path | None, teachers: list[str]) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(file, columns=["split", "text", "label"])
        self._name, self._mpnet, self._texts = file.stem, mpnet, table["text"].to_pylist()
        self._teachers = teachers
        self._labels = table["label"].to_numpy().astype(np.int64)
        self._test: Bool = np.array([split == "test" for split in table["split"].to_pylist()])
        self._held: Bool = ~self._test & np.array([_hashed(text) % 5 == 0 for text in self._texts])

    def measure(self, arms: Iterable[Arm], what: str) -> None:
        """Record every arm that is missing, teacher by teacher."""
        wanted: dict[str, list[Arm]] = {}
        split = "validation" if what == "validate" else "test"
        for arm in arms if what != "print" else ():
            if not all(finished(NAME, self._config(arm, seed, split)) for seed in range(arm.seeds)):
                wanted.setdefault(arm.teacher, []).append(arm)
        part = self.part(split) if wanted else None
        for teacher, missing in wanted.items():
            assert part is not None  # noqa: S101 - for the type checker
            self._measure(part, teacher, missing)

    def _measure(self, part: Part, teacher: str, arms: list[Arm]) -> None:
        from datapipe.proof.heads import HeadRecipe

        each = [(arm, seed) for arm in arms for seed in range(arm.seeds)]
        lanes = [
            Lane(part.kept(arm.method, arm.fraction, seed), seed, arm.alpha, arm.temperature) for arm, seed in each
        ]
        own = {"teacher_accuracy": part.accuracy_of(teacher)}
        soft = part.soft(teacher)
        begun = time.perf_counter()
        found = train_students(
            part.vectors["minilm"], part.labels, soft, lanes, part.asked["minilm"], recipe=HeadRecipe()
        )
        seconds = (time.perf_counter() - begun) / len(lanes)
        for (arm, seed), lane, predicted in zip(each, lanes, found, strict=True):
            told = outcome(predicted, part.truth, classes=part.classes, rows=len(lane.rows), seconds=seconds)
            record(NAME, {**told, **own}, self._config(arm, seed, part.split))

    def _config(self, arm: Arm, seed: int, split: str) -> dict[str, Any]:
        return {
            "dataset": self._name,
            "model": "linear head on all-MiniLM-L6-v2",
            "split": split,
            "fraction": arm.fraction,
            "method": arm.method if arm.fraction < 1 else "full",
            "kd": arm.teacher != "none",
            "alpha": arm.alpha,
            "temperature": arm.temperature,
            "teacher": arm.teacher,
            "noise": 0.0,
            "seed": seed,
        }

    def part(self, split: str) -> Part:
        """What is learnt from and asked when `validation` or `test` rows are asked."""
        learnt, asked = (~self._test & ~self._held, self._held) if split == "validation" else (~self._test, self._test)
        vectors = {"minilm": self._vectors("minilm", "default")}
        if "mpnet" in self._teachers:
            vectors["mpnet"] = self._vectors("mpnet", str(self._mpnet))
        return Part(
            split,
            {name: all_[learnt] for name, all_ in vectors.items()},
            self._labels[learnt],
            {name: all_[asked] for name, all_ in vectors.items()},
            self._labels[asked],
            int(self._labels.max()) + 1,
        )

    def _vectors(self, name: str, model: str) -> Float32:
        from datapipe.embedding.text import embed_texts
        from datapipe.workers.worker import LocalWorker

        cached = CACHE / f"{self._name}-{name}.npy"
        if not cached.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            with LocalWorker(device="auto") as worker:
                np.save(cached, embed_texts(worker, self._texts, model=model).vectors)
        vectors: Float32 = np.load(cached)
        return vectors


def _hashed(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


if __name__ == "__main__":
    main()
