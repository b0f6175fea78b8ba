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

from benchmarks.image_plans import BY_VECTORS, FRACTIONS, PRESETS, Setting

if TYPE_CHECKING:
    from datapipe.config import MetricName
    from datapipe.storage.arrays import Float32, Int64

__all__ = ["ENCODER", "FRACTIONS", "METHODS", "TextSet", "told_setting"]

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
PLACE = "mean_probability"
"""Comes with dual: that at which its density is taken."""


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
        known: dict[str, Any] = {}
        if file.exists():
            with np.load(file) as found:
                known = dict(found)
        missing = [name for name in SCORES if name not in known or (name == "dual" and PLACE not in known)]
        if missing:
            known |= self._scored(seed, missing)
            np.savez(file, **known)
        course = sum(float(known[f"{name} seconds"]) for name in DYNAMICS)
        seconds: dict[str, float] = {name: float(known[f"{name} seconds"]) for name in SCORES}
        seconds |= dict.fromkeys(DYNAMICS, course)
        return {name: known[name] for name in (*SCORES, PLACE)}, seconds

    def kept(self, method: str, fraction: float, seed: int) -> Int64:
        """Places of the training rows that a method keeps, ascending; ties and random orders by the seed's hashes."""
        from datapipe.selection.budget import Budget
        from datapipe.selection.engine import select
        from datapipe.selection.result import ScoreBatch

        setting, scores = _setting_of(method, fraction), self.scores(seed)[0]
        labels = self.labels[self.train].astype(np.int32)
        place = _place(method)
        count = len(self.train)
        batch = ScoreBatch(
            ids=np.stack([np.zeros(count, np.uint64), np.arange(count, dtype=np.uint64)], 1),
            scores=scores[setting.score],
            groups=labels if setting.group is not None else None,
            places=scores[place] if place is not None else None,
        )
        with (
            tempfile.TemporaryDirectory() as scratch,
            select(
                lambda: iter([batch]),
                setting.plan,
                Budget(fraction=fraction),
                seed=seed,
                scratch=Path(scratch),
                groups=[str(each) for each in range(self.classes)] if setting.group is not None else [],
                placed=place is not None,
            ) as found,
        ):
            chosen = np.concatenate([part["kept"].to_numpy() for part in found])
        kept: Int64 = self.train[np.flatnonzero(chosen)]
        return kept

    def _scored(self, seed: int, names: list[MetricName]) -> dict[str, Any]:
        import polars as pl

        from datapipe.curation import Curation

        labels = self.labels[self.train].astype(str)
        frame = pl.DataFrame({"vector": self.vectors[self.train].tolist(), "label": labels})
        found: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            columns = {"embedding_column": "vector", "label_column": "label"}
            for name in names:
                run = Curation(frame, out=folder, metric=name, seed=seed, **columns)  # type: ignore[arg-type]
                ingested, started = run.outputs(until="ingest")["ingest"], time.perf_counter()
                wanted = [name, PLACE] if name == "dual" else [name]
                tables = list(run.outputs(until="score")["score"].tables(columns=wanted))
                found[f"{name} seconds"] = time.perf_counter() - started
                rows = np.concatenate([place["row"].to_numpy() for place in ingested.tables("places", columns=["row"])])
                for each in wanted:
                    found[each] = np.full(len(self.train), np.nan, np.float32)
                    found[each][rows - 1] = np.concatenate([table[each].to_numpy() for table in tables])
        return found


def _setting_of(method: str, fraction: float) -> Setting:
    """How a method of `METHODS` chooses at a fraction; those that read vectors alone have no strata of classes."""
    from datapipe.selection.presets import get_preset

    preset, score = METHODS[method]
    groups = () if method in BY_VECTORS else ("label",)
    plan, group = get_preset(preset).settings(fraction, groups=groups)  # type: ignore[arg-type]
    return Setting(score=score, plan=plan, group=group)


def told_setting(method: str, fraction: float) -> dict[str, Any]:
    """How a method chooses at a fraction, as plain values."""
    place = _place(method)
    return _setting_of(method, fraction).as_dict() | ({"place": place} if place is not None else {})


def _place(method: str) -> str | None:
    """Column beside the score at which a method takes its density."""
    from datapipe.selection.presets import get_preset

    return get_preset(METHODS[method][0]).place
