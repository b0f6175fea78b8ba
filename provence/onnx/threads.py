"""Threads that run jobs, those of online calls first; a job that nobody waits for any more is not begun.

submit(priority, job) -> Future ; threads take the smallest (priority, order of arrival)
"""

from __future__ import annotations

import heapq
import threading
from concurrent.futures import Future
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from datapipe.errors import WorkerStoppedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.workers.protocol import Priority

__all__ = ["Threads"]

_T = TypeVar("_T")


class Threads:
    """Threads, begun with the first job.

    Args:
        threads: How many.
        name: What their names begin with.
    """

    def __init__(self, threads: int, *, name: str) -> None:
        self._count, self._name = threads, name
        self._waiting: list[tuple[int, int, Callable[[], Any], Future[Any]]] = []
        self._order = count()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting)

    def submit(self, priority: Priority, job: Callable[[], _T]) -> Future[_T]:
        """Have a job done; cancelling the future before it begins takes it back. Raises `WorkerStoppedError`."""
        future: Future[_T] = Future()
        with self._changed:
            if self._closed:
                raise WorkerStoppedError("the worker is closed")
            heapq.heappush(self._waiting, (int(priority), next(self._order), job, future))
            if len(self._threads) < self._count:
                name = f"{self._name}-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
                self._threads[-1].start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finish the jobs that run and fail those that wait with `WorkerStoppedError`; may be called again."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        for *_, future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(WorkerStoppedError("the worker was closed before the call was done"))
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                *_, job, future = heapq.heappop(self._waiting)
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - whoever waits for the future is told
                future.set_exception(error)
            del job, future
