"""The worker in process: order, sealed batches, threads, priorities, deadlines, draining, embedding for real."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers, lists

from datapipe.errors import (
    ConfigError,
    DeadlineError,
    ItemError,
    OverloadedError,
    WorkerError,
    WorkerStoppedError,
)
from datapipe.workers import course as module
from datapipe.workers.pack import pack
from datapipe.workers.protocol import Priority, Worker
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.embed import Embedding, EmbedTask, TextItem
from datapipe.workers.worker import LocalWorker
from tests.workers.echo import Echo, EchoItem, Held

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "model.safetensors").write_bytes(b"")
    Echo.batches.clear()
    return str(tmp_path)


@pytest.fixture
def worker(source: str) -> Iterator[LocalWorker]:
    spec = ModelSpec("echo", source, task="echo")
    with LocalWorker([spec], device="cpu", threads=1, token_budget=64, max_items=8) as made:
        yield made


def run(worker: Worker, items: Sequence[EchoItem], **options: Any) -> list[int]:
    return worker.run("echo", items, model="echo", **options)


@given(lengths=lists(integers(1, 80), max_size=60))
def test_results_come_in_the_order_of_the_items(lengths: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("echo")
    (folder / "model.safetensors").write_bytes(b"")
    with LocalWorker([ModelSpec("echo", str(folder), task="echo")], threads=3, token_budget=64) as worker:
        assert run(worker, [EchoItem(length) for length in lengths]) == lengths


def test_batches_are_those_of_pack_within_each_window(worker: LocalWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_ITEMS", 20)
    lengths = [number * 7 % 31 + 1 for number in range(50)]
    run(worker, [EchoItem(length) for length in lengths])
    windows = [lengths[start : start + 20] for start in (0, 20, 40)]
    expected = [
        [window[index] for index in batch] for window in windows for batch in pack(window, token_budget=64, max_items=8)
    ]
    assert Echo.batches == expected


def test_a_task_with_large_items_has_smaller_windows(worker: LocalWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Echo, "window_items", 4, raising=False)
    assert run(worker, [EchoItem(length) for length in range(1, 9)]) == list(range(1, 9))
    assert Echo.batches == [[4, 3, 2, 1], [8, 7, 6, 5]]


def test_no_items_give_no_results(worker: LocalWorker) -> None:
    assert run(worker, []) == []


def test_an_unusable_item_is_named_by_its_place_in_the_request(
    worker: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_ITEMS", 3)
    items = [EchoItem(1)] * 7 + [EchoItem(0)]
    with pytest.raises(ItemError, match="item 7 is empty") as caught:
        run(worker, items)
    assert caught.value.index == 7
    assert run(worker, items[:3]) == [1, 1, 1]


def test_a_fault_of_the_device_names_model_and_batch_and_the_worker_goes_on(worker: LocalWorker) -> None:
    def fault() -> None:
        raise RuntimeError("no such kernel")

    items = [EchoItem(60), EchoItem(5, fault), EchoItem(4)]
    expected = "model echo on cpu failed on a batch of 2 items, 9 tokens: RuntimeError: no such kernel"
    with pytest.raises(WorkerError, match=expected):
        run(worker, items)
    assert run(worker, items[:1]) == [60]


def test_after_a_fault_the_batches_that_wait_are_dropped(worker: LocalWorker) -> None:
    def fault() -> None:
        raise RuntimeError

    with pytest.raises(WorkerError):
        run(worker, [EchoItem(64, fault), *[EchoItem(63)] * 50])
    run(worker, [EchoItem(1)])
    assert Echo.batches == [[64], [1]]


def test_too_few_results_of_a_batch_are_refused(worker: LocalWorker) -> None:
    with pytest.raises(WorkerError, match="model echo gave 0 results for 1 items"):
        run(worker, [EchoItem(1, lambda: "short")])


def in_thread(worker: Worker, items: Sequence[EchoItem], **options: Any) -> tuple[threading.Thread, list[object]]:
    """Run a call in a thread; the list will hold its result or its error."""
    seen: list[object] = []

    def call() -> None:
        try:
            seen.append(run(worker, items, **options))
        except WorkerError as error:
            seen.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, seen


def wait_until_queued(worker: LocalWorker, items: int) -> None:
    while worker.health().queued < items:
        threading.Event().wait(0.001)


def test_an_online_call_does_not_wait_for_the_bulk_batch_that_runs(worker: LocalWorker) -> None:
    held = Held(64)
    bulk, seen = in_thread(worker, [held.item, *[EchoItem(63)] * 3])
    held.begun.wait(30)
    assert run(worker, [EchoItem(7)], priority=Priority.ONLINE) == [7]
    held.may_end.set()
    bulk.join()
    assert seen == [[64, 63, 63, 63]]
    assert Echo.batches == [[64], [7], [63], [63], [63]]


def test_online_calls_share_batches(worker: LocalWorker) -> None:
    held = Held(64)
    first, _ = in_thread(worker, [held.item], priority=Priority.ONLINE)
    held.begun.wait(30)
    others = [in_thread(worker, [EchoItem(length)], priority=Priority.ONLINE) for length in (9, 5, 7)]
    wait_until_queued(worker, 3)
    held.may_end.set()
    for thread, _ in (*others, (first, None)):
        thread.join()
    assert [seen for _, seen in others] == [[[9]], [[5]], [[7]]]
    assert Echo.batches == [[64], [9, 7, 5]]


def test_a_full_worker_refuses_online_calls_and_says_when_to_come_again(source: str) -> None:
    with LocalWorker([ModelSpec("echo", source, task="echo")], device="cpu", threads=1, queue_items=2) as worker:
        held = Held(3)
        thread, _ = in_thread(worker, [held.item, EchoItem(1)], priority=Priority.ONLINE)
        held.begun.wait(30)
        with pytest.raises(OverloadedError, match="the worker holds 2 online items of at most 2, and 1 more") as caught:
            run(worker, [EchoItem(1)], priority=Priority.ONLINE)
        assert caught.value.retry_after > 0
        held.may_end.set()
        thread.join()
        assert run(worker, [EchoItem(1)] * 5, priority=Priority.ONLINE) == [1] * 5


def test_after_the_deadline_no_further_batch_begins(worker: LocalWorker) -> None:
    may_end = threading.Event()
    items = [EchoItem(64, lambda: may_end.wait(30)), EchoItem(63)]
    with pytest.raises(DeadlineError, match="the deadline of a call to model echo passed before it was done"):
        run(worker, items, deadline=0.05)
    assert worker.health().queued == 0
    may_end.set()
    assert run(worker, [EchoItem(5)]) == [5]
    assert Echo.batches == [[64], [5]]


async def test_arun_gives_the_same_and_leaves_the_loop_free(worker: LocalWorker) -> None:
    ticks, may_end = [], threading.Event()
    call = asyncio.create_task(worker.arun("echo", [EchoItem(3, lambda: may_end.wait(30)), EchoItem(9)], model="echo"))
    for tick in range(3):
        await asyncio.sleep(0)
        ticks.append(tick)
    may_end.set()
    assert await call == [3, 9]
    assert ticks == [0, 1, 2]


async def test_after_the_deadline_of_an_arun_its_items_leave_the_queue(worker: LocalWorker) -> None:
    may_end = threading.Event()
    items = [EchoItem(64, lambda: may_end.wait(30)), EchoItem(63)]
    with pytest.raises(DeadlineError, match="the deadline of a call to model echo passed"):
        await worker.arun("echo", items, model="echo", priority=Priority.ONLINE, deadline=0.05)
    assert worker.health().queued == 0
    may_end.set()


async def test_a_cancelled_call_drops_the_batches_that_have_not_begun(worker: LocalWorker) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        may_end.wait(30)

    call = asyncio.create_task(worker.arun("echo", [EchoItem(64, hold), *[EchoItem(63)] * 5], model="echo"))
    await asyncio.to_thread(begun.wait, 30)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    may_end.set()
    assert await worker.arun("echo", [EchoItem(2)], model="echo") == [2]
    assert Echo.batches == [[64], [2]]


def test_a_closed_worker_refuses_everything_and_may_be_closed_again(worker: LocalWorker) -> None:
    assert run(worker, [EchoItem(1)]) == [1]
    worker.close()
    worker.close()
    with pytest.raises(WorkerError, match="the worker is closed"):
        run(worker, [EchoItem(1)])


def test_closing_fails_the_calls_that_wait(source: str) -> None:
    worker = LocalWorker([ModelSpec("echo", source, task="echo")], device="cpu", threads=1, token_budget=64)
    held = Held(64)
    caller, seen = in_thread(worker, [held.item, EchoItem(63)])
    held.begun.wait(30)
    closer = threading.Thread(target=worker.close)
    closer.start()
    while worker.health().queued:
        threading.Event().wait(0.001)
    held.may_end.set()
    closer.join()
    caller.join()
    assert [str(error) for error in seen] == ["the worker was closed before the call was done"]
    assert isinstance(seen[0], WorkerStoppedError)


def test_draining_finishes_the_calls_that_run_and_refuses_new_ones(worker: LocalWorker) -> None:
    held = Held(64)
    caller, seen = in_thread(worker, [held.item, EchoItem(63)])
    held.begun.wait(30)
    assert not worker.drain(0.01)
    with pytest.raises(WorkerStoppedError, match="the worker is shutting down"):
        run(worker, [EchoItem(1)])
    assert worker.health().state == "closed"
    held.may_end.set()
    assert worker.drain(30)
    caller.join()
    assert seen == [[64, 63]]


@pytest.mark.parametrize("option", ["threads", "token_budget", "max_items", "queue_items"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"the '{option}' parameter of LocalWorker must be at least 1. Got 0"):
        LocalWorker(**cast("Any", {option: 0}))


@pytest.mark.parametrize(("option", "value"), [("bulk_share", 1.0), ("bulk_share", -0.1), ("stuck_seconds", 0.0)])
def test_shares_and_times_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"the '{option}' parameter of LocalWorker must be .* Got {value}"):
        LocalWorker(**cast("Any", {option: value}))


@pytest.fixture(scope="module")
def texts(data: Path) -> list[str]:
    import pyarrow.parquet as pq

    found: list[str] = pq.read_table(data / "banking77.parquet")["text"].to_pylist()[:150]
    return found


def embed(worker: Worker, texts: list[str]) -> np.ndarray:
    return np.stack([r.vector for r in worker.run("embed", [TextItem(t) for t in texts], model="default")])


def test_vectors_have_the_same_bits_whatever_the_number_of_threads(texts: list[str]) -> None:
    found = []
    for threads in (1, 2, 5):
        with LocalWorker(device="cpu", threads=threads) as worker:
            found.append(embed(worker, texts))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_the_thread_settings_of_the_caller_stay(worker: LocalWorker) -> None:
    found: list[int] = []
    before = torch.get_num_threads()
    run(worker, [EchoItem(1, lambda: found.append(torch.get_num_threads()))])
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), found) == (before, [1, before])


def test_online_traffic_does_not_change_the_bits_of_bulk_vectors(texts: list[str]) -> None:
    with LocalWorker(device="cpu", threads=2) as worker:
        alone = embed(worker, texts)
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                worker.run("embed", [TextItem("where is my card?")], model="default", priority=Priority.ONLINE)

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        beside = embed(worker, texts)
        stop.set()
        for thread in asking:
            thread.join()
    np.testing.assert_array_equal(alone, beside)


def test_a_loaded_model_states_what_changes_its_bits() -> None:
    with LocalWorker(device="cpu", token_budget=77) as worker:
        assert worker.load("default").bits["batch"] == "77 tokens, 4096 items"
        assert worker.models == ["all-MiniLM-L6-v2"]
        assert worker.load("default").digest == worker.load("all-MiniLM-L6-v2").digest


def test_items_and_results_travel_through_the_declared_schemas() -> None:
    items = [TextItem("a"), TextItem("")]
    results = [Embedding(np.array([0.5, -1.0], np.float32), 3, True), Embedding(np.array([1, 2], np.float32), 2, False)]  # noqa: FBT003
    sent = pa.Table.from_pylist([{"text": item.text} for item in items], schema=EmbedTask.item_schema())
    assert [TextItem(**row) for row in sent.to_pylist()] == items
    columns = EmbedTask.result_schema().names
    rows = [{name: getattr(result, name) for name in columns} for result in results]
    back = pa.Table.from_pylist(rows, schema=EmbedTask.result_schema()).to_pylist()
    assert [(row["vector"], row["tokens"], row["truncated"]) for row in back] == [
        ([0.5, -1], 3, True),
        ([1, 2], 2, False),
    ]
    assert EmbedTask.item_schema().names == list(TextItem.__dataclass_fields__)
    assert columns == list(Embedding.__dataclass_fields__)
