"""The threads that run batches: online lanes and bulk lanes for each device, and the watch over them.

    lane: batcher.take(priority) -> run_batch -> again, until the batcher is stopped

Online batches have lanes of their own, so that they need not wait for the bulk batch that runs: the two share the
device, and the online one goes first. On the CPU that is the work of the scheduler (bulk lanes give way, `nice`), on
CUDA of streams (those of the online lanes have the higher priority). The batches stay as they were sealed, so bulk
results keep their bits whatever else runs.

A lane that ends by anything but the end of the worker makes the worker dead; a batch that runs longer than
`stuck_seconds` makes it stuck until the batch ends. Both fail whoever waits.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from datapipe.errors import WorkerStoppedError
from datapipe.workers.attempt import fail_batch, run_batch
from datapipe.workers.device import physical_cores
from datapipe.workers.protocol import Health, Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from datapipe.workers.batcher import Batch, DynamicBatcher
    from datapipe.workers.observe import Observer

__all__ = ["Lanes", "lanes_of"]

_log = logging.getLogger(__name__)

_CUDA_LANES = 2
"""One batch computes while the host builds the next."""

_GIVE_WAY = 10
"""What is added to the niceness of bulk lanes: beside a lane of niceness 0 they get a tenth of the processor."""

_setting_threads = threading.Lock()


def lanes_of(devices: Sequence[torch.device], threads: int | None) -> int:
    """Lanes of each priority in a worker: for each device, `threads`, else the CPU's physical cores, or 2 for CUDA."""
    each = threads or (physical_cores() if devices[0].type == "cpu" else _CUDA_LANES)
    return each * len(devices)


@dataclass
class _Lane:
    """One thread, and what it does now."""

    number: int
    device: int
    priority: Priority
    thread: threading.Thread = field(init=False)
    batch: Batch | None = None
    since: float = 0.0
    stuck: bool = False


class Lanes:
    """Runs what a batcher hands out, each batch whole on one thread.

    On the CPU each lane computes with one thread of its own: as many batches as cores run side by side, no core waits
    for another inside a product, and a batch has the same bits whatever the number of lanes. The thread settings of the
    caller stay as they are.

    Args:
        batcher: Where batches come from.
        devices: Where they run; a model has a replica on each.
        threads: Lanes of each priority on each device; None takes the CPU's physical cores, or 2 for CUDA.
        stuck_seconds: How long a batch may run.
        observer: Told of batches and faults.
    """

    def __init__(
        self,
        batcher: DynamicBatcher,
        *,
        devices: Sequence[torch.device],
        threads: int | None,
        stuck_seconds: float,
        observer: Observer,
    ) -> None:
        self._batcher, self._devices, self._observer = batcher, list(devices), observer
        self._stuck_seconds = stuck_seconds
        self._lanes = [
            _Lane(number, number % len(self._devices), priority)
            for priority in Priority
            for number in range(lanes_of(self._devices, threads))
        ]
        self._lock = threading.Lock()
        self._death: str | None = None
        self._last_end = time.monotonic()
        self._over = threading.Event()
        self._gives_way = False
        for lane in self._lanes:
            name = f"datapipe-{lane.priority.name.lower()}-{lane.number}"
            lane.thread = threading.Thread(target=self._serve, args=(lane,), name=name, daemon=True)
        self._start()
        threading.Thread(target=self._watch, name="datapipe-watch", daemon=True).start()

    def give_way(self) -> None:
        """Let bulk lanes on the CPU step back behind online lanes; for good, since no thread may take it back."""
        if self._gives_way or self._devices[0].type != "cpu":
            return
        self._gives_way = True
        for lane in self._lanes:
            if lane.priority is Priority.BULK and lane.thread.native_id is not None:
                _renice(lane.thread.native_id)

    def health(self) -> Health:
        """What the lanes do."""
        running = [lane for lane in self._lanes if lane.batch is not None]
        waiting = self._batcher.waiting
        last = max([self._last_end, *(lane.since for lane in running)])
        idle = time.monotonic() - last if running or waiting else 0.0
        if self._death is not None:
            return Health("dead", self._death, waiting, idle)
        stuck = [lane for lane in running if lane.stuck]
        if stuck:
            return Health("stuck", self._stuck_words(stuck[0]), waiting, idle)
        return Health("ok", "", waiting, idle)

    def refuse_if_stuck(self, priority: Priority) -> None:
        """Raise `WorkerStoppedError` if every lane of that priority is stuck."""
        if self._all_stuck(priority):
            raise WorkerStoppedError(self.health().detail)

    def join(self) -> None:
        """Wait for the running batches, once the batcher is stopped; a stuck one is not waited for."""
        self._over.set()
        for lane in self._lanes:
            while lane.thread.is_alive() and not lane.stuck and lane.thread is not threading.current_thread():
                lane.thread.join(0.2)

    def _start(self) -> None:
        import torch

        if self._devices[0].type != "cpu":
            # The bulk lanes of a device share a stream, so that of two batches one computes while the other is built.
            self._bulk_streams = [torch.cuda.Stream(device) for device in self._devices]  # type: ignore[no-untyped-call]
            for lane in self._lanes:
                lane.thread.start()
            return
        # torch keeps one setting a thread and one for threads to come: each lane sets its own to one, and the latter,
        # which that changes too, is put back.
        self._limited = threading.Barrier(len(self._lanes) + 1)
        with _setting_threads:
            before = torch.get_num_threads()
            for lane in self._lanes:
                lane.thread.start()
            self._limited.wait()
            torch.set_num_threads(before)
            self._limited.wait()

    def _serve(self, lane: _Lane) -> None:
        from datapipe.workers.encoders.graphs import replaying

        try:
            self._settle(lane)
            # Only bulk results are promised to the bit, and a replayed graph may differ in the last.
            with replaying() if lane.priority is Priority.ONLINE else nullcontext():
                self._work(lane)
        except BaseException as error:  # noqa: BLE001 - whatever ends a lane must reach those who wait for it
            self._die(lane, error)

    def _work(self, lane: _Lane) -> None:
        while (batch := self._batcher.take(lane.priority)) is not None:
            lane.since, lane.batch = time.monotonic(), batch
            run_batch(batch, device=lane.device, observer=self._observer)
            with self._lock:
                self._last_end = time.monotonic()
                lane.batch, lane.stuck = None, False
            del batch

    def _settle(self, lane: _Lane) -> None:
        """Bind the thread to its share of the device."""
        import torch

        device = self._devices[lane.device]
        if device.type == "cpu":
            torch.get_num_threads()  # the first call in a thread takes the common setting, later ones do not
            torch.set_num_threads(1)
            self._limited.wait()
            self._limited.wait()
            return
        torch.cuda.set_device(device)
        if lane.priority is Priority.ONLINE:
            torch.cuda.set_stream(torch.cuda.Stream(device, priority=-1))  # type: ignore[no-untyped-call]
        else:
            torch.cuda.set_stream(self._bulk_streams[lane.device])

    def _die(self, lane: _Lane, error: BaseException) -> None:
        reason = f"{type(error).__name__}: {error}"
        self._death = f"the worker is dead: {lane.thread.name} ended with {reason}; it does not recover, start it anew"
        _log.error("%s", self._death, exc_info=error)
        stopped = partial(WorkerStoppedError, self._death)
        self._batcher.stop(stopped)
        for batch in [each.batch for each in self._lanes]:
            if batch is not None:
                fail_batch(batch, stopped)

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._stuck_seconds / 4)):
            for lane in self._lanes:
                batch = self._found_stuck(lane)
                if batch is not None:
                    words = self._stuck_words(lane)
                    _log.error("%s", words)
                    stopped = partial(WorkerStoppedError, words)
                    fail_batch(batch, stopped)
                    if self._all_stuck(lane.priority):
                        self._batcher.fail_waiting(lane.priority, stopped)

    def _all_stuck(self, priority: Priority) -> bool:
        return all(lane.stuck for lane in self._lanes if lane.priority is priority)

    def _found_stuck(self, lane: _Lane) -> Batch | None:
        with self._lock:
            late = lane.batch is not None and time.monotonic() - lane.since > self._stuck_seconds
            if not late or lane.stuck:
                return None
            lane.stuck = True
            return lane.batch

    def _stuck_words(self, lane: _Lane) -> str:
        return (
            f"the worker is stuck: a batch on {self._devices[lane.device]} has run for more than "
            f"{self._stuck_seconds:g} s; it recovers if the batch ends"
        )


def _renice(thread: int) -> None:
    set_priority: Callable[[int, int, int], None] | None = getattr(os, "setpriority", None)
    if set_priority is None:
        return
    try:
        nice = os.getpriority(os.PRIO_PROCESS, thread)
        set_priority(os.PRIO_PROCESS, thread, min(19, nice + _GIVE_WAY))
    except OSError as error:
        _log.debug("thread %d keeps its priority: %s", thread, error)
