"""A worker that prunes on the CPU without torch: the same contract as every other, for the tasks of a pruner.

    run, arun -> Call -> Passes.steps (prepare, batches on threads) -> results, in the order of the items

While one chunk of items is computed the next is prepared. Every batch belongs to one call. Results depend on the items
alone: not on the batch, on the number of threads, or on other traffic. Raises what `Worker.run` states.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from datapipe.errors import (
    ConfigError,
    DatapipeError,
    DeadlineError,
    ModelError,
    OverloadedError,
    WorkerStoppedError,
)
from datapipe.workers.device import physical_cores
from datapipe.workers.folder import resolve
from datapipe.workers.protocol import Health, Priority
from provence.onnx.engine import OnnxModel
from provence.onnx.export import spec_of_pruner
from provence.onnx.layout import open_exported
from provence.onnx.passes import TASKS, Call, Passes
from provence.onnx.threads import Threads
from provence.prepare import Preparer, window_length
from provence.tokens import UnitTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from datapipe.workers.protocol import Item, Result
    from datapipe.workers.spec import ModelSpec

__all__ = ["LoadedOnnx", "OnnxWorker"]

_LATE = "the deadline passed before the call was done"
_CLOSED = "the worker was closed before the call was done"


@dataclass(frozen=True)
class LoadedOnnx:
    """What the worker states of its model.

    Attributes:
        name: What callers ask for.
        digest: SHA-256 to which a calibration is bound.
        max_length: Tokens of a window.
    """

    name: str
    digest: str
    max_length: int


class OnnxWorker:
    """Runs one pruner by onnxruntime, on the CPU; a context manager, usable from several threads and event loops.

    Args:
        model: `default`, a folder (a native pruner's, or one that was exported), a hub id, or a spec.
        name: What callers ask for; None takes the spec's, or `model` as it is written.
        threads: Batches computed side by side, each on a core; None takes the physical cores.
        max_length: Tokens of a window; None takes the model's own.
        queue_items: Online items in the worker at a time; above it calls are refused with `OverloadedError`.

    Raises:
        ModelError: There is no such pruner, or it needs torch.
        MissingExtraError: onnxruntime, or for a native folder onnx, is not installed.
        ConfigError: A number is out of range.
    """

    def __init__(
        self,
        model: str | Path | ModelSpec = "default",
        *,
        name: str | None = None,
        threads: int | None = None,
        max_length: int | None = None,
        queue_items: int = 4096,
    ) -> None:
        for option, value in {"threads": threads, "max_length": max_length, "queue_items": queue_items}.items():
            if value is not None and value < 1:
                raise ConfigError(f"the {option!r} parameter of OnnxWorker must be at least 1. Got {value}")
        spec = spec_of_pruner(model)
        folder = resolve(spec)
        folder.check(spec.digest)
        exported = open_exported(folder)
        self._model = OnnxModel(exported, name=spec.name)
        tokenizer = UnitTokenizer(folder)
        if tokenizer.vocabulary > self._model.vocabulary:
            raise ModelError(
                f"model {spec.name}: tokenizer.json has {tokenizer.vocabulary} tokens, but the graph only "
                f"{self._model.vocabulary}: they do not belong together"
            )
        asked = max_length or spec.max_length
        longest = window_length(asked, exported.conduct, positions=exported.positions)
        preparer = Preparer(tokenizer, exported.conduct, max_length=longest)
        self._loaded = LoadedOnnx(name or _written(model, spec), exported.digest, longest)
        self._threads = Threads(threads or physical_cores(), name="provence-onnx")
        self._preparers = ThreadPoolExecutor(2, thread_name_prefix="provence-onnx-prepare")
        self._passes = Passes(
            self._model, name=spec.name, preparer=preparer, pool=self._preparers, threads=self._threads
        )
        self._lock = threading.Lock()
        self._queue_items, self._online, self._closed = queue_items, 0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def models(self) -> list[str]:
        """Name of the model."""
        return [self._loaded.name]

    def load(self, model: str, *, task: str = "prune") -> LoadedOnnx:
        """What is stated of the model, its digest among it. Raises `ModelError` and `ConfigError` as `run` does."""
        self._check(model, task)
        return self._loaded

    def run(
        self,
        task: str,
        items: Sequence[Item],
        *,
        model: str,
        priority: Priority = Priority.BULK,
        deadline: float | None = None,
    ) -> list[Result]:
        """Return one result an item, in the order of the items; see `Worker.run`. Tasks: `prune`, `prune_rerank`."""
        call = self._begin(model, task, len(items), priority, deadline)
        steps = self._passes.steps(call, task, items)
        try:
            future = next(steps)
            while True:
                future = steps.send(_waited(call, future))
        except StopIteration as done:
            results: list[Result] = done.value
            return results
        finally:
            self._end(call)

    async def arun(
        self,
        task: str,
        items: Sequence[Item],
        *,
        model: str,
        priority: Priority = Priority.BULK,
        deadline: float | None = None,
    ) -> list[Result]:
        """The same as `run`, without blocking the event loop; cancelling it drops the batches that have not begun."""
        call = self._begin(model, task, len(items), priority, deadline)
        steps = self._passes.steps(call, task, items)
        try:
            future = next(steps)
            while True:
                future = steps.send(await _awaited(call, future))
        except StopIteration as done:
            results: list[Result] = done.value
            return results
        finally:
            self._end(call)

    def health(self) -> Health:
        """Whether the worker can answer."""
        return Health(
            "closed" if self._closed else "ok", "the worker is closed" if self._closed else "", len(self._threads)
        )

    def close(self) -> None:
        """Finish the batches that run and refuse everything after; may be called again."""
        with self._lock:
            self._closed = True
        self._preparers.shutdown(cancel_futures=True)
        self._threads.close()

    def _check(self, model: str, task: str) -> None:
        if task not in TASKS:
            raise ConfigError(f"there is no task {task!r} on this worker; known are {', '.join(TASKS)}")
        if model != self._loaded.name:
            raise ModelError(f"this worker knows no model {model!r}, only {self._loaded.name!r}")

    def _begin(self, model: str, task: str, items: int, priority: Priority, deadline: float | None) -> Call:
        self._check(model, task)
        call = Call(Priority(priority), items, None if deadline is None else time.monotonic() + deadline)
        with self._lock:
            if self._closed:
                raise WorkerStoppedError("the worker is closed")
            if call.priority is Priority.ONLINE:
                if self._online and self._online + items > self._queue_items:
                    raise OverloadedError(f"{self._online} items are in the worker, of at most {self._queue_items}")
                self._online += items
        return call

    def _end(self, call: Call) -> None:
        call.drop()
        if call.priority is Priority.ONLINE:
            with self._lock:
                self._online -= call.items


def _waited(call: Call, future: Future[Any]) -> Any:
    """What came of a step. Raises `DeadlineError` and `WorkerStoppedError`, and what the step raised."""
    try:
        return future.result(call.left())
    except DatapipeError:
        raise
    except TimeoutError as error:
        raise DeadlineError(_LATE) from error
    except CancelledError as error:
        raise WorkerStoppedError(_CLOSED) from error


async def _awaited(call: Call, future: Future[Any]) -> Any:
    """The same without blocking the event loop."""
    waiting = asyncio.wrap_future(future)
    try:
        done, _ = await asyncio.wait([waiting], timeout=call.left())
        if not done:
            raise DeadlineError(_LATE)
        if waiting.cancelled():
            raise WorkerStoppedError(_CLOSED)
        return waiting.result()
    finally:
        if not waiting.cancel() and not waiting.cancelled():
            waiting.exception()  # seen, so that asyncio reports none where the caller was cancelled meanwhile


def _written(model: str | Path | ModelSpec, spec: ModelSpec) -> str:
    return spec.name if model is spec else str(model)
