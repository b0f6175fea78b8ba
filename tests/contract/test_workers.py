"""What a caller may rely on, wherever the models run: in process, behind HTTP, or on Ray Serve."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl
import pytest

from datapipe.errors import ConfigError, DeadlineError, ItemError, ModelError, WorkerStoppedError
from datapipe.workers.protocol import Priority
from datapipe.workers.spec import DEFAULT_EMBEDDER
from datapipe.workers.tasks.embed import Embedding, TextItem
from datapipe.workers.tasks.rerank import RerankItem, RerankScore
from datapipe.workers.worker import WINDOW_ITEMS, LocalWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from datapipe.workers.protocol import Worker

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

MODEL = DEFAULT_EMBEDDER.name

STRANGE = [
    "",
    " ",
    "\n\t\r\n",
    "naïve café, Straße, ﬁne",
    "日本語のテキスト 中文 한국어",
    "שלום مرحبا",
    "👩\u200d👩\u200d👧\u200d👦 e\u0301 \ufeff",
    "a\0b",
    "\U0010ffff",
    "x" * 5000,
    "word " * 2000,
]


@pytest.fixture(scope="module")
def reference() -> Iterator[LocalWorker]:
    with LocalWorker() as local:
        yield local


@pytest.fixture(scope="module")
def questions(data: Path) -> list[TextItem]:
    texts = pl.read_parquet(data / "banking77.parquet", columns=["text"])["text"].head(160).to_list()
    return [TextItem(text) for text in texts]


@pytest.fixture(scope="module")
def many() -> list[TextItem]:
    """More than a window, each of one or two words."""
    return [TextItem("go" * (i % 2 + i % 3 // 2)) for i in range(WINDOW_ITEMS + 40)]


def same(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether embeddings are equal to the last bit."""
    return len(found) == len(expected) and all(
        type(one) is Embedding
        and one.vector.dtype == np.float32
        and one.vector.tobytes() == other.vector.tobytes()
        and (one.tokens, one.truncated) == (other.tokens, other.truncated)
        for one, other in zip(found, expected, strict=True)
    )


def test_results_come_in_the_order_of_the_items_with_the_bits_of_a_worker_in_process(
    worker: Worker, reference: LocalWorker, questions: list[TextItem]
) -> None:
    expected = reference.run("embed", questions, model=MODEL)
    found = worker.run("embed", questions, model=MODEL)
    assert same(found, expected)
    assert isinstance(found[3].tokens, int)
    assert found[3].truncated is False


async def test_the_asynchronous_call_gives_the_same(
    worker: Worker, reference: LocalWorker, questions: list[TextItem]
) -> None:
    assert same(await worker.arun("embed", questions, model=MODEL), reference.run("embed", questions, model=MODEL))


async def test_the_blocking_call_works_where_an_event_loop_runs(
    worker: Worker, reference: LocalWorker, questions: list[TextItem]
) -> None:
    assert same(worker.run("embed", questions[:9], model=MODEL), reference.run("embed", questions[:9], model=MODEL))


@pytest.mark.slow
def test_a_request_longer_than_a_window_has_the_same_bits(
    worker: Worker, reference: LocalWorker, many: list[TextItem]
) -> None:
    assert same(worker.run("embed", many, model=MODEL), reference.run("embed", many, model=MODEL))


def test_no_items_give_no_results(worker: Worker) -> None:
    assert worker.run("embed", [], model=MODEL) == []
    assert worker.run("rerank", (), model=MODEL) == []


def test_empty_strange_and_endless_texts_are_texts_like_others(worker: Worker, reference: LocalWorker) -> None:
    items = [TextItem(text) for text in STRANGE]
    found = worker.run("embed", items, model=MODEL)
    assert same(found, reference.run("embed", items, model=MODEL))
    assert [result.truncated for result in found] == [False] * (len(STRANGE) - 1) + [True]


def test_other_tasks_go_the_same_way(worker: Worker, reference: LocalWorker, questions: list[TextItem]) -> None:
    items = [RerankItem("my card has not come", question.text) for question in questions]
    found = worker.run("rerank", items, model=MODEL)
    assert found == reference.run("rerank", items, model=MODEL)
    assert all(type(result) is RerankScore for result in found)


@pytest.mark.parametrize("priority", Priority)
def test_both_priorities_give_the_same_up_to_rounding(
    worker: Worker, reference: LocalWorker, questions: list[TextItem], priority: Priority
) -> None:
    found = worker.run("embed", questions[:32], model=MODEL, priority=priority)
    expected = reference.run("embed", questions[:32], model=MODEL)
    for one, other in zip(found, expected, strict=True):
        assert float(one.vector @ other.vector) > 0.9995


def test_calls_from_many_threads_do_not_mix(worker: Worker, reference: LocalWorker, questions: list[TextItem]) -> None:
    parts = [questions[start : start + 1 + start % 7] for start in range(48)]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda part: worker.run("embed", part, model=MODEL), parts))
    for part, results in zip(parts, found, strict=True):
        assert same(results, reference.run("embed", part, model=MODEL))


async def test_calls_of_one_loop_run_side_by_side_and_do_not_mix(
    worker: Worker, reference: LocalWorker, questions: list[TextItem]
) -> None:
    parts = [questions[start : start + 5] for start in range(24)]
    found = await asyncio.gather(*(worker.arun("embed", part, model=MODEL) for part in parts))
    for part, results in zip(parts, found, strict=True):
        assert same(results, reference.run("embed", part, model=MODEL))


@pytest.mark.parametrize(
    "bad", [TextItem("\ud800"), TextItem(cast("Any", 7)), "bare text"], ids=["half a surrogate", "number", "no item"]
)
@pytest.mark.parametrize("place", [3, WINDOW_ITEMS - 1, WINDOW_ITEMS + 5])
def test_an_unusable_item_is_named_by_its_place_in_the_request(
    worker: Worker, many: list[TextItem], bad: object, place: int
) -> None:
    items: list[Any] = [*many[:place], bad, *many[place + 1 :]]
    with pytest.raises(ItemError, match=rf"item {place}\b") as caught:
        worker.run("embed", items, model=MODEL)
    assert caught.value.index == place


def test_of_several_unusable_items_the_first_is_named(worker: Worker, many: list[TextItem]) -> None:
    items = list(many)
    items[WINDOW_ITEMS + 1] = items[WINDOW_ITEMS + 3] = items[17] = items[40] = TextItem("\udfff")
    with pytest.raises(ItemError) as caught:
        worker.run("embed", items, model=MODEL)
    assert caught.value.index == 17


def test_an_unknown_model_is_refused_also_for_no_items(worker: Worker, questions: list[TextItem]) -> None:
    for items in (questions[:2], []):
        with pytest.raises(ModelError, match=r"no-such-model|not served"):
            worker.run("embed", items, model="no-such-model")


@pytest.mark.parametrize("task", ["no-such-task", ""])
def test_an_unknown_task_is_refused_with_those_there_are(worker: Worker, task: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no task '{task}'; known are .*embed"):
        worker.run(task, [], model=MODEL)


def test_a_task_that_is_not_the_models_is_refused(worker: Worker) -> None:
    with pytest.raises(ConfigError, match=f"{MODEL}.*'causal'"):
        worker.run("causal", [], model=MODEL)


@pytest.mark.parametrize("deadline", [0, 0.05])
def test_a_passed_deadline_ends_the_call_and_the_worker_goes_on(
    worker: Worker, reference: LocalWorker, questions: list[TextItem], deadline: float
) -> None:
    begun = time.monotonic()
    with pytest.raises(DeadlineError, match="deadline"):
        worker.run("embed", questions * 20, model=MODEL, deadline=deadline)
    assert time.monotonic() - begun < 5
    assert same(worker.run("embed", questions[:4], model=MODEL), reference.run("embed", questions[:4], model=MODEL))


def test_a_deadline_that_is_kept_changes_nothing(
    worker: Worker, reference: LocalWorker, questions: list[TextItem]
) -> None:
    found = worker.run("embed", questions[:8], model=MODEL, deadline=120)
    assert same(found, reference.run("embed", questions[:8], model=MODEL))


async def test_a_cancelled_call_leaves_the_device_to_others(worker: Worker, questions: list[TextItem]) -> None:
    long = asyncio.create_task(worker.arun("embed", questions * 120, model=MODEL))
    await asyncio.sleep(0.5)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    begun = time.monotonic()
    assert len(await worker.arun("embed", questions[:4], model=MODEL)) == 4
    assert time.monotonic() - begun < 8


def test_a_model_is_described_as_in_process(worker: Any, reference: LocalWorker) -> None:
    found, expected = worker.load(MODEL), reference.load(MODEL)
    assert (found.digest, found.dim, dict(found.bits)) == (expected.digest, expected.dim, dict(expected.bits))
    assert worker.load(MODEL, task="rerank").dim == 0
    assert MODEL in worker.models
    with pytest.raises(ModelError, match=r"no-such-model|not served"):
        worker.load("no-such-model")


def test_a_worker_that_can_answer_says_so(worker: Worker) -> None:
    health = worker.health()
    assert (health.state, health.detail) == ("ok", "")


async def test_a_closed_worker_refuses_and_others_go_on(
    connect: Callable[[], Worker], worker: Worker, questions: list[TextItem]
) -> None:
    closed = connect()
    assert len(closed.run("embed", questions[:2], model=MODEL)) == 2
    closed.close()
    closed.close()
    assert closed.health().state == "closed"
    with pytest.raises(WorkerStoppedError, match="the worker is closed"):
        closed.run("embed", questions[:2], model=MODEL)
    with pytest.raises(WorkerStoppedError, match="the worker is closed"):
        await closed.arun("embed", questions[:2], model=MODEL)
    assert len(worker.run("embed", questions[:2], model=MODEL)) == 2
