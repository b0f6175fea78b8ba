"""Teachers of rows: what they are, and classifiers of texts or images at a worker, in process or behind a server.

    rows -> ClassifierTeacher -> logits -> log probabilities of the run's classes, in their order

Raises `SoftLabelError` for classes that are not the run's and for logits that are no numbers, naming the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from datapipe.distill.codec import log_softmax
from datapipe.distill.header import Teacher
from datapipe.distill.labels import class_places
from datapipe.errors import ItemError, SoftLabelError, WorkerError
from datapipe.storage.rowid import ids_to_hex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.distill.labels import LabelMap
    from datapipe.storage.arrays import Float32, Float64, Ids, Int64
    from datapipe.workers.protocol import Item, Result, Worker
    from datapipe.workers.spec import ModelSpec

__all__ = [
    "IMAGE_BATCH",
    "CausalTeachers",
    "ClassifierTeacher",
    "RowBatch",
    "RowTeacher",
    "ask",
    "open_causal",
    "open_worker",
    "shown_name",
]

IMAGE_BATCH = 8
"""Images of a batch; calls are filled up to a multiple, so that every image is computed in a batch of one size."""

_ANY_TOKENS = 1 << 40


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


@dataclass(frozen=True, kw_only=True, eq=False)
class CausalTeachers:
    """Causal language models, loaded, that speak as one.

    Attributes:
        worker: Runs them; to be closed.
        model: What they are called there.
        loaded: Them, on its device.
        teachers: Name and digest of each.
    """

    worker: Any
    model: str
    loaded: Any
    teachers: tuple[Teacher, ...]


def open_causal(models: Sequence[str], *, url: str | None, device: str, threads: int | None = None) -> CausalTeachers:
    """Load causal teachers; several speak as the mean of their log probabilities, normalised again, in this process.

    Raises:
        ModelError: One cannot be loaded, or they read different tokens.
    """
    from datapipe.workers.folder import resolve
    from datapipe.workers.spec import ModelSpec, spec_of

    first, *others = models
    spec = None
    if others:
        called = " + ".join(shown_name(each) for each in models)
        spec = ModelSpec(called, first, task="teach", beside=tuple(others))
    model = first if spec is None else spec.name
    worker = open_worker(url, device=device, images=False, threads=threads, model=spec)
    try:
        loaded = worker.load(model, task="teach")
        digests = [resolve(spec_of(each)).digest for each in models] if others else [str(loaded.digest)]
    except BaseException:
        worker.close()
        raise
    teachers = tuple(Teacher(shown_name(each), digest) for each, digest in zip(models, digests, strict=True))
    return CausalTeachers(worker=worker, model=model, loaded=loaded, teachers=teachers)


def open_worker(
    url: str | None, *, device: str, images: bool, threads: int | None = None, model: ModelSpec | None = None
) -> Any:
    """Return the worker that runs teachers: the server at `url`, else one of this process, which knows `model`.

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
    return LocalWorker(() if model is None else (model,), device=device, threads=own)


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
