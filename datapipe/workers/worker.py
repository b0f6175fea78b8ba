"""The worker in this process.

items -> windows -> prepare (threads) -> batcher -> lanes (devices) -> finish (whoever waits) -> results

A window is a fixed number of items. A bulk window is packed into sealed batches by itself, so how a bulk call is cut
depends on the call alone: not on timing, threads, or what else the worker does. Online windows go item by item into the
batches that they share with other callers. While the device computes the batches of one window, the next are prepared.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from datapipe.errors import ConfigError, OverloadedError, WorkerStoppedError
from datapipe.workers.batcher import BatchLimits, DynamicBatcher
from datapipe.workers.calls import Call
from datapipe.workers.course import PREPARERS, WINDOW_ITEMS, course, failure_reason, held, wait, wait_async
from datapipe.workers.device import resolve_devices
from datapipe.workers.lanes import Lanes, lanes_of
from datapipe.workers.observe import Unobserved
from datapipe.workers.protocol import Health, Priority
from datapipe.workers.registry import MEMORY_BYTES, ModelRegistry
from datapipe.workers.spec import DEFAULT_EMBEDDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from datapipe.workers.observe import Observer
    from datapipe.workers.protocol import Item, Result
    from datapipe.workers.registry import LoadedModel
    from datapipe.workers.spec import ModelSpec

__all__ = ["WINDOW_ITEMS", "LocalWorker"]

TOKEN_BUDGET = {"cpu": 2048, "cuda": 65_536}
"""Tokens of a batch. On the CPU an activation of this many tokens is still in the cache when it is read again."""

SPREAD_TOKENS = {"cpu": 256, "cuda": 16_384}
"""Online batches smaller than this gain nothing from a second lane."""

WINDOW_BUDGETS = 8
"""Full batches in a window of online items: enough to find items of one length, few enough that none waits long."""

MAX_ITEMS = 4096
"""Items of a batch."""

STUCK_SECONDS = 600.0
"""How long a batch may run before it counts as stuck."""


class LocalWorker:
    """Runs tasks on models in this process; usable as a context manager, from several threads and event loops at once.

    Results of bulk calls depend on the items of the call, the model, the kind of device and the budgets, never on
    `threads`, the number of devices, or other traffic.

    Args:
        models: Models known by name. Other names are taken for sources: `default`, `embedded:NAME`, a folder, a hub id.
        device: `auto` (every CUDA device, else the CPU), `cpu`, `cuda` (every one), `cuda:N`, or `cuda:0,cuda:1`. A
            model has a replica on each; one queue serves them all.
        threads: Batches of one priority computed side by side on a device; None takes the physical cores of the CPU,
            and 2 for CUDA.
        token_budget: Tokens of a batch; None takes 2,048 on the CPU and 65,536 on CUDA.
        max_items: Items of a batch.
        memory_bytes: What the loaded models may hold together on a device.
        queue_items: Online items in the worker at a time; above it calls are refused with `OverloadedError`.
        bulk_share: Share of the tokens that bulk work gets at least while online items wait, 0 <= share < 1.
        stuck_seconds: How long a batch may run before its callers are told that the worker is stuck.
        observer: Told of batches, durations and failures.

    Raises:
        ConfigError: An option is out of range, or this machine has no such device.
    """

    def __init__(  # noqa: PLR0913 - each is a knob of its own
        self,
        models: Iterable[ModelSpec] = (DEFAULT_EMBEDDER,),
        *,
        device: str = "auto",
        threads: int | None = None,
        token_budget: int | None = None,
        max_items: int = MAX_ITEMS,
        memory_bytes: int = MEMORY_BYTES,
        queue_items: int = 4096,
        bulk_share: float = 0.1,
        stuck_seconds: float = STUCK_SECONDS,
        observer: Observer | None = None,
    ) -> None:
        whole = {"threads": threads, "token_budget": token_budget, "max_items": max_items, "queue_items": queue_items}
        for name, value in whole.items():
            if value is not None and value < 1:
                raise ConfigError(f"the {name!r} parameter of LocalWorker must be at least 1. Got {value}")
        if not 0 <= bulk_share < 1:
            raise ConfigError(
                f"the 'bulk_share' parameter of LocalWorker must be at least 0 and below 1. Got {bulk_share}"
            )
        if not stuck_seconds > 0:
            raise ConfigError(f"the 'stuck_seconds' parameter of LocalWorker must be above 0. Got {stuck_seconds}")
        self._devices = resolve_devices(device)
        self._threads, self._stuck_seconds = threads, stuck_seconds
        self._observer = observer or Unobserved()
        kind = self._devices[0].type
        budget = token_budget or TOKEN_BUDGET[kind]
        self._limits = BatchLimits(
            token_budget=budget,
            max_items=max_items,
            window_tokens=WINDOW_BUDGETS * budget,
            spread_tokens=SPREAD_TOKENS[kind],
            online_lanes=lanes_of(self._devices, threads),
            online_items=queue_items,
            bulk_share=bulk_share,
        )
        self._batcher = DynamicBatcher(self._limits, observer=self._observer)
        self._registry = ModelRegistry(models, memory_bytes=memory_bytes)
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._running_calls = 0
        self._lanes: Lanes | None = None
        self._preparers: dict[Priority, ThreadPoolExecutor] = {}
        self._refusal: str | None = None
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
        """Load a model on every device ahead of its first call; its digest, width and `bits`, the budgets among them.

        Raises:
            ModelError: It is unknown or cannot be loaded.
            ConfigError: The task is unknown, or not the model's.
        """
        loaded = self._replicas(model, task)[0]
        limits = self._limits
        return replace(loaded, bits={**loaded.bits, "batch": f"{limits.token_budget} tokens, {limits.max_items} items"})

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
        call = self._begin(self._replicas(model, task), items, priority, deadline)
        steps = course(call, items, pool=self._preparers[call.priority], submit=self._batcher.submit)
        try:
            future = next(steps)
            while True:
                future = steps.send(wait(call, future))
        except StopIteration as done:
            return self._answered(call, done.value)
        except BaseException as error:
            self._batcher.drop(call)
            self._failed(call, error)
            raise
        finally:
            steps.close()
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
        """The same as `run`, without blocking the event loop; cancelling it takes what waits of it off the queue."""
        replicas = self._registry.find(model, task, self._devices)
        if not replicas:
            replicas = await asyncio.to_thread(self._replicas, model, task)
        call = self._begin(replicas, items, priority, deadline)
        steps = course(call, items, pool=self._preparers[call.priority], submit=self._batcher.submit)
        try:
            future = next(steps)
            while True:
                future = steps.send(await wait_async(call, future))
        except StopIteration as done:
            return self._answered(call, done.value)
        except BaseException as error:
            self._batcher.drop(call)
            self._failed(call, error)
            raise
        finally:
            steps.close()
            self._end(call)

    def health(self) -> Health:
        """Whether the worker can answer, without asking it for work."""
        with self._lock:
            lanes, refusal = self._lanes, self._refusal
        found = lanes.health() if lanes is not None else Health("ok")
        return Health("closed", refusal, found.queued) if refusal is not None and found.state != "dead" else found

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new calls and wait for those that run; False if some still run after `timeout` seconds."""
        with self._lock:
            self._refusal = self._refusal or "the worker is shutting down"
            return self._idle.wait_for(lambda: self._running_calls == 0, timeout)

    def close(self) -> None:
        """Finish the batches that run and refuse everything after; may be called again."""
        with self._lock:
            self._refusal = "the worker is closed"
            if self._closed:
                return
            self._closed = True
            lanes, preparers = self._lanes, list(self._preparers.values())
        self._batcher.stop(lambda: WorkerStoppedError("the worker was closed before the call was done"))
        for pool in preparers:
            pool.shutdown(cancel_futures=True)
        if lanes is not None:
            lanes.join()

    def _replicas(self, model: str, task: str) -> tuple[LoadedModel, ...]:
        return self._registry.replicas(model, task, self._devices)

    def _begin(
        self, replicas: Sequence[LoadedModel], items: Sequence[Item], priority: Priority, deadline: float | None
    ) -> Call:
        """Admit a call. Raises `OverloadedError` and `WorkerStoppedError`."""
        call = Call(replicas, priority=Priority(priority), items=len(items), deadline=deadline)
        try:
            with self._lock:
                lanes = self._started()
                lanes.refuse_if_stuck(call.priority)
                self._batcher.admit(call.priority, held(call))
                self._running_calls += 1
        except (OverloadedError, WorkerStoppedError) as error:
            self._failed(call, error)
            raise
        if call.priority is Priority.ONLINE:
            lanes.give_way()
        return call

    def _started(self) -> Lanes:
        if self._refusal is not None:
            raise WorkerStoppedError(self._refusal)
        if self._lanes is None:
            self._lanes = Lanes(
                self._batcher,
                devices=self._devices,
                threads=self._threads,
                stuck_seconds=self._stuck_seconds,
                observer=self._observer,
            )
            for priority in Priority:
                name = f"datapipe-prepare-{priority.name.lower()}"
                self._preparers[priority] = ThreadPoolExecutor(PREPARERS, thread_name_prefix=name)
        return self._lanes

    def _end(self, call: Call) -> None:
        """Count a call out."""
        self._batcher.release(call.priority, held(call))
        with self._lock:
            self._running_calls -= 1
            self._idle.notify_all()

    def _answered(self, call: Call, results: list[Result]) -> list[Result]:
        total = time.monotonic() - call.begun
        self._observer.request(
            task=call.task,
            model=call.model,
            priority=call.priority,
            tokenize=call.tokenize,
            queue=max(0.0, call.first - call.prepared),
            inference=call.last - call.first,
            total=total,
        )
        return results

    def _failed(self, call: Call, error: BaseException) -> None:
        reason = failure_reason(error)
        if reason is not None:
            self._observer.failed(reason, call.items)
