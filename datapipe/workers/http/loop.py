"""An event loop in a thread of its own, with one pool of connections, for calls from any thread and any other loop.

    run (a thread) or arun (some loop) -> Pool.wait or Pool.await_ -> coroutine on the loop -> its result

So blocking and asynchronous callers share connections, cancelling a caller cancels its request, and what is open is
closed in one place.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, TypeVar

from datapipe.errors import WorkerStoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future
    from typing import Any

    import httpx

__all__ = ["Pool"]

T = TypeVar("T")

_CLOSE_SECONDS = 5.0


class Pool:
    """Connections to one server, opened when they are first needed, and again in a process that was forked.

    Args:
        make_client: Makes the client, on the loop; must not hold the pool's owner.
    """

    def __init__(self, make_client: Callable[[], httpx.AsyncClient]) -> None:
        self._make_client = make_client
        self._lock = threading.Lock()
        self._thread: _LoopThread | None = None
        self._pid = 0
        self.closed = False

    @property
    def client(self) -> httpx.AsyncClient:
        """The client, for coroutines that `wait` and `await_` run. Raises `WorkerStoppedError` once closed."""
        thread = self._thread
        if thread is None:
            raise _closed_early()
        return thread.client

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it. Raises `WorkerStoppedError` where the pool is closed."""
        waiting = self._begin(call)
        try:
            return waiting.result()
        except CancelledError as error:
            raise _closed_early() from error
        except BaseException:
            waiting.cancel()
            raise

    async def await_(self, call: Coroutine[Any, Any, T]) -> T:
        """The same from another loop; cancelling it cancels the coroutine."""
        try:
            return await asyncio.wrap_future(self._begin(call))
        except asyncio.CancelledError as error:
            caller = asyncio.current_task()
            if self.closed and caller is not None and not caller.cancelling():
                raise _closed_early() from error
            raise

    def close(self) -> None:
        """Cancel what runs and refuse everything after; may be called again."""
        with self._lock:
            self.closed, thread, self._thread = True, self._thread, None
        if thread is not None:
            _close(thread, self._pid)

    def _begin(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self.closed:
                call.close()
                raise WorkerStoppedError("the worker is closed")
            if self._thread is None or self._pid != os.getpid():  # a fork leaves the thread behind
                self._thread, self._pid = _LoopThread(self._make_client), os.getpid()
                weakref.finalize(self, _close, self._thread, self._pid)
            return self._thread.submit(call)


class _LoopThread:
    """A running loop and its client.

    Args:
        make_client: Makes the client, on the loop.
    """

    def __init__(self, make_client: Callable[[], httpx.AsyncClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="datapipe-http", daemon=True)
        self._thread.start()
        self.client = self.submit(_made(make_client)).result()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a coroutine on the loop; cancelling its future cancels it there."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what runs, close the connections, end the thread."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive():
            self.submit(self._end()).result(_CLOSE_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_SECONDS)
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.aclose()
        await self._loop.shutdown_default_executor()


async def _made(make_client: Callable[[], httpx.AsyncClient]) -> httpx.AsyncClient:
    return make_client()


def _closed_early() -> WorkerStoppedError:
    return WorkerStoppedError("the worker was closed before the call was done")


def _close(thread: _LoopThread, pid: int) -> None:
    if pid == os.getpid():
        thread.close()
