"""The worker in this process.

items -> windows -> prepare (threads) -> pack -> lanes (device) -> finish -> results

A window is a fixed number of items, so how a call is cut into batches depends on the call alone: not on timing,
threads, or what else the worker does. While the device computes the batches of one window, the next are prepared.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from datapipe.errors import ConfigError, DatapipeError, WorkerError
from datapipe.workers.device import Lanes, resolve_device
from datapipe.workers.pack import pack
from datapipe.workers.protocol import Priority
from datapipe.workers.registry import MEMORY_BYTES, ModelRegistry
from datapipe.workers.spec import DEFAULT_EMBEDDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from datapipe.workers.protocol import Item, Result
    from datapipe.workers.registry import LoadedModel
    from datapipe.workers.spec import ModelSpec

__all__ = ["LocalWorker"]

WINDOW_ITEMS = 2048
"""Items prepared and packed together: enough to find texts of one length, few enough that the device starts soon."""

WINDOWS_AHEAD = 2
"""Windows whose batches are on the lanes at a time; it bounds what a call holds besides its items and results."""

TOKEN_BUDGET = {"cpu": 2048, "cuda": 65_536}
"""Tokens of a batch. On the CPU an activation of this many tokens is still in the cache when it is read again."""

MAX_ITEMS = 4096
"""Items of a batch."""

PREPARERS = 2
"""Windows of a call that are prepared at a time, ahead of the device."""


@dataclass
class _Call:
    """One call of `run`, while it lasts."""

    loaded: LoadedModel
    priority: Priority
    expires: float | None
    batches: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    fault: Exception | None = None

    def check(self) -> None:
        """Raise `WorkerError` once the deadline has passed; CancelledError once nobody waits any more."""
        if self.stopped.is_set():
            raise CancelledError
        if self.expires is not None and time.monotonic() >= self.expires:
            raise WorkerError(f"the deadline of a call to model {self.loaded.spec.name} passed before it was done")

    def fail(self, fault: Exception) -> Exception:
        """Drop the batches that have not begun; whoever waits for one of them sees the fault. Returns it."""
        self.fault = self.fault or fault
        self.stopped.set()
        return fault

    def remaining(self) -> float | None:
        """Seconds that may still be waited."""
        return None if self.expires is None else max(0.0, self.expires - time.monotonic())


@dataclass(frozen=True)
class _Window:
    """Items whose batches are on the lanes."""

    prepared: list[Any]
    batches: list[tuple[list[int], Future[Sequence[Any]]]]


class LocalWorker:
    """Runs tasks on models in this process; usable as a context manager, from several threads at once.

    Results depend on the items of a call, the model, the device and the budgets, never on `threads`.

    Args:
        models: Models known by name. Other names are taken for sources: `default`, `embedded:NAME`, a folder, a hub id.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        threads: Batches computed side by side; None takes the physical cores of the CPU, and 2 for CUDA.
        token_budget: Tokens of a batch; None takes 2,048 on the CPU and 65,536 on CUDA.
        max_items: Items of a batch.
        memory_bytes: What the loaded models may hold together.

    Raises:
        ConfigError: An option is out of range, or this machine has no such device.
    """

    def __init__(
        self,
        models: Iterable[ModelSpec] = (DEFAULT_EMBEDDER,),
        *,
        device: str = "auto",
        threads: int | None = None,
        token_budget: int | None = None,
        max_items: int = MAX_ITEMS,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        for name, value in (("threads", threads), ("token_budget", token_budget), ("max_items", max_items)):
            if value is not None and value < 1:
                raise ConfigError(f"the {name!r} parameter of LocalWorker must be at least 1. Got {value}")
        self._device = resolve_device(device)
        self._threads, self._max_items = threads, max_items
        self._token_budget = token_budget or TOKEN_BUDGET[self._device.type]
        self._registry = ModelRegistry(models, memory_bytes=memory_bytes)
        self._lock = threading.Lock()
        self._lanes: Lanes | None = None
        self._preparers: ThreadPoolExecutor | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def models(self) -> list[str]:
        """Names of the models given to the constructor."""
        return self._registry.names

    def load(self, model: str, *, task: str = "embed") -> LoadedModel:
        """Load a model ahead of its first call; its digest, width and `bits`, the budget of a batch among them.

        Raises:
            ModelError: It is unknown or cannot be loaded.
            ConfigError: The task is unknown, or not the model's.
        """
        loaded = self._registry.load(self._registry.spec(model, task=task), str(self._device), task=task)
        return replace(loaded, bits={**loaded.bits, "batch": f"{self._token_budget} tokens, {self._max_items} items"})

    def run(
        self,
        task: str,
        items: Sequence[Item],
        *,
        model: str,
        priority: Priority = Priority.BULK,
        deadline: float | None = None,
    ) -> list[Result]:
        """Return one result an item, in the order of the items; see `Worker.run`."""
        return self._run(self._call(task, model, priority, deadline), items)

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
        call = await asyncio.to_thread(self._call, task, model, priority, deadline)
        try:
            return await asyncio.to_thread(self._run, call, items)
        except asyncio.CancelledError:
            call.stopped.set()
            raise

    def close(self) -> None:
        """Finish the batches that run and refuse everything after; may be called again."""
        with self._lock:
            self._closed = True
            lanes, preparers = self._lanes, self._preparers
        if preparers is not None:
            preparers.shutdown(cancel_futures=True)
        if lanes is not None:
            lanes.close()

    def _call(self, task: str, model: str, priority: Priority, deadline: float | None) -> _Call:
        self._started()
        expires = None if deadline is None else time.monotonic() + deadline
        return _Call(self.load(model, task=task), Priority(priority), expires)

    def _started(self) -> tuple[Lanes, ThreadPoolExecutor]:
        with self._lock:
            if self._closed:
                raise WorkerError("the worker is closed")
            if self._lanes is None or self._preparers is None:
                self._lanes = Lanes(self._threads, device=self._device)
                self._preparers = ThreadPoolExecutor(PREPARERS, thread_name_prefix="datapipe-prepare")
            return self._lanes, self._preparers

    def _run(self, call: _Call, items: Sequence[Item]) -> list[Result]:
        _, preparers = self._started()
        results: list[Result] = []
        flying: deque[_Window] = deque()
        coming: deque[Future[list[Any]]] = deque()
        starts = deque(range(0, len(items), WINDOW_ITEMS))

        def prepare() -> None:
            if not starts:
                return
            first = starts.popleft()
            window = items[first : first + WINDOW_ITEMS]
            try:
                coming.append(preparers.submit(call.loaded.task.prepare_many, window, first=first))
            except RuntimeError as error:  # the pool was shut down since the call began
                raise WorkerError("the worker was closed before the call was done") from error

        try:
            for _ in range(PREPARERS):
                prepare()
            while coming:
                prepared = _wait(call, coming.popleft())
                prepare()
                flying.append(self._launch(call, prepared))
                if len(flying) == WINDOWS_AHEAD:
                    results += _collect(call, flying.popleft())
            while flying:
                results += _collect(call, flying.popleft())
        finally:
            call.stopped.set()
        return results

    def _launch(self, call: _Call, prepared: list[Any]) -> _Window:
        """Seal the batches of a window and queue them."""
        lanes, _ = self._started()
        lengths = [item.length for item in prepared]
        batches = pack(
            lengths, token_budget=self._token_budget, max_items=self._max_items, padded=call.loaded.task.padded
        )
        launched = []
        for batch in batches:
            work = partial(_forward, call, [prepared[index] for index in batch], call.batches)
            launched.append((batch, lanes.submit(work, priority=call.priority)))
            call.batches += 1
        return _Window(prepared, launched)


def _forward(call: _Call, batch: list[Any], number: int) -> Sequence[Any]:
    call.check()
    try:
        return call.loaded.task.forward(batch)
    except DatapipeError as error:
        call.fail(error)
        raise
    except Exception as error:
        tokens = sum(item.length for item in batch)
        message = (
            f"model {call.loaded.spec.name} on {call.loaded.device} failed on batch {number} "
            f"({len(batch)} items, {tokens} tokens): {type(error).__name__}: {error}"
        )
        raise call.fail(WorkerError(message)) from error


def _collect(call: _Call, window: _Window) -> list[Result]:
    results: list[Result] = [None] * len(window.prepared)
    finish = call.loaded.task.finish
    for batch, future in window.batches:
        raw = _wait(call, future)
        if len(raw) != len(batch):
            raise WorkerError(f"model {call.loaded.spec.name} gave {len(raw)} results for {len(batch)} items")
        for value, index in zip(raw, batch, strict=True):
            results[index] = finish(value, window.prepared[index])
    return results


def _wait(call: _Call, future: Future[Any]) -> Any:
    try:
        return future.result(call.remaining())
    except TimeoutError:
        call.check()
        raise
    except CancelledError as error:
        if call.fault is not None:
            raise call.fault from error
        raise WorkerError("the worker was closed before the call was done") from error
