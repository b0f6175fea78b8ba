"""Where a pruner's model runs: a worker that was given, or one of its own, made when it is first used.

    name on a worker | ModelSpec -> Home -> worker, digest, calibration

Raises `ConfigError` where a worker cannot tell the digest of a model, `WorkerStoppedError` once it is closed, and what
loading a model raises.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from datapipe.errors import ConfigError, ModelNotFoundError, WorkerStoppedError
from datapipe.workers.folder import resolve
from provence.calibration import Calibration
from provence.loading import DEFAULT, Backend, named, read_calibration, resolved

if TYPE_CHECKING:
    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.protocol import Worker
    from datapipe.workers.spec import DtypeName, ModelSpec

__all__ = ["CALIBRATION_PATH", "Home", "opened"]

CALIBRATION_PATH = "/v1/prune/calibration"
"""Where a server tells the calibration of a model."""

_NEEDS = "target_recall needs a calibration of this model"
_MAKE = "make one with provence calibrate and pass it as calibration= (--calibration)"


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
        self._closed = False
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
        """The worker, if there is one already and this is not closed."""
        return None if self._closed else self._given or self._own

    @property
    def worker(self) -> Worker:
        """The worker; the first time one of its own is made. The model is loaded when it is first asked for.

        Raises:
            WorkerStoppedError: It was closed.
        """
        with self._lock:
            if self._closed:
                raise WorkerStoppedError(
                    f"this pruner of {self.model!r} is closed, so it prunes no more; make another with Pruner.load"
                )
            if self._given is not None:
                return self._given
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

    def calibration(self) -> Calibration:
        """The calibration that lies beside the model where it runs; loads the model.

        Raises:
            ConfigError: There is none, or the worker cannot tell.
            WorkerError: A server cannot be reached.
        """
        post = getattr(self.worker, "post", None)
        if post is not None:
            try:
                told = post(CALIBRATION_PATH, {"model": self.model})
            except ConfigError as error:
                raise ConfigError(f"{_NEEDS}, and {self.worker!r} has none ({error}): {_MAKE}") from error
            return Calibration.of(told["calibration"], name=f"of {self.model} at {self.worker!r}")
        load = getattr(self.worker, "load", None)
        spec = None if load is None else getattr(load(self.model, task="prune"), "spec", None)
        found = None if spec is None else read_calibration(None, resolve(spec))
        if found is None:
            who = "its folder has" if spec is not None else f"{type(self.worker).__name__} knows of"
            raise ConfigError(f"{_NEEDS}, and {who} none: {_MAKE}")
        return found

    def close(self) -> None:
        """Close a worker of its own and refuse everything after; may be called again."""
        with self._lock:
            own, self._own, self._closed = self._own, None, True
        if own is not None:
            own.close()

    def _made(self) -> Worker:
        specs = [self._spec] if self._spec is not None else []
        if self._backend == "onnx":
            from provence.onnx.worker import OnnxWorker

            return OnnxWorker(*specs)
        from datapipe.workers.worker import LocalWorker

        return LocalWorker(specs, device=self._device)


def opened(
    model: str,
    *,
    device: str,
    dtype: DtypeName | None,
    max_length: int | None,
    backend: Backend,
    worker: Worker | None,
) -> tuple[Home, ModelFolder | None]:
    """A home as `Pruner.load` is asked for it, and the folder in which a calibration of its model may lie.

    Raises:
        ModelError: There is no such model, or it is of no family.
        ConfigError: An option is out of range, or stated beside `worker`.
    """
    if backend not in get_args(Backend):
        raise ConfigError(f"backend must be one of {', '.join(get_args(Backend))}. Got {backend!r}")
    if worker is not None:
        if device != "auto" or dtype is not None or max_length is not None or backend != "torch":
            raise ConfigError("device, dtype, max_length and backend are the worker's own matter; state them there")
        return Home(model, worker=worker), None
    if backend == "onnx":
        if device not in {"auto", "cpu"} or dtype is not None:
            raise ConfigError("the backend onnx computes in int8 on the CPU: leave device and dtype out")
        own = named(model)
        spec, folder = replace(own, max_length=max_length or own.max_length), None
    else:
        spec, folder = resolved(model, dtype=dtype, max_length=max_length)
    return Home(spec.name, spec=spec, device=device, backend=backend), folder


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
