"""A worker at the other end of HTTP: the contract of the worker in process, its errors and its bits.

    items -> parts -> Arrow -> POST /v1/tasks/{task}, some at a time -> Arrow -> results, in item order

A bulk call is cut only where a worker in process ends its windows, so both pack the same batches and give the same
bits. A window larger than `max_body_bytes` is refused, since cutting it would change them. An online call, whose
batches depend on other traffic anyway, is cut wherever it has to be.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

from datapipe.errors import ConfigError, DatapipeError, MissingExtraError, WorkerError
from datapipe.workers.http.loop import Pool
from datapipe.workers.http.parts import bodies, sent
from datapipe.workers.protocol import Health, Priority
from datapipe.workers.tasks.lookup import find_task
from datapipe.workers.wire import from_arrow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    import httpx

    from datapipe.workers.protocol import Item, Result

__all__ = ["HttpWorker", "RemoteModel"]

ARROW = "application/vnd.apache.arrow.stream"
KEY_VARIABLE = "DATAPIPE_API_KEY"
PARTS_AHEAD = 4
"""Parts of one call that are under way at a time, so that the server always has the next window."""

CONNECTIONS = 128
CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 10.0


@dataclass(frozen=True)
class RemoteModel:
    """A model of a server.

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


class HttpWorker:
    """A worker whose models run behind `datapipe serve`; see `Worker`. Usable from several threads and event loops.

    It can be pickled, without its key: a copy in another process takes the key from DATAPIPE_API_KEY there.

    Args:
        url: Of the server, such as `http://127.0.0.1:8000`.
        api_key: Bearer key; None takes DATAPIPE_API_KEY, if it is set.
        timeout: Seconds that the server may stay silent over one request; None waits for ever.
        retries: Further attempts where the server is overloaded, restarting, or cannot be reached.
        max_body_bytes: Bytes of one request; the server's `max_task_bytes`.

    Raises:
        ConfigError: The URL is none, holds a password, or an option is out of range.
        MissingExtraError: httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        retries: int = 6,
        max_body_bytes: int = 256 << 20,
    ) -> None:
        try:
            import httpx  # noqa: F401
        except ImportError as error:
            raise MissingExtraError.of("httpx", extra="serve", purpose="HttpWorker") from error
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
            raise ConfigError("the URL of a server looks like http://127.0.0.1:8000 and holds no user, key or query")
        for name, value, least in (("retries", retries, 0), ("max_body_bytes", max_body_bytes, 1)):
            if value < least:
                raise ConfigError(f"the {name!r} parameter of HttpWorker must be at least {least}. Got {value}")
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"the 'timeout' parameter of HttpWorker must be above 0. Got {timeout}")
        self._url, self._timeout, self._retries, self._max_body_bytes = (
            url.rstrip("/"),
            timeout,
            retries,
            max_body_bytes,
        )
        key = api_key or os.environ.get(KEY_VARIABLE) or None
        self._pool = Pool(partial(_client, self._url, key=key, timeout=timeout))

    def __repr__(self) -> str:
        return f"HttpWorker({self._url!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the key and the connections."""
        return {
            "url": self._url,
            "timeout": self._timeout,
            "retries": self._retries,
            "max_body_bytes": self._max_body_bytes,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def models(self) -> list[str]:
        """Names of the models that the server serves."""
        return [str(model["id"]) for model in self._pool.wait(self._get("/v1/models"))["data"]]

    def load(self, model: str, *, task: str = "embed") -> RemoteModel:
        """Digest, width and bits of a model.

        Raises:
            ModelError: The server does not serve it.
            ConfigError: The task is unknown, or not the model's.
        """
        found = self._pool.wait(self._get(_task_path(task), model=model))
        return RemoteModel(found["model"], found["digest"], found["dim"], found["bits"])

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
        """The same as `run`, without blocking the event loop; cancelling it takes what waits of it off the server."""
        return await self._pool.await_(self._run(task, items, model, Priority(priority), deadline))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer of a route that takes JSON, such as one that another package brings; raises its error."""
        return self._pool.wait(self._post(path, body))

    def health(self) -> Health:
        """What the server says of its worker; a server that cannot be reached counts as dead."""
        if self._pool.closed:
            return Health("closed", "the worker is closed")
        try:
            return self._pool.wait(self._health())
        except DatapipeError as error:
            return Health("dead", str(error))

    def close(self) -> None:
        """Cancel what runs and refuse everything after; the server goes on. May be called again."""
        self._pool.close()

    async def _run(
        self, task: str, items: Sequence[Item], model: str, priority: Priority, deadline: float | None
    ) -> list[Result]:
        from datapipe.workers.http.exchange import Retries, exchange

        kind, expires = find_task(task), None if deadline is None else time.monotonic() + deadline
        params = {"model": model, "priority": priority.name.lower()}

        async def send(body: bytes) -> list[Result]:
            response = await exchange(
                self._pool.client,
                "POST",
                _task_path(task),
                expires=expires,
                retries=Retries(attempts=self._retries),
                params=params,
                content=body,
                headers={"content-type": ARROW},
            )
            try:
                return from_arrow(response.content, kind.result_schema(), kind.result_type)
            except ValueError as error:
                told = f"{self._url} answered with something else than results of {task}: {error}"
                raise WorkerError(told) from error

        return await sent(bodies(kind, items, priority=priority, most=self._max_body_bytes), send, ahead=PARTS_AHEAD)

    async def _get(self, path: str, **params: str) -> Any:
        from datapipe.workers.http.exchange import Retries, exchange

        retries = Retries(attempts=self._retries)
        response = await exchange(self._pool.client, "GET", path, expires=None, retries=retries, params=params)
        return response.json()

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        from datapipe.workers.http.exchange import Retries, exchange

        retries = Retries(attempts=self._retries)
        response = await exchange(self._pool.client, "POST", path, expires=None, retries=retries, json=dict(body))
        return response.json()

    async def _health(self) -> Health:
        import httpx

        from datapipe.workers.http.exchange import error_of

        try:
            response = await self._pool.client.get("/health", timeout=HEALTH_SECONDS)
        except httpx.TransportError as error:
            return Health("dead", f"{self._url} cannot be reached ({type(error).__name__})")
        try:
            told = response.json()
            state = {"failing": "stuck"}.get(told["status"], told["status"])
            return Health(state, told["detail"], told["queued"], told["idle_seconds"])
        except (ValueError, LookupError, TypeError):
            return Health("dead", str(error_of(response)))


def _client(url: str, *, key: str | None, timeout: float | None) -> httpx.AsyncClient:
    import httpx

    from datapipe.workers.http.auth import is_loopback

    return httpx.AsyncClient(
        base_url=url,
        headers={"authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS, pool=None),
        limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        trust_env=not is_loopback(urlsplit(url).hostname or ""),
    )


def _task_path(task: str) -> str:
    return f"/v1/tasks/{quote(task, safe='')}"
