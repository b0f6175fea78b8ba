"""What stands before every route: key, room, body within limits and in time, and an end to work nobody waits for.

    request -> key (401) -> room (429) -> body (408, 413) -> route, raced against the client going away -> answer

An ASGI layer inside the application: what it refuses costs no parsing, and every answer passes it, so it also counts,
logs and names them. Logs hold the method, the route, the status and the time, never a body or a query.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson

from datapipe.errors import DatapipeError, OverloadedError
from datapipe.workers.http.errors import SlowRequestError, TooLargeError, answer_of, error_body, error_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from datapipe.settings import ServeSettings
    from datapipe.workers.http.auth import Keys
    from datapipe.workers.http.metrics import Metrics

__all__ = ["PUBLIC_PATHS", "Gate", "answer_error"]

_log = logging.getLogger(__name__)

PUBLIC_PATHS = frozenset({"/health", "/ready", "/metrics", "/", "/docs", "/openapi.json"})
"""Need no key: what orchestrators ask, and pages that hold nothing of the server's own."""

TASK_PATHS = "/v1/tasks/"
CLIENT_GONE = 499
_DISCARDED = 4
"""An oversize body is read on up to so many times its limit, since a client that still sends misses the answer."""
_DISCARD_SECONDS = 2.0


class Gate:
    """The layer; one for an application.

    Args:
        app: What is behind it.
        settings: Limits and times.
        keys: Who may enter.
        metrics: Told of every request.
    """

    def __init__(self, app: ASGIApp, *, settings: ServeSettings, keys: Keys, metrics: Metrics) -> None:
        self._app, self._settings, self._keys, self._metrics = app, settings, keys, metrics
        self._requests = self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        begun = time.monotonic()
        self._metrics.begun()
        try:
            await self._pass(scope, receive, answer)
        except _GoneError:
            pass
        except Exception as error:  # noqa: BLE001 - the last place where an error can become an answer
            if answer_of(error).status == 500:  # noqa: PLR2004 - others are no surprise, and the line below names them
                _log_error(error, request_id)
            if answer.status is None:
                await answer_error(error, scope, receive, answer)
        finally:
            seconds = time.monotonic() - begun
            status, route = answer.status or CLIENT_GONE, _route(scope)
            self._metrics.answered(route=route, status=status, seconds=seconds)
            _log.info("%s %s %d %.1f ms, request %s", _method(scope), route, status, seconds * 1000, request_id)

    async def _pass(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = dict(scope["headers"])
        public = scope["path"] in PUBLIC_PATHS
        if not public:
            self._keys.check(headers.get(b"authorization"))
        if scope["method"] != "POST":
            await self._app(scope, _replayed(b""), answer)
            return
        with self._room() as hold:
            body = await self._body(scope["path"], headers, receive, hold)
            scope["state"]["body"] = body
            await _raced(self._app(scope, _replayed(body), answer), receive)

    @contextmanager
    def _room(self) -> Iterator[_Hold]:
        """A place among the requests in progress, and for their bodies. Raises `OverloadedError`."""
        if self._requests >= self._settings.max_requests:
            raise OverloadedError(f"{self._requests:,} requests are in progress, as many as this server takes")
        hold = _Hold(self)
        self._requests += 1
        try:
            yield hold
        finally:
            self._requests -= 1
            self._bytes -= hold.nbytes

    def grow(self, nbytes: int) -> None:
        """Count bytes of a body. Raises `OverloadedError` where all bodies together are too large."""
        if self._bytes + nbytes > self._settings.max_pending_bytes:
            raise OverloadedError(f"the bodies of {self._requests:,} requests fill the memory set aside for them")
        self._bytes += nbytes

    async def _body(self, path: str, headers: dict[bytes, bytes], receive: Receive, hold: _Hold) -> bytes:
        """The whole body. Raises `TooLargeError`, `SlowRequestError`, `OverloadedError`, or `_GoneError`."""
        settings = self._settings
        limit = settings.max_task_bytes if path.startswith(TASK_PATHS) else settings.max_body_bytes
        refusal = TooLargeError(f"the body is larger than {limit:,} bytes; send less in one request")
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            if b"expect" not in headers and int(declared) <= _DISCARDED * limit:
                await _discard(receive, most=int(declared))
            raise refusal
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(settings.body_seconds):
                async for part in _chunks(receive):
                    if hold.nbytes + len(part) > limit:
                        await _discard(receive, most=_DISCARDED * limit)
                        raise refusal
                    hold.add(len(part))
                    parts.append(part)
        except TimeoutError:
            raise SlowRequestError(f"the body did not arrive within {settings.body_seconds:g} seconds") from None
        return b"".join(parts)


class _Hold:
    """The bytes that one request holds."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self.nbytes = gate, 0

    def add(self, nbytes: int) -> None:
        self._gate.grow(nbytes)
        self.nbytes += nbytes


class _Answer:
    """Passes an answer on and remembers its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._id = send, request_id.encode()
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._id)]
        await self._send(message)


class _GoneError(Exception):
    """The client closed the connection before its body was there."""


async def answer_error(error: BaseException, scope: Scope, receive: Receive, send: Any) -> None:
    """Write the answer of an error."""
    from starlette.responses import Response

    body = orjson.dumps(error_body(error, request_id=scope["state"]["request_id"]))
    headers = error_headers(error)
    status = answer_of(error).status
    if status in {408, 413}:  # the rest of the body may still be on its way
        headers["connection"] = "close"
    await Response(body, status, headers=headers, media_type="application/json")(scope, receive, send)


async def _raced(handling: Any, receive: Receive) -> None:
    """Run the route; cancel it when the client goes away, so that its items leave the queue."""
    work = asyncio.ensure_future(handling)
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel("the client is gone")
            await asyncio.wait({work})
        if not work.cancelled():
            work.result()
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _chunks(receive: Receive) -> Any:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _discard(receive: Receive, *, most: int) -> None:
    """Read on and forget, so that the client gets to read the answer; give up after a while."""
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            async for part in _chunks(receive):
                most -= len(part)
                if most < 0:
                    return
    except (TimeoutError, _GoneError):
        return


def _replayed(body: bytes) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # the gate itself waits for the disconnect
        raise AssertionError

    return receive


def _route(scope: Scope) -> str:
    """The route's own path, which names no part of a client's."""
    return str(
        getattr(scope.get("route"), "path", None) or (scope["path"] if scope["path"] in PUBLIC_PATHS else "other")
    )


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in {"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"} else "other"


def _log_error(error: Exception, request_id: str) -> None:
    """Where it happened and of what kind; its message may quote a request, unless it is one of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames[-8:]))
    message = str(error) if isinstance(error, DatapipeError) else "message withheld"
    _log.error("request %s failed: %s (%s) at %s", request_id, type(error).__name__, message, places)
