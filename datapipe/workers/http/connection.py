"""uvicorn's connection with two bounds that it lacks: how long a request's head may be, and how long it may take.

    bytes -> head within max_header_bytes (431) and within the time (408) -> uvicorn

Without them a client could fill the memory with one header, or hold a connection for ever with half of one.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, ClassVar, cast

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from datapipe.workers.http.errors import BadHeadersError, RequestError, SlowRequestError, answer_of, error_body

if TYPE_CHECKING:
    import asyncio

__all__ = ["bounded"]

_REASONS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}
_SEPARATORS = 4
"""Bytes of a header line besides name and value."""


def bounded(*, max_header_bytes: int, head_seconds: float) -> type[asyncio.Protocol]:
    """The class that uvicorn makes its connections of.

    Args:
        max_header_bytes: Bytes of a request line and its headers.
        head_seconds: Time in which they must arrive, from the first byte, or from the connection for the first request.
    """
    limits = {"max_header_bytes": max_header_bytes, "head_seconds": head_seconds}
    return type("BoundedConnection", (_Connection,), limits)


class _Connection(HttpToolsProtocol):
    max_header_bytes: ClassVar[int]
    head_seconds: ClassVar[float]

    _in_head = True
    _begun = False
    _head_bytes = 0
    _too_long = False
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self.max_header_bytes:
            self._refuse(self._length_error())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._begun = True
        if self._waiting is None:
            self._head_bytes = 0
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._in_head = self._begun = False
        self._head_bytes = 0
        self._stop_waiting()
        length = len(self.url) + sum(len(name) + len(value) + _SEPARATORS for name, value in self.headers)
        if length > self.max_header_bytes:
            self._too_long = True
            raise self._length_error()  # the parser hands it on as HttpParserError
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self._too_long:
            self._refuse(self._length_error())
        else:
            super().send_400_response(msg)

    def _expect_head(self) -> None:
        self._waiting = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        if self._begun:
            self._refuse(SlowRequestError(f"the headers did not arrive within {self.head_seconds:g} seconds"))
        else:  # a browser connects ahead of need; it gets no answer to a question that it did not ask
            self._stop_waiting()
            self.transport.close()

    def _refuse(self, error: RequestError) -> None:
        """Answer without the application, which has not seen the request, and hang up."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        status = answer_of(error).status
        body = orjson.dumps(error_body(error, request_id=uuid.uuid4().hex))
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (status, _REASONS[status], len(body), body)
        )
        self.transport.close()

    def _length_error(self) -> BadHeadersError:
        return BadHeadersError(f"request line and headers are longer than {self.max_header_bytes:,} bytes")
