"""The embedder of a run: its name, digest and platform, and the worker of this process that serves it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

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

    @cached_property
    def _worker(self) -> LocalWorker:
        from datapipe.workers.worker import LocalWorker

        return LocalWorker(device=self._device)

    @cached_property
    def _loaded(self) -> LoadedModel:
        return self._worker.load(self.name, task="embed")

    def worker(self) -> Worker:
        """The worker of this process."""
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
