"""`/health` asks the worker and tells the truth; `/ready` waits for the models."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from datapipe.errors import WorkerError, WorkerStoppedError
from datapipe.workers.protocol import Priority
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.embed import TextItem
from datapipe.workers.worker import LocalWorker
from tests.workers.echo import EchoItem, Held
from tests.workers.http.conftest import PRECISE
from tests.workers.http.servers import client_of, listening, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from fastapi import FastAPI

ECHO = ModelSpec("echo", PRECISE.source, task="echo")


class Counting(LocalWorker):
    """A real worker that counts its calls and fails them on demand."""

    calls = 0
    fault: Exception | None = None

    async def arun(self, task: str, items: Sequence[Any], **options: Any) -> list[Any]:
        self.calls += 1
        if self.fault is not None:
            raise self.fault
        return await super().arun(task, items, **options)


@pytest.fixture
async def worker() -> AsyncIterator[Counting]:
    with Counting([PRECISE, ECHO], device="cpu", threads=1, stuck_seconds=2.0) as opened:
        opened.load(PRECISE.name)
        yield opened


async def ask(app: FastAPI, path: str = "/health") -> httpx.Response:
    async with client_of(app) as client:
        return await client.get(path)


async def test_a_worker_that_answers_is_healthy(app_of: Callable[..., FastAPI], worker: Counting) -> None:
    response = await ask(app_of(over=worker))
    assert response.status_code == 200
    assert response.json() == {"status": "ok", "detail": "", "queued": 0, "idle_seconds": 0.0}
    assert worker.calls == 1


async def test_many_probes_cost_one_item(app_of: Callable[..., FastAPI], worker: Counting) -> None:
    app = app_of(over=worker)
    answers = await asyncio.gather(*(ask(app) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert worker.calls == 1


async def test_an_answer_is_kept_for_about_a_second(
    app_of: Callable[..., FastAPI], worker: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(over=worker)
    now = time.monotonic()
    await ask(app)
    monkeypatch.setattr("datapipe.workers.http.health.time.monotonic", lambda: now + 5)
    await ask(app)
    assert worker.calls == 2


async def test_a_closed_worker_is_503_with_its_reason(app_of: Callable[..., FastAPI], worker: Counting) -> None:
    worker.close()
    response = await ask(app_of(over=worker))
    assert response.status_code == 503
    assert (response.json()["status"], response.json()["detail"]) == ("closed", "the worker is closed")


async def test_a_dead_worker_is_503_with_its_reason(app_of: Callable[..., FastAPI], worker: Counting) -> None:
    def die() -> None:
        raise SystemExit("gone")

    with pytest.raises(WorkerStoppedError):
        await worker.arun("echo", [EchoItem(1, die)], model="echo", priority=Priority.ONLINE)
    response = await ask(app_of(over=worker))
    assert response.status_code == 503
    assert response.json()["status"] == "dead"
    assert response.json()["detail"].startswith("the worker is dead: ")
    assert "start it anew" in response.json()["detail"]


async def test_a_worker_whose_device_fails_is_503_until_it_does_not(
    app_of: Callable[..., FastAPI], worker: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapipe.workers.http.health.KEPT_SECONDS", 0.0)
    app = app_of(over=worker)
    worker.fault = WorkerError("the device failed")
    response = await ask(app)
    assert response.status_code == 503
    assert response.json()["status"] == "failing"
    assert response.json()["detail"] == "WorkerError: the device failed"
    worker.fault = None
    assert (await ask(app)).status_code == 200


async def test_a_busy_worker_is_healthy_and_a_stuck_one_is_not(
    app_of: Callable[..., FastAPI], worker: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapipe.workers.http.health.KEPT_SECONDS", 0.0)
    app = app_of(over=worker, health_seconds=0.1)
    held = Held(1)
    blocking = asyncio.create_task(worker.arun("echo", [held.item], model="echo", priority=Priority.ONLINE))
    await asyncio.to_thread(held.begun.wait, 10)
    busy = await ask(app)
    assert busy.status_code == 200
    assert busy.json()["detail"] == "busy: a small item was not answered within 0.1 s"
    await asyncio.to_thread(wait_until, lambda: worker.health().state == "stuck")
    stuck = await ask(app)
    assert stuck.status_code == 503
    assert stuck.json()["status"] == "stuck"
    assert "it recovers if the batch ends" in stuck.json()["detail"]
    held.may_end.set()
    with pytest.raises(WorkerError):
        await blocking
    await asyncio.to_thread(wait_until, lambda: worker.health().state == "ok")
    assert (await ask(app)).status_code == 200


async def test_a_full_queue_is_no_illness(app_of: Callable[..., FastAPI]) -> None:
    with LocalWorker([PRECISE, ECHO], device="cpu", threads=1, queue_items=1) as worker:
        worker.load(PRECISE.name)
        held = Held(1)
        blocking = asyncio.create_task(worker.arun("echo", [held.item], model="echo", priority=Priority.ONLINE))
        await asyncio.to_thread(held.begun.wait, 10)
        response = await ask(app_of(over=worker))
        held.may_end.set()
        await blocking
    assert (response.status_code, response.json()["detail"]) == (200, "busy: the queue is full")


async def test_bulk_work_does_not_keep_the_probe_waiting(app_of: Callable[..., FastAPI]) -> None:
    with LocalWorker([PRECISE], device="cpu", threads=1) as worker:
        worker.load(PRECISE.name)
        bulk = asyncio.create_task(worker.arun("embed", [TextItem("some words " * 20)] * 500, model=PRECISE.name))
        await asyncio.to_thread(wait_until, lambda: worker.health().queued > 0)
        response = await ask(app_of(over=worker, health_seconds=30.0))
        assert (response.status_code, response.json()["detail"]) == (200, "")
        assert not bulk.done()
        bulk.cancel()


def test_the_server_is_ready_once_its_models_have_answered(app_of: Callable[..., FastAPI], worker: Counting) -> None:
    with listening(app_of(over=worker)) as url:
        wait_until(lambda: httpx.get(f"{url}/ready", trust_env=False).status_code == 200)
        assert httpx.get(f"{url}/ready", trust_env=False).json() == {"ready": True, "detail": ""}


def test_a_server_whose_model_is_lost_is_not_ready(
    app_of: Callable[..., FastAPI], caplog: pytest.LogCaptureFixture
) -> None:
    lost = ModelSpec("lost", "/no/such/folder")
    with LocalWorker([lost], device="cpu") as worker, listening(app_of(over=worker, models=(lost,))) as url:
        wait_until(lambda: "cannot be used" in httpx.get(f"{url}/ready", trust_env=False).text)
        response = httpx.get(f"{url}/ready", trust_env=False)
    assert response.status_code == 503
    assert response.json()["detail"] == "a model cannot be used (ModelNotFoundError); the server's log says why"
    assert "/no/such/folder" in caplog.text
