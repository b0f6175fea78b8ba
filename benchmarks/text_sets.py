"""Labelled text sets of the pruning benchmarks: rows, vectors, scores as a run computes them, and what a method keeps.

    FILE.parquet -> TextSet.read -> vectors, once -> scores of a seed, once -> kept(method, fraction, seed)

A file has text, label and split. Test rows are those of the split `test`; where all or none are, every fifth row by a
hash of its text. Metrics see training rows alone. Vectors and scores are kept in `CACHE`, a folder for nothing else.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.image_plans import BY_VECTORS, FRACTIONS, PRESETS, Setting, chosen

if TYPE_CHECKING:
    from datapipe.config import MetricName
    from datapipe.storage.arrays import Float32, Int32, Int64

__all__ = ["ENCODER", "FRACTIONS", "METHODS", "TextSet", "setting_of"]

ENCODER = "all-MiniLM-L6-v2"
CACHE = Path("/tmp") / "secateur-pruning-text"  # noqa: S108 - made again where it is lost
METHODS = PRESETS | {
    "default_label_free": ("default_label_free", "pseudo_label_aum"),
    "default_labels": ("default_labels", "aum"),
}
"""Method slug: preset of the selection engine, score that it reads."""
DYNAMICS: tuple[MetricName, ...] = ("el2n", "aum", "dual")
"""Scores that one course of trainings gives: each costs the whole of it."""
SCORES: tuple[MetricName, ...] = (*DYNAMICS, "prototypes", "pseudo_label_aum")


@dataclass(frozen=True, eq=False)
class TextSet:
    """One set.

    Attributes:
        name: That of its file.
        texts: Of all rows.
        labels: Class of each row, int64 (rows,).
        train: Places of the training rows, ascending.
        test: Places of the test rows, ascending.
    """

    name: str
    texts: list[str]
    labels: Int64
    train: Int64
    test: Int64

    @classmethod
    def read(cls, file: Path) -> TextSet:
        """Read a file."""
        import pyarrow.parquet as pq

        rows = pq.read_table(file, columns=["split", "text", "label"])
        texts, splits = rows["text"].to_pylist(), np.array(rows["split"].to_pylist())
        train, test = splits == "train", splits == "test"
        if not (train.any() and test.any()):
            test = np.array([int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 5 == 0 for text in texts])
            train = ~test
        labels = rows["label"].to_numpy().astype(np.int64)
        return cls(file.stem, texts, labels, np.flatnonzero(train), np.flatnonzero(test))

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.labels.max()) + 1

    @cached_property
    def vectors(self) -> Float32:
        """Unit vectors of all rows, float32 (rows, dim)."""
        file = CACHE / f"{self.name}.npy"
        if not file.exists():
            from datapipe.embedding.text import embed_texts
            from datapipe.workers.worker import LocalWorker

            CACHE.mkdir(parents=True, exist_ok=True)
            with LocalWorker(device="auto") as worker:
                np.save(file, embed_texts(worker, self.texts, model=ENCODER).vectors)
        found: Float32 = np.load(file)
        return found

    def scores(self, seed: int) -> tuple[dict[str, Float32], dict[str, float]]:
        """Scores of the training rows with this seed, float32 (training rows,) each, and seconds that they took."""
        file = CACHE / f"{self.name}-scores-{seed}.npz"
        if not file.exists():
            np.savez(file, **self._scored(seed))
        with np.load(file) as known:
            seconds: dict[str, float] = {name: float(known[f"{name} seconds"]) for name in SCORES}
            return {name: known[name] for name in SCORES}, seconds

    def kept(self, method: str, fraction: float, seed: int) -> Int64:
        """Places of the training rows that a method keeps, ascending."""
        groups: dict[str, Int32] = {"label": self.labels[self.train].astype(np.int32)}
        setting = setting_of(method, fraction)
        found: Int64 = self.train[chosen(setting, self.scores(seed)[0], groups, fraction=fraction, seed=seed)]
        return found

    def _scored(self, seed: int) -> dict[str, Any]:
        import polars as pl

        from datapipe.curation import Curation

        labels = self.labels[self.train].astype(str)
        frame = pl.DataFrame({"vector": self.vectors[self.train].tolist(), "label": labels})
        found: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            columns = {"embedding_column": "vector", "label_column": "label"}
            for name in SCORES:
                run = Curation(frame, out=folder, metric=name, seed=seed, **columns)  # type: ignore[arg-type]
                ingested, started = run.outputs(until="ingest")["ingest"], time.perf_counter()
                tables = run.outputs(until="score")["score"].tables(columns=[name])
                values = np.full(len(self.train), np.nan, np.float32)
                for place, table in zip(ingested.tables("places", columns=["row"]), tables, strict=True):
                    values[place["row"].to_numpy() - 1] = table[name].to_numpy()
                found[name], found[f"{name} seconds"] = values, time.perf_counter() - started
        course = sum(found[f"{name} seconds"] for name in DYNAMICS)
        return found | {f"{name} seconds": course for name in DYNAMICS}


def setting_of(method: str, fraction: float) -> Setting:
    """How a method of `METHODS` chooses at a fraction; those that read vectors alone have no strata of classes."""
    from datapipe.selection.presets import get_preset

    preset, score = METHODS[method]
    groups = () if method in BY_VECTORS else ("label",)
    plan, group = get_preset(preset).settings(fraction, groups=groups)  # type: ignore[arg-type]
    return Setting(score=score, plan=plan, group=group)
