"""The run's own teacher: heads trained on its frozen vectors and its labels.

    vectors, labels -> folds by hash order -> a head of each fold's other rows -> log probabilities of that fold's rows

A head that has learnt a row gives the row's label back, right or wrong, so it would teach nothing that the label does
not say, and wrong labels twice. So each row is judged by a head that has not seen it. Rows that screening took out are
in no training; rows without a label are judged like the others. Raises `MetricError` where a head cannot learn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from datapipe.distill.codec import log_softmax
from datapipe.errors import ConfigError, SoftLabelError
from datapipe.storage.order import hash_order, seed_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.distill.teachers import RowBatch
    from datapipe.proxies.heads import Head, HeadData
    from datapipe.storage.arrays import Float64, Ids, Int64

__all__ = ["HEAD", "HeadSettings", "HeadTeacher"]

HEAD = "head"
"""Name of the teacher that is trained on the run itself."""

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How the run's own teacher learns.

    Attributes:
        folds: Parts of the rows; each is judged by a head that learnt the others. 1: one head learns and judges all.
        hidden: Width of the hidden layer; 0 for linear heads.
        epochs: Passes over the rows.
        learning_rate: Of AdamW at the start.
        seed: Of folds and heads.

    Raises:
        ConfigError: There are no folds, or more than 100.
    """

    folds: int = 5
    hidden: int = 256
    epochs: int = 20
    learning_rate: float = 0.003
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.folds <= 100:  # noqa: PLR2004 - a head each
            raise ConfigError(f"folds must be 1 ... 100, got {self.folds}")


@dataclass
class HeadTeacher:
    """Heads trained on the run's frozen vectors and its labels.

    Attributes:
        settings: How they learn.
        digest: Of the settings and of all that the heads learn from.
        device: Where.
        platform: What changes the last bits there.
        name: `head`.
    """

    settings: HeadSettings
    digest: str
    device: str
    platform: Mapping[str, str]
    name: str = HEAD
    _heads: list[Head] = field(default_factory=list, repr=False)
    _data: HeadData | None = field(default=None, repr=False)
    _fold: Int64 | None = field(default=None, repr=False)

    def learn(self, data: HeadData, ids: Ids, *, threads: int | None) -> None:
        """Train the heads.

        Args:
            data: All rows of the run, and which of them to learn from.
            ids: Of all rows, uint64 (rows, 2).
            threads: Host threads; without effect on the result.

        Raises:
            MetricError: The rows outside a fold have fewer than two classes.
        """
        from dataclasses import replace

        from datapipe.proxies.heads import HeadConfig, each_head, train_head
        from datapipe.proxies.training import default_batch

        settings = self.settings
        keys = hash_order(ids, seed=seed_for("folds of a teacher", settings.seed))
        fold = (keys % np.uint64(settings.folds)).astype(np.int64)
        parts = [data]
        if settings.folds > 1:
            parts = [replace(data, trained=data.trained[fold[data.trained] != at]) for at in range(settings.folds)]
        found: dict[int, Head] = {}

        def work(at: int) -> None:
            config = HeadConfig(
                hidden=settings.hidden,
                epochs=settings.epochs,
                batch_rows=default_batch(len(parts[at].trained)),
                learning_rate=settings.learning_rate,
            )
            found[at] = train_head(parts[at], config, seed=settings.seed + at, device=self.device, watch=None)

        each_head(work, settings.folds, device=self.device, threads=threads)
        self._heads = [found[at] for at in range(settings.folds)]
        self._data, self._fold = data, fold

    def log_probabilities(self, rows: RowBatch) -> Float64:
        """Each row by the head that has not seen it. Raises `SoftLabelError` before `learn`."""
        import torch

        if self._data is None or self._fold is None:
            raise SoftLabelError("the head has not learnt yet; this is a bug")
        place = torch.device(self.device)
        found = np.empty((len(rows.places), self._data.classes), np.float64)
        with torch.inference_mode():
            for at, head in enumerate(self._heads):
                own = np.flatnonzero(self._fold[rows.places] == at) if len(self._heads) > 1 else slice(None)
                vectors = self._data.vectors(rows.places[own], place)
                if not len(vectors):
                    continue
                chances = head.probabilities(head.features(vectors)).double().clamp_(min=_TINY)
                found[own] = chances.log().cpu().numpy()
        return log_softmax(found)
