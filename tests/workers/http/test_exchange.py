"""What `HttpWorker` does when the network or the server does not: again, later, or an error that says which."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from datapipe.errors import (
    ConfigError,
    DeadlineError,
    OverloadedError,
    WorkerError,
    WorkerStoppedError,
)
from datapipe.workers.http.client import HttpWorker
from datapipe.workers.http.exchange import Retries
from datapipe.workers.tasks.embed import TextItem
from tests.workers.http.conftest import PRECISE
from tests.workers.http.servers import listening, wait_until

if TYPE_CHECKING:
    from fastapi import FastAPI

MODEL = PRECISE.name
TEXTS = [TextItem("Which card was declined?"), TextItem("")]


class Unreliable:
    """A real application behind a network that does to its first requests what a test says."""

    def __init__(self, app: Any, *faults: int | str, retry_after: str | None = None) -> None:
        self._app, self._faults, self._retry_after = app, list(faults), retry_after
        self.requests: list[tuple[str, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        self.requests.append((scope["path"], scope["query_string"]))
        fault = self._faults.pop(0) if self._faults else None
        if fault is None:
            await self._app(scope, receive, send)
        elif fault == "drop":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            raise ConnectionError  # the answer has begun, so uvicorn hangs up
        elif fault == "garbage":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"<html>"})
        elif fault == "hang":
            await asyncio.wait_for(_gone(receive), 30)
        else:
            headers = [(b"retry-after", self._retry_after.encode())] if self._retry_after else []
            await send({"type": "http.response.start", "status": fault, "headers": headers})
            await send({"type": "http.response.body", "body": b"no"})


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.mark.parametrize("fault", [429, 502, 503, "drop"])
def test_what_may_pass_is_sent_again(app: FastAPI, fault: int | str) -> None:
    network = Unreliable(app, fault, fault)
    with listening(network) as url, HttpWorker(url) as remote:
        assert len(remote.run("embed", TEXTS, model=MODEL)) == len(TEXTS)
    assert len(network.requests) == 3


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (429, OverloadedError, "answered 429"),
        (503, WorkerStoppedError, "answered 503"),
        ("drop", WorkerStoppedError, "cannot be reached"),
    ],
)
def test_after_the_last_attempt_the_fault_is_told(
    app: FastAPI, fault: int | str, error: type[Exception], message: str
) -> None:
    network = Unreliable(app, *[fault] * 9)
    with listening(network) as url, HttpWorker(url, retries=1) as remote, pytest.raises(error, match=message):
        remote.run("embed", TEXTS, model=MODEL)
    assert len(network.requests) == 2


@pytest.mark.parametrize(
    ("fault", "error"), [(500, WorkerError), (404, ConfigError), (400, ConfigError), ("garbage", WorkerError)]
)
def test_what_will_not_pass_is_not_sent_again(app: FastAPI, fault: int | str, error: type[Exception]) -> None:
    network = Unreliable(app, fault, fault)
    with listening(network) as url, HttpWorker(url) as remote, pytest.raises(error):
        remote.run("embed", TEXTS, model=MODEL)
    assert len(network.requests) == 1


def test_retry_after_is_honoured(app: FastAPI) -> None:
    network = Unreliable(app, 429, retry_after="1")
    begun = time.monotonic()
    with listening(network) as url, HttpWorker(url) as remote:
        remote.run("embed", TEXTS[:1], model=MODEL)
    assert time.monotonic() - begun >= 1


def test_waits_grow_up_to_a_bound_and_differ() -> None:
    retries = Retries(first_seconds=0.5, most_seconds=4.0)
    for attempt, longest in enumerate([0.5, 1.0, 2.0, 4.0, 4.0]):
        waits = [retries.wait(attempt, 0.0) for _ in range(200)]
        assert longest / 2 < max(waits) <= longest
        assert len(set(waits)) > 100
    assert min(retries.wait(0, 3.0) for _ in range(50)) >= 3.0


def test_no_wait_goes_past_the_deadline(app: FastAPI) -> None:
    network = Unreliable(app, *[429] * 9, retry_after="60")
    with listening(network) as url, HttpWorker(url) as remote:
        begun = time.monotonic()
        with pytest.raises(DeadlineError, match=r"the deadline of a call to http://127\.0"):
            remote.run("embed", TEXTS[:1], model=MODEL, deadline=5)
        assert time.monotonic() - begun < 4
    assert len(network.requests) == 1


def test_each_attempt_tells_the_server_what_is_left_of_the_deadline(app: FastAPI) -> None:
    network = Unreliable(app, 429, 429)
    with listening(network) as url, HttpWorker(url) as remote:
        remote.run("embed", TEXTS[:1], model=MODEL, deadline=20)
    left = [float(query.partition(b"deadline=")[2]) for _, query in network.requests]
    assert 20 >= left[0] > left[1] > left[2] > 0


def test_a_server_that_hangs_is_left_at_the_deadline(app: FastAPI) -> None:
    with listening(Unreliable(app, "hang")) as url, HttpWorker(url) as remote, pytest.raises(DeadlineError):
        remote.run("embed", TEXTS[:1], model=MODEL, deadline=0.2)


def test_a_server_that_stays_silent_is_given_up(app: FastAPI) -> None:
    with (
        listening(Unreliable(app, "hang")) as url,
        HttpWorker(url, timeout=0.2) as remote,
        pytest.raises(WorkerStoppedError, match=r"did not answer within 0\.2 seconds"),
    ):
        remote.run("embed", TEXTS[:1], model=MODEL)


def test_a_server_that_is_not_there_is_said_to_be_dead() -> None:
    with HttpWorker("http://127.0.0.1:9", retries=0) as remote:
        assert remote.health().state == "dead"
        assert "http://127.0.0.1:9 cannot be reached" in remote.health().detail
        with pytest.raises(WorkerStoppedError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
            remote.run("embed", TEXTS, model=MODEL)


async def test_cancelling_a_call_takes_it_off_the_server(app: FastAPI) -> None:
    left = threading.Event()

    async def hold(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    with listening(hold) as url, HttpWorker(url) as remote:
        call = asyncio.create_task(remote.arun("embed", TEXTS, model=MODEL))
        await asyncio.sleep(0.3)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(left.wait, 10)


async def test_closing_ends_the_calls_that_run_and_refuses_others(app: FastAPI) -> None:
    network = Unreliable(app, "hang", "hang")
    with listening(network) as url:
        remote = HttpWorker(url)
        waiting = asyncio.create_task(remote.arun("embed", TEXTS, model=MODEL))
        in_thread = asyncio.create_task(asyncio.to_thread(remote.run, "embed", TEXTS, model=MODEL))
        await asyncio.to_thread(wait_until, lambda: len(network.requests) == 2)
        await asyncio.to_thread(remote.close)
        for call in (waiting, in_thread):
            with pytest.raises(WorkerStoppedError, match="the worker was closed before the call was done"):
                await call
        remote.close()
        assert remote.health().state == "closed"
        with pytest.raises(WorkerStoppedError, match="the worker is closed"):
            remote.run("embed", TEXTS, model=MODEL)
        with pytest.raises(WorkerStoppedError, match="the worker is closed"):
            await remote.arun("embed", TEXTS, model=MODEL)
