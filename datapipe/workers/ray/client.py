"""A worker whose models run in the replicas of a Ray Serve deployment.

    items -> parts of whole windows -> Arrow -> Serve's router -> Replica -> Arrow -> results

A part ends where a worker in process ends its windows, so both pack the same batches. Everything that Serve raises
becomes an error that says what the caller can do.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from datapipe.errors import (
    ConfigError,
    DeadlineError,
    ItemError,
    OverloadedError,
    WorkerError,
    WorkerStoppedError,
)
from datapipe.workers.faults import from_plain, shifted
from datapipe.workers.protocol import Health, Priority
from datapipe.workers.ray.cluster import Cluster, serve_api
from datapipe.workers.tasks.lookup import find_task
from datapipe.workers.wire import from_arrow, to_arrow
from datapipe.workers.worker import WINDOW_ITEMS

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping, Sequence
    from types import TracebackType

    from datapipe.workers.protocol import Item, Result, Task

__all__ = ["RayWorker", "ServedModel"]

T = TypeVar("T")

PARTS_AHEAD = 8
"""Parts of one call that are under way at a time."""


@dataclass(frozen=True)
class ServedModel:
    """A model of a deployment.

    Attributes:
        name: What callers ask for.
        digest: SHA-256 of its files.
        dim: Length of a result's vector; 0 for a task whose results hold none.
        bits: What changes the last bits of a result.
    """

    name: str
    digest: str
    dim: int
    bits: Mapping[str, str]


class RayWorker:
    """A worker whose models run in the replicas of a deployment; see `Worker`. Usable from several threads and loops.

    Vectors have the bits that they have in process: requests are split where a worker ends its windows.

    Args:
        handle: Of the deployment.
        name: Of the deployment.
        cluster: The Ray that it is on; closed with the worker.
    """

    def __init__(self, handle: Any, *, name: str, cluster: Cluster) -> None:
        self._handle, self._name, self._cluster = handle, name, cluster
        self._closed = False
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def connect(cls, name: str = "datapipe", *, address: str | None = None) -> Self:
        """A worker of a deployment that is there already.

        Raises:
            ConfigError: There is no Ray at the address, or no such deployment on it.
        """
        cluster = Cluster(address)
        cluster.open()
        serve = serve_api()
        from ray.serve.exceptions import RayServeException

        try:
            return cls(serve.get_app_handle(name), name=name, cluster=cluster)
        except RayServeException as error:
            cluster.close()
            raise ConfigError(f"there is no deployment {name!r} on this Ray: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def models(self) -> list[str]:
        """Names of the models that the deployment serves."""
        names: list[str] = self._wait(self._ask(self._handle.models.remote(), None))
        return names

    def load(self, model: str, *, task: str = "embed") -> ServedModel:
        """Digest, width and bits of a model; replicas load theirs when they start.

        Raises:
            ModelError: The deployment does not serve it.
            ConfigError: The task is unknown, or not the model's.
        """
        found = self._wait(self._ask(self._handle.describe.remote(model, task), None))
        if "kind" in found:
            raise from_plain(found)
        return ServedModel(model, found["digest"], found["dim"], found["bits"])

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
        return self._wait(self.arun(task, items, model=model, priority=priority, deadline=deadline))

    async def arun(
        self,
        task: str,
        items: Sequence[Item],
        *,
        model: str,
        priority: Priority = Priority.BULK,
        deadline: float | None = None,
    ) -> list[Result]:
        """The same as `run`, without blocking the event loop; cancelling it cancels what replicas have of it."""
        if self._closed:
            raise WorkerStoppedError("the worker is closed")
        kind, expires = find_task(task), None if deadline is None else time.monotonic() + deadline
        starts = deque(range(0, max(len(items), 1), WINDOW_ITEMS))
        flying: deque[tuple[int, Any]] = deque()
        results: list[Result] = []
        try:
            while starts or flying:
                while starts and len(flying) < PARTS_AHEAD:
                    first = starts.popleft()
                    part = items[first : first + WINDOW_ITEMS]
                    flying.append((first, self._send(task, kind, part, model, Priority(priority), _left(expires))))
                first, sent = flying[0]
                try:
                    results += await self._results(kind, sent, expires)
                except ItemError as error:
                    raise shifted(error, first) from error.__cause__
                flying.popleft()
        finally:
            for _, sent in flying:
                if not isinstance(sent, ItemError):
                    sent.cancel()
        return results

    def health(self) -> Health:
        """What Serve last saw of the replicas, without asking them for work."""
        import ray.exceptions

        serve = serve_api()
        from ray.serve.exceptions import RayServeException

        if self._closed:
            return Health("closed", "the worker is closed")
        try:
            found = serve.status().applications.get(self._name) if ray.is_initialized() else None
        except (ray.exceptions.RayError, RayServeException) as error:
            return Health("dead", f"Serve does not answer: {error}")
        if found is None:
            return Health("dead", f"there is no deployment {self._name} any more; deploy it again")
        running = sum(deployment.replica_states.get("RUNNING", 0) for deployment in found.deployments.values())
        if running:
            return Health("ok")
        message = f"no replica of {self._name} is running ({found.status.value}): {found.message}"
        return Health("dead" if found.status in {"DEPLOY_FAILED", "DELETING"} else "stuck", message)

    def close(self) -> None:
        """Refuse everything after, and end a Ray that this worker has started; other deployments go on."""
        self._closed = True
        self._cluster.close()
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None

    def _send(
        self, task: str, kind: type[Task], part: Sequence[Item], model: str, priority: Priority, left: float | None
    ) -> Any:
        """Begin the call of a part; an unusable item is its answer, which waits for those of the parts before."""
        try:
            written = to_arrow(part, kind.item_schema())
        except ItemError as error:
            return error
        return self._handle.run.remote(task, written, model, int(priority), left)

    async def _results(self, kind: type[Task], sent: Any, expires: float | None) -> list[Result]:
        if isinstance(sent, ItemError):
            raise sent
        answer = await self._ask(sent, expires)
        if isinstance(answer, dict):
            raise from_plain(answer)
        return from_arrow(answer, kind.result_schema(), kind.result_type)

    async def _ask(self, sent: Any, expires: float | None) -> Any:
        """What a replica answers; what Serve raises becomes an error of ours."""
        with _explained(self._name):
            try:
                async with asyncio.timeout(_left(expires)):
                    return await sent
            except TimeoutError as error:
                message = f"the deadline of a call to deployment {self._name} passed before it was done"
                raise DeadlineError(message) from error

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call on a loop of the worker's own, since the caller's thread may have one that runs."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="datapipe-ray", daemon=True).start()
        waiting = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return waiting.result()
        except BaseException:
            waiting.cancel()
            raise


def _left(expires: float | None) -> float | None:
    """Seconds to a time of the monotonic clock, 0 once it has passed."""
    return None if expires is None else max(0.0, expires - time.monotonic())


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what Serve raises into errors that say what the caller can do."""
    import ray.exceptions
    from ray.serve.exceptions import BackPressureError, RayServeException

    try:
        yield
    except BackPressureError as error:
        message = f"the queue of deployment {name} is full ({error.message})"
        raise OverloadedError(message, retry_after=error.retry_after_s or 1.0) from error
    except (ray.exceptions.RayTaskError, ray.exceptions.OutOfMemoryError) as error:
        raise WorkerError(f"a replica of deployment {name} failed: {error}") from error
    except (ray.exceptions.RayError, RayServeException) as error:
        message = f"a replica of deployment {name} is gone before the call was done: {error}"
        raise WorkerStoppedError(f"{message}. Serve starts another; the call may be made again") from error
