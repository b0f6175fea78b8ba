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
from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from datapipe.errors import (
    ConfigError,
    DeadlineError,
    ItemError,
    ModelError,
    OverloadedError,
    WorkerStoppedError,
)
from datapipe.workers.batcher import BatchLimits, DynamicBatcher
from datapipe.workers.calls import Call, Ticket
from datapipe.workers.device import resolve_devices
from datapipe.workers.lanes import Lanes, lanes_of
from datapipe.workers.observe import Unobserved
from datapipe.workers.protocol import Health, Priority
from datapipe.workers.registry import MEMORY_BYTES, ModelRegistry
from datapipe.workers.spec import DEFAULT_EMBEDDER

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from types import TracebackType

    from datapipe.workers.observe import FailureReason, Observer
    from datapipe.workers.protocol import Item, Result
    from datapipe.workers.registry import LoadedModel
    from datapipe.workers.spec import ModelSpec

__all__ = ["WINDOW_ITEMS", "LocalWorker"]

WINDOW_ITEMS = 2048
"""Items prepared and packed together: enough to find texts of one length, few enough that the device starts soon."""

WINDOWS_AHEAD = 2
"""Windows whose batches wait or run at a time; it bounds what a call holds besides its items and results."""

TOKEN_BUDGET = {"cpu": 2048, "cuda": 65_536}
"""Tokens of a batch. On the CPU an activation of this many tokens is still in the cache when it is read again."""

SPREAD_TOKENS = {"cpu": 256, "cuda": 16_384}
"""Online batches smaller than this gain nothing from a second lane."""

WINDOW_BUDGETS = 8
"""Full batches in a window of online items: enough to find items of one length, few enough that none waits long."""

MAX_ITEMS = 4096
"""Items of a batch."""

PREPARERS = 2
"""Windows of one priority that are prepared at a time, ahead of the device."""

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
        steps = self._steps(call, items)
        try:
            future = next(steps)
            while True:
                future = steps.send(_wait(call, future))
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
        steps = self._steps(call, items)
        try:
            future = next(steps)
            while True:
                future = steps.send(await _await(call, future))
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
                self._batcher.admit(call.priority, _held(call))
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
        self._batcher.release(call.priority, _held(call))
        with self._lock:
            self._running_calls -= 1
            self._idle.notify_all()

    def _steps(self, call: Call, items: Sequence[Item]) -> Generator[Future[Any], Any, list[Result]]:
        """The course of a call: yields each future that has to be waited for, and is sent what it resolved to."""
        task = call.replicas[0].task
        results: list[Result] = []
        flying: deque[Ticket] = deque()
        coming: deque[Future[list[Any]]] = deque()
        starts = deque(range(0, len(items), WINDOW_ITEMS))

        def collect(ticket: Ticket, raws: list[Any]) -> None:
            results.extend(map(task.finish, raws, ticket.prepared))

        for _ in range(PREPARERS):
            self._prepare(call, items, starts, coming)
        while coming:
            prepared = yield coming.popleft()
            self._prepare(call, items, starts, coming)
            ticket = Ticket(call, prepared)
            call.prepared = time.monotonic()
            self._batcher.submit(ticket)
            flying.append(ticket)
            if len(flying) == WINDOWS_AHEAD:
                collect(flying[0], (yield flying.popleft().future))
        while flying:
            collect(flying[0], (yield flying.popleft().future))
        return results

    def _prepare(self, call: Call, items: Sequence[Item], starts: deque[int], coming: deque[Future[list[Any]]]) -> None:
        """Begin to prepare the next window, if there is one."""
        if not starts:
            return
        first = starts.popleft()
        window = items[first : first + WINDOW_ITEMS]

        def prepare() -> list[Any]:
            begun = time.monotonic()
            try:
                return call.replicas[0].task.prepare_many(window, first=first)
            finally:
                call.tokenize += time.monotonic() - begun

        try:
            coming.append(self._preparers[call.priority].submit(prepare))
        except RuntimeError as error:  # the pool was shut down since the call began
            raise WorkerStoppedError("the worker was closed before the call was done") from error

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
        reason = _reason(error)
        if reason is not None:
            self._observer.failed(reason, call.items)


def _held(call: Call) -> int:
    """Items of a call that are in flight at most."""
    return min(call.items, WINDOWS_AHEAD * WINDOW_ITEMS) if call.priority is Priority.BULK else call.items


def _reason(error: BaseException) -> FailureReason | None:
    """Why a call failed; None for faults that are counted where the batch fails."""
    if isinstance(error, OverloadedError):
        return "overloaded"
    if isinstance(error, DeadlineError):
        return "deadline"
    if isinstance(error, WorkerStoppedError):
        return "stopped"
    if isinstance(error, ItemError):
        return "item"
    if isinstance(error, ModelError):
        return "model"
    return "cancelled" if isinstance(error, asyncio.CancelledError | KeyboardInterrupt) else None


def _wait(call: Call, future: Future[Any]) -> Any:
    try:
        return future.result(call.remaining())
    except DeadlineError:
        raise
    except TimeoutError:
        if call.expires is None:  # the future's own
            raise
        raise call.deadline_error() from None
    except CancelledError as error:
        raise WorkerStoppedError("the worker was closed before the call was done") from error


async def _await(call: Call, future: Future[Any]) -> Any:
    try:
        async with asyncio.timeout(call.remaining()):
            return await asyncio.wrap_future(future)
    except DeadlineError:
        raise
    except TimeoutError:
        if call.expires is None:
            raise
        raise call.deadline_error() from None
    except asyncio.CancelledError as error:
        if not future.cancelled() or _cancelling():
            raise
        raise WorkerStoppedError("the worker was closed before the call was done") from error


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
