"""The course of a call: its windows are prepared, submitted, waited for and finished, with some of each at a time.

    items -> windows -> prepare (pool) -> Ticket -> submit -> (lanes) -> finish (whoever waits) -> results

`course` is written once as a generator that yields each future it has to wait for; `wait` waits for one in a thread,
`wait_async` on an event loop. Raises `DeadlineError` once the deadline has passed, `WorkerStoppedError` where the
worker is closed meanwhile, and whatever preparing or computing raised.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from datapipe.errors import (
    DeadlineError,
    ItemError,
    ModelError,
    OverloadedError,
    WorkerStoppedError,
)
from datapipe.workers.calls import Ticket
from datapipe.workers.protocol import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from concurrent.futures import Executor

    from datapipe.workers.calls import Call
    from datapipe.workers.observe import FailureReason
    from datapipe.workers.protocol import Item, Result

__all__ = ["PREPARERS", "WINDOW_ITEMS", "course", "failure_reason", "held", "wait", "wait_async"]

WINDOW_ITEMS = 8192
"""Items prepared and packed together: enough to find texts of one length, few enough that the device starts soon."""

WINDOWS_AHEAD = 2
"""Windows whose batches wait or run at a time; it bounds what a call holds besides its items and results."""

PREPARERS = 2
"""Windows of a call that are prepared at a time, ahead of the device."""

_CLOSED = "the worker was closed before the call was done"


def course(
    call: Call, items: Sequence[Item], *, pool: Executor, submit: Callable[[Ticket], None]
) -> Generator[Future[Any], Any, list[Result]]:
    """Yield each future that has to be waited for; sent what it resolved to, return the results in item order.

    Args:
        call: The call.
        items: Its items.
        pool: Where windows are prepared.
        submit: Queues the items of a prepared window.
    """
    task = call.replicas[0].task
    results: list[Result] = []
    flying: deque[Ticket] = deque()
    coming: deque[Future[list[Any]]] = deque()
    window = getattr(task, "window_items", WINDOW_ITEMS)
    starts = iter(range(0, len(items), window))

    def prepare(first: int) -> list[Any]:
        begun = time.monotonic()
        try:
            return task.prepare_many(items[first : first + window], first=first)
        finally:
            call.tokenize += time.monotonic() - begun

    def prepare_next() -> None:
        for first in starts:
            try:
                coming.append(pool.submit(prepare, first))
            except RuntimeError as error:  # the pool was shut down since the call began
                raise WorkerStoppedError(_CLOSED) from error
            return

    def collect(ticket: Ticket, raws: list[Any]) -> None:
        results.extend(map(task.finish, raws, ticket.prepared))

    for _ in range(PREPARERS):
        prepare_next()
    while coming:
        prepared = yield coming.popleft()
        prepare_next()
        ticket = Ticket(call, prepared)
        call.prepared = time.monotonic()
        submit(ticket)
        flying.append(ticket)
        if len(flying) == WINDOWS_AHEAD:
            collect(flying[0], (yield flying.popleft().future))
    while flying:
        collect(flying[0], (yield flying.popleft().future))
    return results


def wait(call: Call, future: Future[Any]) -> Any:
    """What a future resolves to, waited for in this thread until the call's deadline."""
    try:
        return future.result(call.remaining())
    except DeadlineError:
        raise
    except TimeoutError:
        if call.expires is None:  # the future's own
            raise
        raise call.deadline_error() from None
    except CancelledError as error:
        raise WorkerStoppedError(_CLOSED) from error


async def wait_async(call: Call, future: Future[Any]) -> Any:
    """The same on the event loop."""
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
        raise WorkerStoppedError(_CLOSED) from error


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def held(call: Call) -> int:
    """Items of a call that are in flight at most."""
    return min(call.items, WINDOWS_AHEAD * WINDOW_ITEMS) if call.priority is Priority.BULK else call.items


def failure_reason(error: BaseException) -> FailureReason | None:
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
