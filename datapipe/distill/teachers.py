"""Teachers of rows: classifiers of a worker, and heads trained on the run's own vectors and labels.

    rows -> ClassifierTeacher (text or image, in process or behind a server)   -> log probabilities of the run's classes
    rows -> HeadTeacher (frozen vectors; each row by a head that has not seen it) -> the same

A head that has learnt a row gives the row's label back, right or wrong, so it would teach nothing that the label does
not say, and wrong labels twice. So the rows are cut into folds by hash order, and each row is judged by the head of the
other folds; rows that screening took out are in no training, rows without a label are judged like the others.

Raises `SoftLabelError` for classes that are not the run's and for logits that are no numbers, naming the row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from datapipe.distill.codec import log_softmax
from datapipe.distill.labels import class_places
from datapipe.errors import ConfigError, ItemError, SoftLabelError, WorkerError
from datapipe.storage.order import hash_order, seed_for
from datapipe.storage.rowid import ids_to_hex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.distill.labels import LabelMap
    from datapipe.proxies.heads import Head, HeadData
    from datapipe.storage.arrays import Float32, Float64, Ids, Int64
    from datapipe.workers.protocol import Item, Result, Worker

__all__ = [
    "HEAD",
    "IMAGE_BATCH",
    "ClassifierTeacher",
    "HeadSettings",
    "HeadTeacher",
    "RowBatch",
    "RowTeacher",
    "ask",
    "open_worker",
    "shown_name",
]

HEAD = "head"
"""Name of the teacher that is trained on the run itself."""

IMAGE_BATCH = 8
"""Images of a batch; calls are filled up to a multiple, so that every image is computed in a batch of one size."""

_ANY_TOKENS = 1 << 40
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowBatch:
    """Rows to be judged.

    Attributes:
        ids: uint64 (rows, 2).
        places: Their places among all rows of the run, int64 (rows,).
        texts: Of each, where the run has texts.
        images: The image file of each, where the run has images.
    """

    ids: Ids
    places: Int64
    texts: Sequence[str] | None = None
    images: Sequence[bytes] | None = None


class RowTeacher(Protocol):
    """Judges rows.

    Attributes:
        name: As shown.
        digest: Of what it knows.
        platform: What changes its last bits.
    """

    name: str
    digest: str

    @property
    def platform(self) -> Mapping[str, str]:
        """What changes its last bits from one machine to the next."""

    def log_probabilities(self, rows: RowBatch) -> Float64:
        """Return log probabilities of the run's classes in nats, float64 (rows, classes)."""


def shown_name(model: str) -> str:
    """Return the name of a model without the way to it: the same on every machine."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def open_worker(url: str | None, *, device: str, images: bool, threads: int | None = None) -> Any:
    """Return the worker that runs teachers: the server at `url`, else one of this process.

    Raises:
        ConfigError: The URL is none, or this machine has no such device.
    """
    if url is not None:
        from datapipe.workers.http.client import HttpWorker

        return HttpWorker(url)
    from datapipe.workers.device import resolve_device
    from datapipe.workers.worker import LocalWorker

    own = threads if resolve_device(device).type == "cpu" else None
    if images:
        return LocalWorker(device=device, threads=own, token_budget=_ANY_TOKENS, max_items=IMAGE_BATCH)
    return LocalWorker(device=device, threads=own)


def ask(worker: Worker, task: str, items: Sequence[Item], *, model: str, ids: Ids) -> list[Result]:
    """Run a task over rows.

    Args:
        worker: Where.
        task: Its name.
        items: One a row, perhaps more at the end that fill a batch.
        model: Its name at the worker.
        ids: Of the rows.

    Raises:
        SoftLabelError: The teacher cannot take a row, or what it says of it is no number; names the row.
        WorkerError: The device failed.
    """
    try:
        return worker.run(task, items, model=model)
    except ItemError as error:
        row = ids_to_hex(ids)[min(error.index, len(ids) - 1)]
        raise SoftLabelError(f"teacher {shown_name(model)} cannot take row {row}: {error}") from error
    except WorkerError as error:
        if "not finite" not in str(error):
            raise
        row = ids_to_hex(ids)[_culprit(worker, task, items[: len(ids)], model)]
        raise SoftLabelError(
            f"teacher {shown_name(model)} gives logits that are no numbers for row {row}: {error}. Are its weights "
            "whole, and does it overflow in this precision?"
        ) from error


def _culprit(worker: Worker, task: str, items: Sequence[Item], model: str) -> int:
    """Place of an item that fails, by halves."""
    low, high = 0, len(items)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            worker.run(task, items[low:middle], model=model)
        except WorkerError:
            high = middle
        else:
            low = middle
    return low


class ClassifierTeacher:
    """A classifier of texts or images at a worker.

    Args:
        model: A folder, a hub id, or a name at the server.
        worker: Where it runs.
        images: Whether it classifies images.
        classes: Names of the run's classes in their order; None takes the teacher's own.
        mapping: See `class_places`.

    Attributes:
        classes: Names of the classes of its answers, in order.

    Raises:
        ModelError: It is no classifier, or cannot be loaded.
        SoftLabelError: Its classes are not the run's.
    """

    def __init__(
        self,
        model: str,
        *,
        worker: Any,
        images: bool,
        classes: Sequence[str] | None,
        mapping: LabelMap | None = None,
    ) -> None:
        self._model, self._worker, self._images = model, worker, images
        self._task = "classify_image" if images else "classify"
        loaded = worker.load(model, task=self._task)
        self.name, self.digest = shown_name(model), str(loaded.digest)
        self._platform = dict(loaded.bits)
        count, named = _classes_of(loaded)
        if classes is None:
            classes = list(mapping) if isinstance(mapping, list) else named or [str(at) for at in range(count)]
        self.classes = tuple(classes)
        self._places = class_places(self.name, named, self.classes, count=count, mapping=mapping)

    @property
    def platform(self) -> Mapping[str, str]:
        """As the worker states it."""
        return self._platform

    def log_probabilities(self, rows: RowBatch) -> Float64:
        """Log softmax of the logits, in the order of the run's classes."""
        found = ask(self._worker, self._task, self._items(rows), model=self._model, ids=rows.ids)
        logits: Float32 = np.stack([each.logits for each in found[: len(rows.ids)]])
        return log_softmax(logits[:, self._places])

    def _items(self, rows: RowBatch) -> list[Item]:
        if self._images:
            from datapipe.workers.tasks.image import ImageItem

            items = [ImageItem(image) for image in rows.images or ()]
            return items + [items[-1]] * (-len(items) % IMAGE_BATCH)
        from datapipe.workers.tasks.classify import ClassifyItem

        return [ClassifyItem(text) for text in rows.texts or ()]


def _classes_of(loaded: Any) -> tuple[int, list[str] | None]:
    """Number and names of a loaded model's classes; a server tells no names."""
    labels = getattr(getattr(loaded, "task", None), "labels", None)
    return (int(loaded.dim), None) if labels is None else (len(labels), list(labels))


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
