"""What runs next: dynamic batches of online items, sealed batches of bulk items, priorities, bounds, deadlines.

    submit(ticket)  ONLINE -> stream of the model -> window -> pack -> ready batches -> take(ONLINE)
                    BULK   -> pack within the ticket -> sealed batches              -> take(BULK)

Online items of any callers share batches. A batch leaves as soon as a lane is free: the oldest items of one model, up
to `window_tokens`, make a window, which is packed by length and served whole before the next is made, so nothing waits
longer than the window before its own. Bulk batches are sealed when they are submitted and never mixed with other
traffic, so their bits depend on the call alone. While online items wait, no bulk batch begins, except for a share of
the tokens (`bulk_share`), so bulk is never starved.

No threads and no devices here: lanes call `take` and run what they get. Raises `OverloadedError` where the worker is
full, `WorkerStoppedError` once it is closed or dead.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from datapipe.errors import OverloadedError, WorkerStoppedError
from datapipe.workers.observe import Unobserved
from datapipe.workers.pack import pack
from datapipe.workers.protocol import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from datapipe.workers.calls import Call, Ticket
    from datapipe.workers.observe import Observer
    from datapipe.workers.spec import ModelSpec

__all__ = ["Batch", "BatchLimits", "DynamicBatcher"]


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """How batches are cut and how much may wait.

    Attributes:
        token_budget: Tokens that a batch may cost; only an item that alone is over it gets more, in a batch of its own.
        max_items: Items of a batch.
        window_tokens: Tokens of the window that online items are sorted in.
        spread_tokens: Online batches are not made smaller than this to occupy every lane.
        online_lanes: Lanes that a window is spread over.
        online_items: Online items in the worker at a time, the computing ones too; above it calls are refused.
        bulk_items: Bulk items in flight at a time; above it calls are refused.
        bulk_share: Share of the tokens that bulk work gets at least while both kinds wait, 0 <= share < 1.
    """

    token_budget: int
    max_items: int
    window_tokens: int
    spread_tokens: int = 1
    online_lanes: int = 1
    online_items: int = 4096
    bulk_items: int = 1 << 18
    bulk_share: float = 0.1


@dataclass(frozen=True, eq=False)
class _Entry:
    ticket: Ticket
    place: int
    arrived: int

    @property
    def length(self) -> int:
        return self.ticket.lengths[self.place]


@dataclass(frozen=True, eq=False)
class Batch:
    """Items of one model and task that go to the device together.

    Attributes:
        entries: Ticket and place of each item.
        priority: Of the calls they belong to.
        padded: Whether the device pads them to the longest.
    """

    entries: tuple[tuple[Ticket, int], ...]
    priority: Priority
    padded: bool

    @property
    def tokens(self) -> int:
        """Tokens of its items."""
        return sum(ticket.lengths[place] for ticket, place in self.entries)

    @property
    def cost(self) -> int:
        """Tokens that it costs the device."""
        if not self.padded:
            return self.tokens
        return len(self.entries) * max(ticket.lengths[place] for ticket, place in self.entries)

    @property
    def call(self) -> Call:
        """One of its calls; all have the same model and task."""
        return self.entries[0][0].call

    def tickets(self) -> Iterator[tuple[Ticket, list[int]]]:
        """Each ticket once, with the positions of its items in the batch."""
        by_ticket: dict[int, tuple[Ticket, list[int]]] = {}
        for position, (ticket, _) in enumerate(self.entries):
            by_ticket.setdefault(id(ticket), (ticket, []))[1].append(position)
        yield from by_ticket.values()

    def part(self, positions: Iterable[int]) -> Batch:
        """A batch of some of its items."""
        return Batch(tuple(self.entries[position] for position in positions), self.priority, self.padded)


class DynamicBatcher:
    """Decides what runs next; safe to call from any thread.

    Args:
        limits: See `BatchLimits`.
        clock: Seconds that only grow.
        observer: Told how many items wait.
    """

    def __init__(
        self,
        limits: BatchLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
    ) -> None:
        self.limits = limits
        self._clock, self._observer = clock, observer or Unobserved()
        self._lock = threading.Lock()
        self._changed = {priority: threading.Condition(self._lock) for priority in Priority}
        self._streams: dict[tuple[ModelSpec, str], deque[_Entry]] = {}
        self._ready: deque[list[_Entry]] = deque()
        self._bulk: deque[Batch] = deque()
        self._arrivals = 0
        self._waiting = dict.fromkeys(Priority, 0)
        self._admitted = dict.fromkeys(Priority, 0)
        self._credit = 0.0
        self._stopped: Callable[[], WorkerStoppedError] | None = None

    @property
    def waiting(self) -> int:
        """Items that wait for a lane."""
        return sum(self._waiting.values())

    @property
    def admitted(self) -> int:
        """Items of calls that were admitted and not released."""
        return sum(self._admitted.values())

    def admit(self, priority: Priority, items: int) -> None:
        """Count a call's items in until `release`; a call is never refused by an empty worker.

        Raises:
            OverloadedError: There is no room for them.
            WorkerStoppedError: The worker is closed or dead.
        """
        most = self.limits.online_items if priority is Priority.ONLINE else self.limits.bulk_items
        with self._lock:
            self._refuse_if_stopped()
            inside = self._admitted[priority]
            if inside and inside + items > most:
                raise OverloadedError(
                    f"the worker holds {inside} {priority.name.lower()} items of at most {most}, and {items} more do "
                    "not fit; try again later"
                )
            self._admitted[priority] += items

    def release(self, priority: Priority, items: int) -> None:
        """Count a call's items out."""
        with self._lock:
            self._admitted[priority] -= items

    def submit(self, ticket: Ticket) -> None:
        """Queue the items of a ticket. Raises `WorkerStoppedError`."""
        call, limits = ticket.call, self.limits
        sealed: list[Batch] = []
        if call.priority is Priority.BULK:
            cut = pack(ticket.lengths, token_budget=limits.token_budget, max_items=limits.max_items, padded=call.padded)
            sealed = [Batch(tuple((ticket, place) for place in batch), call.priority, call.padded) for batch in cut]
        with self._lock:
            self._refuse_if_stopped()
            self._waiting[call.priority] += len(ticket.lengths)
            if call.priority is Priority.BULK:
                self._bulk += sealed
            else:
                stream = self._streams.setdefault(call.key, deque())
                for place in range(len(ticket.lengths)):
                    stream.append(_Entry(ticket, place, self._arrivals))
                    self._arrivals += 1
            self._changed[call.priority].notify(max(1, len(sealed)))
            self._observer.queue(self.waiting)

    def take(self, priority: Priority, *, timeout: float | None = None) -> Batch | None:
        """Wait for a batch of that priority and take it off the queue; None once stopped, or after `timeout` seconds.

        Items whose call is over or whose deadline has passed are dropped here, and their callers told.
        """
        with self._lock:
            batch: Batch | None = None

            def found() -> bool:
                nonlocal batch
                batch = self._online(self._clock()) if priority is Priority.ONLINE else self._sealed(self._clock())
                return batch is not None or self._stopped is not None

            self._changed[priority].wait_for(found, timeout)
            if batch is None:
                return None
            self._waiting[priority] -= len(batch.entries)
            self._account(batch)
            self._observer.queue(self.waiting)
            return batch

    def drop(self, call: Call) -> None:
        """Take what waits of a call off the queue; what runs, runs on."""
        call.over = True
        with self._lock:
            for key, stream in list(self._streams.items()):
                if key == call.key:
                    self._streams[key] = deque(self._living(stream, self._clock()))
            self._ready = deque(kept for entries in self._ready if (kept := self._living(entries, self._clock())))
            self._bulk = deque(batch for batch in self._bulk if self._lives(batch, self._clock()))
            self._wake_bulk()
            self._observer.queue(self.waiting)

    def stop(self, error: Callable[[], WorkerStoppedError]) -> None:
        """Fail whatever waits, refuse everything after and send the lanes home; `error` makes what each caller sees."""
        with self._lock:
            self._stopped = self._stopped or error
        for priority in Priority:
            self.fail_waiting(priority, error)

    def fail_waiting(self, priority: Priority, error: Callable[[], WorkerStoppedError]) -> None:
        """Fail whatever of that priority waits now."""
        with self._lock:
            if priority is Priority.BULK:
                waiting = [batch.entries[0][0] for batch in self._bulk]
                self._bulk.clear()
            else:
                waiting = [entry.ticket for stream in self._streams.values() for entry in stream]
                waiting += [entry.ticket for entries in self._ready for entry in entries]
                self._streams.clear()
                self._ready.clear()
            self._waiting[priority] = 0
            self._wake_bulk()
            self._changed[priority].notify_all()
            self._observer.queue(self.waiting)
        for ticket in dict.fromkeys(waiting):
            ticket.fail(error())

    def _refuse_if_stopped(self) -> None:
        if self._stopped is not None:
            raise self._stopped()

    def _online(self, now: float) -> Batch | None:
        while True:
            while self._ready:
                living = self._living(self._ready.popleft(), now)
                if living:
                    call = living[0].ticket.call
                    return Batch(tuple((entry.ticket, entry.place) for entry in living), call.priority, call.padded)
            if not self._open_window(now):
                self._wake_bulk()
                return None

    def _open_window(self, now: float) -> bool:
        """Pack the oldest items of the stream whose head waits longest; False if nothing waits."""
        self._streams = {key: stream for key, stream in self._streams.items() if stream}
        if not self._streams:
            return False
        stream = min(self._streams.values(), key=lambda entries: entries[0].arrived)
        window: list[_Entry] = []
        tokens = 0
        while stream and (not window or tokens + stream[0].length <= self.limits.window_tokens):
            for entry in self._living((stream.popleft(),), now):
                window.append(entry)
                tokens += entry.length
        if window:
            limits = self.limits
            even = max(limits.spread_tokens, -(-tokens // limits.online_lanes))
            cut = pack(
                [entry.length for entry in window],
                token_budget=min(limits.token_budget, even),
                max_items=limits.max_items,
                padded=window[0].ticket.call.padded,
            )
            batches = [[window[index] for index in batch] for batch in cut]
            self._ready += sorted(batches, key=lambda entries: min(entry.arrived for entry in entries))
            self._changed[Priority.ONLINE].notify(len(batches))
        return True

    def _sealed(self, now: float) -> Batch | None:
        if not self._bulk_waits(now):
            return None
        if self._credit < self._bulk[0].cost and self._online_waits(now):
            return None
        return self._bulk.popleft()

    def _bulk_waits(self, now: float) -> bool:
        while self._bulk and not self._lives(self._bulk[0], now):
            self._bulk.popleft()
        return bool(self._bulk)

    def _online_waits(self, now: float) -> bool:
        return any(
            self._wanted(entry.ticket, now) for entries in (*self._ready, *self._streams.values()) for entry in entries
        )

    def _account(self, batch: Batch) -> None:
        """Online tokens earn bulk its share while it waits; bulk that goes before online spends it."""
        limits = self.limits
        if batch.priority is Priority.ONLINE:
            if self._bulk_waits(self._clock()):
                earned = batch.cost * limits.bulk_share / (1 - limits.bulk_share)
                self._credit = min(self._credit + earned, max(limits.token_budget, self._bulk[0].cost))
            self._wake_bulk()
        elif self._online_waits(self._clock()):
            self._credit -= batch.cost
        else:
            self._credit = 0.0

    def _wake_bulk(self) -> None:
        if self._bulk:
            self._changed[Priority.BULK].notify_all()

    def _living(self, entries: Iterable[_Entry], now: float) -> list[_Entry]:
        """Those that somebody still waits for; the others are counted out, and late ones failed."""
        living = []
        for ticket, group in groupby(entries, key=lambda entry: entry.ticket):
            kept = list(group)
            if self._wanted(ticket, now):
                living += kept
            else:
                self._waiting[ticket.call.priority] -= len(kept)
        return living

    def _lives(self, batch: Batch, now: float) -> bool:
        alive = self._wanted(batch.entries[0][0], now)
        if not alive:
            self._waiting[batch.priority] -= len(batch.entries)
        return alive

    def _wanted(self, ticket: Ticket, now: float) -> bool:
        if not ticket.call.over and ticket.call.expired(now):
            ticket.fail(ticket.call.deadline_error())
        return not ticket.call.over
