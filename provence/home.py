"""Where a pruner's model runs: a worker that was given, or one of its own, made when it is first used.

    name on a worker | ModelSpec -> Home -> worker, digest

Raises `ConfigError` where a worker cannot tell the digest of a model, and what loading a model raises.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from datapipe.errors import ConfigError, ModelNotFoundError
from provence.loading import DEFAULT, named

if TYPE_CHECKING:
    from datapipe.workers.protocol import Worker
    from datapipe.workers.spec import ModelSpec
    from provence.loading import Backend

__all__ = ["Home"]


class Home:
    """A model and the worker that runs it; several threads may use one.

    It can be pickled: a copy of one with a worker uses that worker's copy, a copy of one without loads its model again.

    Args:
        model: Name of the model on the worker; `default` on a `LocalWorker` that was given the default pruner is that.
        worker: Where it runs; None makes one of `spec`.
        spec: The model, where there is no worker.
        device: Device of a worker of its own.
        backend: What a worker of its own computes with.

    Attributes:
        model: Name of the model.
    """

    def __init__(
        self,
        model: str,
        *,
        worker: Worker | None = None,
        spec: ModelSpec | None = None,
        device: str = "auto",
        backend: Backend = "torch",
    ) -> None:
        self.model = _named(model, worker)
        self._given, self._spec, self._device, self._backend = worker, spec, device, backend
        self._own: Worker | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_own", "_lock"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._own, self._lock = None, threading.Lock()

    def __repr__(self) -> str:
        return f"{self.model!r}, worker={self._given!r}"

    @property
    def open(self) -> Worker | None:
        """The worker, if there is one already."""
        return self._given or self._own

    @property
    def worker(self) -> Worker:
        """The worker; the first time one of its own is made. The model is loaded when it is first asked for."""
        if self._given is not None:
            return self._given
        with self._lock:
            if self._own is None:
                self._own = self._made()
            return self._own

    @property
    def digest(self) -> str:
        """SHA-256 of the model's files; loads the model. Raises `ConfigError` if the worker cannot tell."""
        load = getattr(self.worker, "load", None)
        if load is None:
            raise ConfigError(f"{type(self._given).__name__} cannot state the digest of {self.model!r}")
        return str(load(self.model, task="prune").digest)

    def close(self) -> None:
        """Close a worker of its own; may be called again."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.close()

    def _made(self) -> Worker:
        specs = [self._spec] if self._spec is not None else []
        if self._backend == "onnx":
            from provence.onnx.worker import OnnxWorker

            return OnnxWorker(*specs)
        from datapipe.workers.worker import LocalWorker

        return LocalWorker(specs, device=self._device)


def _named(model: str, worker: Worker | None) -> str:
    """The name that a worker knows the model by. `default` by itself is an embedder to a `LocalWorker`."""
    if model != DEFAULT or worker is None:
        return model
    from datapipe.workers.worker import LocalWorker

    try:
        known = named(DEFAULT).name
    except ModelNotFoundError:  # an installation without it
        return model
    return known if isinstance(worker, LocalWorker) and known in worker.models else model
