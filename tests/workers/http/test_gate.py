"""The gate: keys, room, slow and broken bodies, clients that go away, and what is written to the log."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import BaseModel

from datapipe.errors import DeadlineError, OverloadedError, WorkerError, WorkerStoppedError
from datapipe.workers.http.route import Route
from datapipe.workers.protocol import Priority
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.embed import TextItem
from datapipe.workers.worker import LocalWorker
from tests.workers.echo import Held
from tests.workers.http.conftest import KEY, PRECISE
from tests.workers.http.servers import client_of, error_of, listening, talk, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from fastapi import FastAPI

TEXT = "the innkeeper's daughter hid the letter"
KEYED_PATHS = ["/v1/embeddings", "/v1/rerank", "/v2/rerank", "/rerank", "/v1/models", "/v1/tasks/embed", "/nowhere"]


ECHO = ModelSpec("echo", PRECISE.source, task="echo")


class Text(BaseModel):
    """A text."""

    text: str


class FaultyWorker(LocalWorker):
    """A real worker whose calls raise what a test says, instead of an answer."""

    fault: Exception | None = None

    async def arun(self, task: str, items: Sequence[Any], **options: Any) -> list[Any]:
        if self.fault is not None:
            raise self.fault
        return await super().arun(task, items, **options)


@pytest.fixture
def faulty() -> Any:
    with FaultyWorker([PRECISE], device="cpu") as worker:
        yield worker


@pytest.mark.parametrize("path", KEYED_PATHS)
@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "this server needs a key: send the header Authorization: Bearer KEY"),
        ("Basic YTpi", "this server needs a key: send the header Authorization: Bearer KEY"),
        ("Bearer", "this server needs a key: send the header Authorization: Bearer KEY"),
        ("Bearer not-" + KEY, "the key is not one of this server's"),
        ("Bearer " + KEY + "x", "the key is not one of this server's"),
        (b"Bearer \xff\xfe", "the key is not one of this server's"),
    ],
)
async def test_without_a_key_there_is_401(
    app_of: Callable[..., FastAPI], path: str, header: str | bytes | None, message: str
) -> None:
    headers: Any = {} if header is None else {"authorization": header}
    async with client_of(app_of(keys=(KEY, "another"))) as client:
        for response in (await client.get(path, headers=headers), await client.post(path, headers=headers)):
            assert response.status_code == 401
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert error_of(response) == {
                "message": message,
                "type": "authentication_error",
                "code": "invalid_api_key",
                "param": None,
            }


@pytest.mark.parametrize("key", [KEY, "another"])
async def test_any_key_of_the_server_opens_it(app_of: Callable[..., FastAPI], key: str) -> None:
    async with client_of(app_of(keys=(KEY, "another")), headers={"authorization": f"bearer {key}"}) as client:
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.post("/v1/embeddings", json={"input": "a"})).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/metrics", "/", "/docs", "/openapi.json"])
async def test_what_holds_no_data_needs_no_key(app_of: Callable[..., FastAPI], path: str) -> None:
    async with client_of(app_of(keys=(KEY,))) as client:
        assert (await client.get(path)).status_code == 200
        assert (await client.get("/ready")).status_code == 503  # nobody has started it


async def test_unknown_routes_and_methods_are_answered_in_the_same_form(app: FastAPI) -> None:
    async with client_of(app) as client:
        lost = await client.get("/v1/nowhere")
        wrong = await client.get("/v1/embeddings")
    assert (lost.status_code, error_of(lost)["code"]) == (404, "not_found")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (OverloadedError("the queue is full", retry_after=2.2), 429, "overloaded"),
        (DeadlineError("too late"), 504, "deadline"),
        (WorkerStoppedError("the worker is dead"), 503, "stopped"),
        (WorkerError("the device failed"), 500, "worker"),
    ],
)
async def test_faults_of_the_worker_have_their_status(
    app_of: Callable[..., FastAPI], faulty: FaultyWorker, fault: Exception, status: int, code: str
) -> None:
    faulty.fault = fault
    async with client_of(app_of(over=faulty)) as client:
        response = await client.post("/v1/embeddings", json={"input": "a"})
    assert response.status_code == status
    assert (error_of(response)["code"], error_of(response)["message"]) == (code, str(fault))
    assert response.headers.get("retry-after") == ("3" if status == 429 else None)


@asynccontextmanager
async def one_lane_held(**options: Any) -> AsyncIterator[tuple[LocalWorker, Held]]:
    """A real worker whose only online lane runs a batch that ends when a test says so."""
    with LocalWorker([PRECISE, ECHO], device="cpu", threads=1, **options) as worker:
        worker.load(PRECISE.name)
        held = Held(1)
        blocking = asyncio.create_task(worker.arun("echo", [held.item], model="echo", priority=Priority.ONLINE))
        await asyncio.to_thread(held.begun.wait, 10)
        try:
            yield worker, held
        finally:
            held.may_end.set()
            assert await blocking == [1]


async def test_a_full_queue_is_429_and_empties_again(app_of: Callable[..., FastAPI]) -> None:
    async with one_lane_held(queue_items=2) as (worker, held), client_of(app_of(over=worker)) as client:
        response = await client.post("/v1/embeddings", json={"input": ["a", "b"]})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert error_of(response)["type"] == "rate_limit_error"
        assert error_of(response)["message"].startswith("the worker holds 1 online items of at most 2")
        held.may_end.set()
        await asyncio.to_thread(wait_until, lambda: worker.health().idle_seconds == 0)
        assert (await client.post("/v1/embeddings", json={"input": ["a", "b"]})).status_code == 200


class Holding:
    """A route whose requests wait until they may end, and what has become of them."""

    def __init__(self) -> None:
        self.may_end, self.fates = asyncio.Event(), asyncio.Queue[str]()
        self.route = Route("/v1/hold", Text, Text, self._hold)

    async def _hold(self, request: Text, _: Any) -> Text:
        """Wait."""
        self.fates.put_nowait("begun")
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.fates.put_nowait("cancelled")
            raise
        return request

    async def next_fate(self) -> str:
        return await asyncio.wait_for(self.fates.get(), 10)


async def test_more_requests_at_a_time_than_the_limit_are_429(app_of: Callable[..., FastAPI]) -> None:
    holding = Holding()
    async with client_of(app_of(routes=(holding.route,), max_requests=2)) as client:
        held = [asyncio.create_task(client.post("/v1/hold", json={"text": "a"})) for _ in range(2)]
        assert [await holding.next_fate() for _ in held] == ["begun", "begun"]
        response = await client.post("/v1/embeddings", json={"input": "a"})
        assert response.status_code == 429
        assert error_of(response)["message"] == "2 requests are in progress, as many as this server takes"
        assert (await client.get("/health")).status_code == 200
        holding.may_end.set()
        assert [answer.status_code for answer in await asyncio.gather(*held)] == [200, 200]
        assert (await client.post("/v1/embeddings", json={"input": "a"})).status_code == 200


async def test_more_bytes_of_bodies_than_the_limit_are_429(app_of: Callable[..., FastAPI]) -> None:
    holding = Holding()
    async with client_of(app_of(routes=(holding.route,), max_pending_bytes=100)) as client:
        held = asyncio.create_task(client.post("/v1/hold", json={"text": "a" * 60}))
        assert await holding.next_fate() == "begun"
        response = await client.post("/v1/embeddings", json={"input": "a" * 60})
        assert response.status_code == 429
        assert error_of(response)["message"] == "the bodies of 2 requests fill the memory set aside for them"
        holding.may_end.set()
        await held
        assert (await client.post("/v1/embeddings", json={"input": "a" * 60})).status_code == 200


async def test_a_request_past_its_deadline_is_504_and_cancelled(app_of: Callable[..., FastAPI]) -> None:
    holding = Holding()
    async with client_of(app_of(routes=(holding.route,))) as client:
        response = await client.post("/v1/hold", json={"text": "a"}, headers={"x-request-timeout": "0.05"})
    assert response.status_code == 504
    assert error_of(response)["message"] == "the request was not done within 0.05 seconds"
    assert [await holding.next_fate() for _ in range(2)] == ["begun", "cancelled"]


async def test_items_past_their_deadline_leave_the_queue(app_of: Callable[..., FastAPI]) -> None:
    async with one_lane_held() as (worker, held), client_of(app_of(over=worker)) as client:
        response = await client.post("/v1/embeddings", json={"input": ["a", "b"]}, headers={"x-request-timeout": "0.1"})
        assert response.status_code == 504
        assert worker.health().queued == 0
        held.may_end.set()
        assert (await client.post("/v1/embeddings", json={"input": "a"})).status_code == 200


async def test_a_client_that_goes_away_takes_its_items_off_the_queue(app_of: Callable[..., FastAPI]) -> None:
    async with one_lane_held() as (worker, held):
        with listening(app_of(over=worker)) as url:
            await asyncio.to_thread(wait_until, lambda: worker.health().queued == 1)  # the server tries its models
            async with httpx.AsyncClient(trust_env=False) as client:
                asking = asyncio.create_task(client.post(f"{url}/v1/embeddings", json={"input": ["a", "b"]}))
                await asyncio.to_thread(wait_until, lambda: worker.health().queued == 3)
                asking.cancel()
                await asyncio.to_thread(wait_until, lambda: worker.health().queued == 1)
            held.may_end.set()


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"


def test_a_body_that_does_not_come_is_408(app_of: Callable[..., FastAPI]) -> None:
    with listening(app_of(body_seconds=0.2)) as url:
        answer = talk(url, HEAD + b'content-length: 99\r\n\r\n{"input":')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not arrive within 0.2 seconds" in answer
    assert b"connection: close" in answer


def test_a_body_that_trickles_is_408(app_of: Callable[..., FastAPI]) -> None:
    with listening(app_of(body_seconds=0.3)) as url:
        answer = talk(url, HEAD + b"content-length: 99\r\n\r\n", *[b" "] * 8, pause=0.1)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_an_endless_chunked_body_is_413_before_its_end(app_of: Callable[..., FastAPI]) -> None:
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    with listening(app_of(max_body_bytes=10_000)) as url:
        answer = talk(url, HEAD + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 3, b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"the body is larger than 10,000 bytes" in answer
        endless = talk(url, HEAD + b"transfer-encoding: chunked\r\n\r\n", chunk * 3, pause=0.1, seconds=20)
        assert endless.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_waits_for_leave_is_refused_before_it_sends(app_of: Callable[..., FastAPI]) -> None:
    with listening(app_of(max_body_bytes=10_000)) as url:
        begun = time.monotonic()
        answer = talk(url, HEAD + b"content-length: 20000\r\nexpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - begun < 2


def test_a_client_that_hangs_up_within_its_body_leaves_nothing(app_of: Callable[..., FastAPI]) -> None:
    with listening(app_of(max_requests=1)) as url:
        for _ in range(3):
            host, port = url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(HEAD + b'content-length: 99\r\n\r\n{"input":')
                time.sleep(0.05)
        answers = [httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, trust_env=False) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]


async def test_no_text_is_logged_whatever_happens(
    app_of: Callable[..., FastAPI], faulty: FaultyWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    faulty.fault = KeyError(TEXT)
    async with client_of(app_of(over=faulty, max_characters=100, keys=(KEY,))) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        failed = await client.post("/v1/embeddings", json={"input": TEXT})
        faulty.fault = None
        for body in ({"input": TEXT}, {"input": [TEXT, 1.5]}, {TEXT: TEXT}, {"input": TEXT * 9}):
            await client.post("/v1/embeddings", json=body)
        await client.post("/v1/embeddings", content=TEXT.encode())
        await client.get(f"/{TEXT}", params={"q": TEXT})
        await client.get(f"/v1/models/{TEXT}")
        await client.post("/v1/rerank", json={"query": TEXT, "documents": [TEXT]})
    assert failed.status_code == 500
    assert error_of(failed)["code"] == "internal"
    ours = [record for record in caplog.records if record.name.startswith(("datapipe", "uvicorn"))]
    assert any("POST /v1/embeddings 500" in record.getMessage() for record in ours)
    assert any("KeyError (message withheld)" in record.getMessage() for record in ours)
    for record in ours:
        written = logging.Formatter().format(record)
        assert TEXT not in written
        assert "innkeeper" not in written
        assert KEY not in written
    assert TEXT not in failed.text


async def test_every_answer_names_its_request_in_the_log(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="datapipe")
    async with client_of(app) as client:
        response = await client.post("/v1/embeddings", json={"input": "a"})
    assert response.headers["x-request-id"] in caplog.text


async def test_the_tests_stand_on_a_real_worker(worker: LocalWorker) -> None:
    assert worker.health().state == "ok"
    (result,) = await worker.arun("embed", [TextItem(json.dumps("a"))], model=PRECISE.name)
    assert result.vector.shape == (384,)
