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


class Embedder:
    """A model to embed with, loaded when it is first asked for.

    Args:
        model: `default`, `embedded:NAME`, a local folder, or a hub id.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
    """

    def __init__(self, model: str, *, device: str) -> None:
        self.name = DEFAULT_EMBEDDER.name if model == "default" else model
        self._device = device
        self._promised: Mapping[str, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Name, kind of device, and the bits that the run's identity promises; Ray says which device of that kind."""
        promised = {**self.bits, "model": self.digest}
        return {"name": self.name, "_device": self.bits["device"], "_promised": promised}

    @cached_property
    def _worker(self) -> LocalWorker:
        from datapipe.workers.device import resolve_device
        from datapipe.workers.worker import LocalWorker

        on_cpu = resolve_device(self._device).type == "cpu"
        return LocalWorker(device=self._device, threads=Settings().threads if on_cpu else None)

    @cached_property
    def _loaded(self) -> LoadedModel:
        return self._worker.load(self.name, task="embed")

    def worker(self) -> Worker:
        """The worker of this process. Raises `StageError` where its vectors would not be those of the run."""
        if self._promised is not None:
            check_platform(self._promised, {**self.bits, "model": self.digest})
        return self._worker

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
