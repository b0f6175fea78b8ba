"""Whatever the device does, every caller gets an answer, and health tells the truth."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch

from datapipe.errors import WorkerError, WorkerStoppedError
from datapipe.workers.protocol import Priority
from datapipe.workers.spec import ModelSpec
from datapipe.workers.worker import LocalWorker
from tests.workers.echo import Echo, EchoItem, Held

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from datapipe.workers.observe import FailureReason
    from tests.workers.echo import Ready


class Counted:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.failures: list[tuple[FailureReason, int]] = []
        self.batches: list[int] = []
        self.requests: list[dict[str, Any]] = []
        self.most_waiting = 0

    def queue(self, items: int) -> None:
        self.most_waiting = max(self.most_waiting, items)

    def batch(self, *, items: int, **_: Any) -> None:
        self.batches.append(items)

    def request(self, **durations: Any) -> None:
        self.requests.append(durations)

    def failed(self, reason: FailureReason, items: int) -> None:
        self.failures.append((reason, items))


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def worker(tmp_path: Path, counted: Counted) -> Iterator[LocalWorker]:
    (tmp_path / "model.safetensors").write_bytes(b"")
    Echo.batches.clear()
    spec = ModelSpec("echo", str(tmp_path), task="echo")
    with LocalWorker([spec], device="cpu", threads=1, token_budget=64, observer=counted) as made:
        yield made


@pytest.fixture
def impatient(worker: LocalWorker, tmp_path: Path, counted: Counted) -> Iterator[LocalWorker]:
    spec = ModelSpec("echo", str(tmp_path), task="echo")
    with LocalWorker([spec], device="cpu", threads=1, stuck_seconds=0.5, observer=counted) as made:
        yield made


def online(worker: LocalWorker, *items: EchoItem) -> list[int]:
    return worker.run("echo", items, model="echo", priority=Priority.ONLINE)


def together(worker: LocalWorker, *calls: Sequence[EchoItem]) -> list[object]:
    """Send calls so that they share a batch; the result or the error of each."""
    held = Held(1)

    def call(items: Sequence[EchoItem]) -> object:
        try:
            return online(worker, *items)
        except WorkerError as error:
            return error

    with ThreadPoolExecutor(len(calls) + 1) as pool:
        first = pool.submit(call, [held.item])
        held.begun.wait(30)
        others = [pool.submit(call, items) for items in calls]
        while worker.health().queued < sum(map(len, calls)):
            threading.Event().wait(0.001)
        held.may_end.set()
        assert first.result() == [1]
        return [other.result() for other in others]


class Small:
    """Memory for so many tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
        forward = Echo.forward

        def limited(task: Echo, batch: Sequence[Ready]) -> list[int]:
            if sum(ready.length for ready in batch) > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(task, batch)

        monkeypatch.setattr(Echo, "forward", limited)


def test_a_batch_that_is_too_large_is_halved_until_it_fits(
    worker: LocalWorker, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    Small(monkeypatch, tokens=20)
    assert online(worker, *map(EchoItem, (9, 9, 9, 9, 9))) == [9] * 5
    assert worker.run("echo", [EchoItem(9)] * 6, model="echo") == [9] * 6
    assert counted.failures == []
    assert max(map(sum, Echo.batches)) <= 20


def test_an_item_that_alone_is_too_large_fails_only_its_call(
    worker: LocalWorker, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    Small(monkeypatch, tokens=20)
    results = together(worker, [EchoItem(12)], [EchoItem(21)], [EchoItem(11), EchoItem(5)])
    assert results[::2] == [[12], [11, 5]]
    assert isinstance(results[1], WorkerError)
    assert "a batch of 1 items, 21 tokens: OutOfMemoryError" in str(results[1])
    assert counted.failures == [("out_of_memory", 1)]


def raising(error: BaseException) -> EchoItem:
    def act() -> None:
        raise error

    return EchoItem(7, act)


@pytest.mark.parametrize(
    "fault",
    [raising(RuntimeError("no such kernel")), raising(FloatingPointError("not finite")), EchoItem(7, lambda: "short")],
    ids=["raises", "nan", "wrong length"],
)
def test_a_fault_in_a_shared_batch_reaches_only_the_call_that_caused_it(
    worker: LocalWorker, counted: Counted, fault: EchoItem
) -> None:
    results = together(worker, [EchoItem(5)], [fault], [EchoItem(6)], [EchoItem(4)])
    assert [results[0], *results[2:]] == [[5], [6], [4]]
    assert isinstance(results[1], WorkerError)
    assert counted.failures == [("device", 1)]
    assert (worker.health().state, online(worker, EchoItem(3))) == ("ok", [3])


def test_a_batch_that_hangs_makes_the_worker_stuck_until_it_ends(impatient: LocalWorker, counted: Counted) -> None:
    held = Held(5)
    with pytest.raises(WorkerStoppedError, match="stuck: a batch on cpu has run for more than"):
        online(impatient, held.item)
    assert impatient.health().state == "stuck"
    assert impatient.health().idle_seconds > 0
    with pytest.raises(WorkerStoppedError, match="the worker is stuck"):
        online(impatient, EchoItem(1))
    assert impatient.run("echo", [EchoItem(2)], model="echo") == [2]  # bulk has lanes of its own
    held.may_end.set()
    while impatient.health().state != "ok":
        threading.Event().wait(0.001)
    assert online(impatient, EchoItem(3)) == [3]
    assert counted.failures == [("stopped", 1), ("stopped", 1)]


def test_what_waits_behind_a_batch_that_hangs_is_failed_too(impatient: LocalWorker) -> None:
    held = Held(5)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(online, impatient, held.item)
        held.begun.wait(30)
        second = pool.submit(online, impatient, EchoItem(1))
        for call in (first, second):
            with pytest.raises(WorkerStoppedError, match="stuck"):
                call.result()
        held.may_end.set()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SystemExit("gone"), "ended with SystemExit: gone"),
        (RuntimeError("CUDA error: an illegal memory access"), "cpu is lost: RuntimeError: CUDA error: an illegal"),
    ],
    ids=["the thread dies", "the device is lost"],
)
async def test_a_lane_that_ends_fails_all_who_wait_and_the_worker_is_dead(
    worker: LocalWorker, error: BaseException, words: str
) -> None:
    held = Held(5)
    calls = [asyncio.create_task(worker.arun("echo", [held.item], model="echo"))]
    await asyncio.to_thread(held.begun.wait, 30)
    calls += [
        asyncio.create_task(worker.arun("echo", [EchoItem(3)], model="echo")),
        asyncio.create_task(worker.arun("echo", [raising(error)], model="echo", priority=Priority.ONLINE)),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, WorkerStoppedError) for result in results)
    assert words in str(results[0])
    assert "it does not recover, start it anew" in str(results[1])
    assert worker.health().state == "dead"
    with pytest.raises(WorkerStoppedError, match="the worker is dead"):
        online(worker, EchoItem(1))
    held.may_end.set()


def test_an_observer_sees_batches_and_the_four_durations_of_a_call(worker: LocalWorker, counted: Counted) -> None:
    online(worker, EchoItem(5, lambda: threading.Event().wait(0.01)), EchoItem(6))
    [seen] = counted.requests
    durations = [seen[name] for name in ("tokenize", "queue", "inference", "total")]
    assert all(seconds >= 0 for seconds in durations)
    assert seen["inference"] >= 0.01
    assert sum(durations[:3]) <= durations[3]
    assert (seen["task"], seen["model"], seen["priority"]) == ("echo", "echo", Priority.ONLINE)
    assert counted.batches == [2]
    assert counted.most_waiting == 2
