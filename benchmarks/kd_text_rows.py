"""The planned sets of the fine-tuned text benchmark, and what its teachers say of their rows.

FOLDER/SET.npz of `text_finetune` -> Texts; FOLDER/teachers/SET*.npz -> taught
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.storage.arrays import Float32, Int64

VALIDATION = 5
"""Every so-many-th training row is for validation."""


@dataclass(frozen=True, eq=False)
class Texts:
    """A planned set.

    Attributes:
        name: That of its file.
        texts: Of all rows.
        labels: int64 (rows,).
        train: Places of the training rows.
        test: Places of the test rows.
        kept: Packed bits by `kept METHOD FRACTION SEED`.
        settings: How each method chose, by `METHOD FRACTION`.
    """

    name: str
    texts: list[str]
    labels: Int64
    train: Int64
    test: Int64
    kept: dict[str, Any]
    settings: dict[str, Any]

    @classmethod
    def read(cls, file: Path) -> Texts:
        with np.load(file) as known:
            kept = {name: known[name] for name in known.files if name.startswith("kept ")}
            texts, settings = (json.loads(str(known[name])) for name in ("texts", "settings"))
            return cls(file.stem, texts, known["labels"], known["train"], known["test"], kept, settings)

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def cut(self, split: str) -> tuple[Int64, Int64]:
        """Places of the rows learnt from and of those asked."""
        if split == "test":
            return self.train, self.test
        learnt = np.arange(len(self.train)) % VALIDATION != 0
        return self.train[learnt], self.train[~learnt]

    def arm(self, method: str, fraction: float, seed: int) -> Int64:
        if fraction == 1:
            return self.train
        chosen = np.unpackbits(self.kept[f"kept {method} {fraction} {seed}"], count=len(self.labels))
        return np.flatnonzero(chosen).astype(np.int64)


def spread(texts: Texts, rows: Int64, found: Float32) -> Float32:
    """Log-probabilities of all rows; those not told of are even, and in no arm."""
    whole = np.full((len(texts.labels), texts.classes), -np.log(texts.classes), np.float32)
    whole[rows] = found
    return whole


def taught(work: Path, texts: Texts, teacher: str, split: str) -> Float32:
    file = work / "teachers" / (f"{texts.name}.npz" if teacher == "mpnet_head" else f"{texts.name}-self.npz")
    with np.load(file) as known:
        found: Float32 = known[f"{teacher} {split}"].astype(np.float32)
    return found
