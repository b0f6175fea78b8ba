"""The connection: heads that are too long or do not come, and bytes that are no HTTP."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.workers.http.servers import listening, talk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

HEAD = b"GET /v1/models HTTP/1.1\r\nhost: a\r\n"


@pytest.fixture
def narrow(app_of: Callable[..., FastAPI]) -> Iterator[str]:
    """A server that takes heads of 1,000 bytes within half a second."""
    with listening(app_of(), max_header_bytes=1000, head_seconds=0.5) as url:
        yield url


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"x: " + b"a" * 1000 + b"\r\n\r\n",
        HEAD + b"".join(b"x%d: a\r\n" % n for n in range(200)) + b"\r\n",
        b"GET /v1/models?" + b"a" * 1000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        HEAD + b"x: " + b"a" * 300_000,
    ],
    ids=["one header", "many headers", "the address", "without an end"],
)
def test_a_head_that_is_too_long_is_431(narrow: str, head: bytes) -> None:
    answer = talk(narrow, head)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b'"message":"request line and headers are longer than 1,000 bytes"' in answer
    assert b'"code":"headers_too_large"' in answer


def test_a_long_head_in_small_pieces_is_431_before_its_end(narrow: str) -> None:
    answer = talk(narrow, HEAD, *[b"x: " + b"a" * 100 + b"\r\n"] * 20, pause=0.01)
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_a_head_at_the_limit_is_taken(narrow: str) -> None:
    with httpx.Client(trust_env=False) as client:
        for _ in range(3):  # on one connection
            assert client.get(f"{narrow}/v1/models", headers={"x": "a" * 700}).status_code == 200


def test_a_head_that_does_not_come_is_408(narrow: str) -> None:
    answer = talk(narrow, HEAD, *[b"x: a\r\n"] * 20, pause=0.05)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"the headers did not arrive within 0.5 seconds" in answer


def test_a_second_head_on_a_connection_has_its_time_too(narrow: str) -> None:
    answer = talk(narrow, HEAD + b"\r\n", b"GET /v1/mod", pause=0.1)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer


def test_a_connection_without_a_request_is_closed_without_an_answer(narrow: str) -> None:
    begun = time.monotonic()
    assert talk(narrow) == b""
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "request_", [b"\x16\x03\x01\x02\x00", b"BREW / HTTP/1.1\r\n\r\n", b"GET http://[ HTTP/1.1\r\nhost: a\r\n\r\n"]
)
def test_what_is_no_http_is_400(narrow: str, request_: bytes) -> None:
    assert talk(narrow, request_).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "extra", [b"content-length: 5\r\ntransfer-encoding: chunked\r\n", b"content-length: 5\r\ncontent-length: 6\r\n"]
)
def test_a_body_of_two_lengths_is_refused(narrow: str, extra: bytes) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    assert talk(narrow, head + extra + b"\r\n{}").startswith(b"HTTP/1.1 400 ")


def test_many_idle_connections_keep_nobody_out(narrow: str) -> None:
    host, port = narrow.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(200)]
    try:
        assert httpx.get(f"{narrow}/v1/models", trust_env=False).status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_no_websocket_is_opened(narrow: str) -> None:
    upgrade = (
        b"upgrade: websocket\r\nconnection: upgrade, close\r\nsec-websocket-key: a\r\nsec-websocket-version: 13\r\n\r\n"
    )
    assert talk(narrow, HEAD + upgrade).startswith(b"HTTP/1.1 200 ")  # answered as the plain request that it also is
