"""A worker whose models run in the replicas of a Ray Serve deployment.

    items -> windows -> Arrow -> Serve's router -> Replica -> Arrow -> results, in item order

A call is cut only where a worker in process ends its windows, so both pack the same batches and give the same bits.
Everything that Serve raises becomes an error that says what the caller can do.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, cast

from datapipe.errors import (
    ConfigError,
    DeadlineError,
    OverloadedError,
    WorkerError,
    WorkerStoppedError,
)
from datapipe.workers.faults import from_plain
from datapipe.workers.http.client import RemoteModel
from datapipe.workers.http.loop import Pool
from datapipe.workers.http.parts import bodies, sent
from datapipe.workers.protocol import Health, Priority
from datapipe.workers.ray.cluster import Cluster, serve_api
from datapipe.workers.tasks.lookup import find_task
from datapipe.workers.wire import from_arrow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from datapipe.workers.protocol import Item, Result

__all__ = ["RayWorker"]

PARTS_AHEAD = 8
"""Parts of one call that are under way at a time, so that several replicas have work."""


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
        self._pool = Pool(cast("Any", _Nothing))

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
        names: list[str] = self._pool.wait(self._ask(None, "models"))
        return names

    def load(self, model: str, *, task: str = "embed") -> RemoteModel:
        """Digest, width and bits of a model; replicas load theirs when they start.

        Raises:
            ModelError: The deployment does not serve it.
            ConfigError: The task is unknown, or not the model's.
        """
        found = self._pool.wait(self._ask(None, "describe", model, task))
        if "kind" in found:
            raise from_plain(found)
        return RemoteModel(model, found["digest"], found["dim"], found["bits"])

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
        return self._pool.wait(self._run(task, items, model, Priority(priority), deadline))

    async def arun(
        self,
        task: str,
        items: Sequence[Item],
        *,
        model: str,
        priority: Priority = Priority.BULK,
        deadline: float | None = None,
    ) -> list[Result]:
        """The same as `run`, without blocking the event loop; cancelling it takes what waits of it off the replicas."""
        return await self._pool.await_(self._run(task, items, model, Priority(priority), deadline))

    def health(self) -> Health:
        """What Serve last saw of the replicas, without asking them for work."""
        import ray.exceptions

        serve = serve_api()
        from ray.serve.exceptions import RayServeException

        if self._pool.closed:
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
        """Cancel what runs, refuse everything after, and end a Ray that was started for this worker."""
        self._pool.close()
        self._cluster.close()

    async def _run(
        self, task: str, items: Sequence[Item], model: str, priority: Priority, deadline: float | None
    ) -> list[Result]:
        kind, expires = find_task(task), None if deadline is None else time.monotonic() + deadline

        async def send(body: bytes) -> list[Result]:
            answer = await self._ask(expires, "run", task, body, model, int(priority), _left(expires))
            if isinstance(answer, bytes):
                return from_arrow(answer, kind.result_schema(), kind.result_type)
            raise from_plain(answer)

        return await sent(bodies(kind, items, priority=priority, most=sys.maxsize), send, ahead=PARTS_AHEAD)

    async def _ask(self, expires: float | None, method: str, *arguments: Any) -> Any:
        """What a replica answers; cancelling it, or a deadline that passes, cancels the call in the replica."""
        with _explained(self._name):
            response = getattr(self._handle, method).remote(*arguments)
            try:
                async with asyncio.timeout(_left(expires)):
                    return await response
            except TimeoutError as error:
                response.cancel()
                message = f"the deadline of a call to deployment {self._name} passed before it was done"
                raise DeadlineError(message) from error
            except asyncio.CancelledError:
                response.cancel()
                raise


class _Nothing:
    """What the pool holds open: nothing, since the router of a handle has connections of its own."""

    async def aclose(self) -> None:
        """Do nothing."""


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
