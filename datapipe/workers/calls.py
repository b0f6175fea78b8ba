"""A call of a worker while it lasts, and the tickets on which its items wait.

    Call (model, priority, deadline) -> Ticket (items submitted together) -> one future, resolved exactly once

Lanes deliver raw values from several threads; whoever waits sees the first fault or all the values. After a fault, a
passed deadline or a cancellation nothing more of the call begins.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from datapipe.errors import DeadlineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.workers.protocol import Priority
    from datapipe.workers.registry import LoadedModel
    from datapipe.workers.spec import ModelSpec

__all__ = ["Call", "Ticket"]


class Call:
    """One call of `run` or `arun`.

    Args:
        replicas: The model on each device of the worker, in their order; all of one task.
        priority: Whose batches go first.
        items: How many items the call has.
        deadline: Seconds from now after which nothing more of it begins; None waits for ever.

    Attributes:
        over: Whether nothing more of the call is to begin.
    """

    def __init__(
        self, replicas: Sequence[LoadedModel], *, priority: Priority, items: int, deadline: float | None = None
    ) -> None:
        self.replicas, self.priority, self.items = replicas, priority, items
        self.begun = time.monotonic()
        self.expires = None if deadline is None else self.begun + deadline
        self.over = False
        self.tokenize = 0.0
        self.prepared = self.first = self.last = 0.0

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.replicas[0].spec.name

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.replicas[0].task.name

    @property
    def padded(self) -> bool:
        """Whether a batch costs as if each item were as long as the longest."""
        return self.replicas[0].task.padded

    @property
    def key(self) -> tuple[ModelSpec, str]:
        """Calls with one key may share a batch."""
        return self.replicas[0].spec, self.task

    def expired(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return self.expires is not None and now >= self.expires

    def deadline_error(self) -> DeadlineError:
        """What the caller sees when it has."""
        return DeadlineError(f"the deadline of a call to model {self.model} passed before it was done")

    def remaining(self) -> float | None:
        """Seconds that may still be waited."""
        return None if self.expires is None else max(0.0, self.expires - time.monotonic())

    def computed(self, begun: float, ended: float) -> None:
        """A batch with items of this call ran from `begun` to `ended`, on the monotonic clock."""
        self.first = min(self.first, begun) if self.first else begun
        self.last = max(self.last, ended)


class Ticket:
    """Items of a call that were submitted together.

    Args:
        call: The call.
        prepared: What `prepare_many` made of the items.

    Attributes:
        future: Resolves once: to the raw values in the order of the items, or to the first fault.
    """

    def __init__(self, call: Call, prepared: Sequence[Any]) -> None:
        self.call, self.prepared = call, prepared
        self.lengths: list[int] = [item.length for item in prepared]
        self.future: Future[list[Any]] = Future()
        self.future.set_running_or_notify_cancel()  # so that nobody who waits on it can cancel it behind our back
        self._raws: list[Any] = [None] * len(prepared)
        self._left = len(prepared)
        self._lock = threading.Lock()
        if not prepared:
            self.future.set_result([])

    @property
    def done(self) -> bool:
        """Whether the future is resolved."""
        return self.future.done()

    def deliver(self, places: Sequence[int], raws: Sequence[Any]) -> None:
        """Put raw values in their places; the last one resolves the future. Each place is filled once."""
        with self._lock:
            for place, raw in zip(places, raws, strict=True):
                self._raws[place] = raw
            self._left -= len(places)
            if self._left or self.future.done():
                return
            self.future.set_result(self._raws)

    def fail(self, fault: Exception) -> None:
        """Resolve the future with a fault, unless it is resolved; nothing more of the call begins."""
        self.call.over = True
        with self._lock:
            if not self.future.done():
                self.future.set_exception(fault)
