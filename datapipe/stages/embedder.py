"""The embedder of a run: its name, digest and platform, and the worker of this process that serves it.

It travels to other processes without its worker and makes one of its own there. A process that would compute other
bits than the run's identity says (another kind of processor, another model file) refuses with `StageError`.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

from datapipe.errors import StageError
from datapipe.settings import Settings
from datapipe.workers.spec import DEFAULT_EMBEDDER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.workers.protocol import Worker
    from datapipe.workers.registry import LoadedModel
    from datapipe.workers.worker import LocalWorker

IMAGE_BATCH = {"cpu": 8, "cuda": 128}
"""Images of a batch, on every machine of a kind; a divisor of the images that the task prepares at a time."""

_ANY_TOKENS = 1 << 40


class Embedder:
    """A model to embed with, loaded when it is first asked for.

    Args:
        model: `default`, `embedded:NAME`, a local folder, or a hub id.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        task: `embed` for texts, `embed_image` for images.
    """

    def __init__(self, model: str, *, device: str, task: str = "embed") -> None:
        self.name = DEFAULT_EMBEDDER.name if model == "default" else model
        self._device, self._task = device, task
        self._promised: Mapping[str, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Name, kind of device, and the bits that the run's identity promises; Ray says which device of that kind."""
        promised = {**self.bits, "model": self.digest}
        return {"name": self.name, "_device": self.bits["device"], "_task": self._task, "_promised": promised}

    @cached_property
    def _worker(self) -> LocalWorker:
        from datapipe.workers.device import resolve_device
        from datapipe.workers.worker import LocalWorker

        on_cpu = resolve_device(self._device).type == "cpu"
        threads = Settings().threads if on_cpu else None
        if self._task == "embed":
            return LocalWorker(device=self._device, threads=threads)
        # Images of one model are of one size: batches are counted, so that all are alike.
        return LocalWorker(device=self._device, threads=threads, token_budget=_ANY_TOKENS, max_items=self.batch)

    @cached_property
    def _loaded(self) -> LoadedModel:
        return self._worker.load(self.name, task=self._task)

    def worker(self) -> Worker:
        """The worker of this process. Raises `StageError` where its vectors would not be those of the run."""
        if self._promised is not None:
            check_platform(self._promised, {**self.bits, "model": self.digest})
        return self._worker

    @property
    def batch(self) -> int:
        """Images of a batch; 1 for texts, whose batches are cut by length."""
        from datapipe.workers.device import resolve_device

        return IMAGE_BATCH[resolve_device(self._device).type] if self._task == "embed_image" else 1

    @property
    def digest(self) -> str:
        """Digest of the model's files."""
        return self._loaded.digest

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._loaded.dim

    @property
    def bits(self) -> Mapping[str, str]:
        """What changes the last bits of a vector: device kind, dtype, torch version, intra-op threads."""
        return self._loaded.bits


def arithmetic_bits(device: str) -> dict[str, str]:
    """What changes the last bits of products and sums on a device: its kind and the torch version."""
    import torch

    kind = device.split(":", maxsplit=1)[0]
    name = torch.cuda.get_device_name(device) if kind == "cuda" else "cpu"
    return {"device": name, "dtype": "float32", "torch": torch.__version__, "threads": "1"}


def check_platform(promised: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise `StageError` where this process computes other bits than a stage's identity says; names what differs."""
    other = [
        f"{name} {found.get(name)} instead of {value}" for name, value in promised.items() if found.get(name) != value
    ]
    if other:
        raise StageError(
            f"node {os.uname().nodename} would compute other bits than the one that began the run: {', '.join(other)}. "
            "Use machines of one kind, with the same packages and models"
        )
