"""`HttpWorker` against a real server: the bits and errors of the worker in process, and what the network does."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from datapipe.embedding.text import embed_texts
from datapipe.errors import (
    ConfigError,
    ItemError,
    ModelNotFoundError,
)
from datapipe.workers.http.client import HttpWorker
from datapipe.workers.http.parts import bodies
from datapipe.workers.protocol import Priority, Worker
from datapipe.workers.tasks.embed import EmbedTask, TextItem
from datapipe.workers.wire import from_arrow
from datapipe.workers.worker import WINDOW_ITEMS
from tests.workers.http.conftest import KEY, PRECISE
from tests.workers.http.servers import listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

    from datapipe.workers.protocol import Task
    from datapipe.workers.worker import LocalWorker

MODEL = PRECISE.name
TEXTS = [TextItem(text) for text in ("Which card was declined?", "", "Größe 🪴", "long " * 300)]


@pytest.fixture
def remote(url: str) -> Iterator[HttpWorker]:
    with HttpWorker(url) as worker:
        yield worker


def test_bulk_results_have_the_bits_of_the_worker_in_process(remote: HttpWorker, worker: LocalWorker) -> None:
    there, here = (w.run("embed", TEXTS, model=MODEL) for w in (remote, worker))
    for one, other in zip(there, here, strict=True):
        assert one.vector.tobytes() == other.vector.tobytes()
        assert (one.tokens, one.truncated) == (other.tokens, other.truncated)


def test_a_bulk_call_of_several_windows_has_them_too(
    remote: HttpWorker, worker: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbedTask, "window_items", 64, raising=False)
    items = [TextItem(f"text {n} " * (1 + n % 5)) for n in range(300)]
    there, here = (w.run("embed", items, model=MODEL) for w in (remote, worker))
    assert all(one.vector.tobytes() == other.vector.tobytes() for one, other in zip(there, here, strict=True))


def test_it_states_what_names_a_stage(remote: HttpWorker, worker: LocalWorker) -> None:
    there, here = remote.load(MODEL), worker.load(MODEL)
    assert (there.digest, there.dim, dict(there.bits)) == (here.digest, here.dim, dict(here.bits))
    assert remote.models == [MODEL]
    assert remote.health().state == "ok"


def test_it_is_a_worker_like_any_other(remote: HttpWorker, worker: LocalWorker) -> None:
    as_worker: Worker = remote
    there = embed_texts(as_worker, ["a card", "a rose"], model=MODEL)
    np.testing.assert_array_equal(there.vectors, embed_texts(worker, ["a card", "a rose"], model=MODEL).vectors)


@pytest.mark.parametrize("priority", Priority)
async def test_many_calls_at_once_share_one_pool(remote: HttpWorker, priority: Priority) -> None:
    calls = [remote.arun("embed", [TextItem(f"text {n}")], model=MODEL, priority=priority) for n in range(100)]
    results = await asyncio.gather(*calls)
    assert [result[0].tokens for result in results] == [4] * 100


def test_it_may_be_called_from_many_threads(remote: HttpWorker) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: remote.run("embed", [TextItem("a " * n)], model=MODEL)[0].tokens, range(1, 40)))
    assert found == [n + 2 for n in range(1, 40)]


def test_no_items_give_no_results_and_the_model_is_checked(remote: HttpWorker) -> None:
    assert remote.run("embed", [], model=MODEL) == []
    with pytest.raises(ModelNotFoundError, match="not served here; served are all-MiniLM-L6-v2"):
        remote.run("embed", [], model="nothing")


def test_a_bulk_call_is_cut_where_a_worker_ends_its_windows() -> None:
    items = [TextItem(str(n)) for n in range(2 * WINDOW_ITEMS + 5)]
    cut = list(bodies(cast("type[Task]", EmbedTask), items, priority=Priority.BULK, most=1 << 30))
    assert [first for first, _ in cut] == [0, WINDOW_ITEMS, 2 * WINDOW_ITEMS]
    read = [from_arrow(body, EmbedTask.item_schema(), TextItem) for _, body in cut if isinstance(body, bytes)]
    assert list(chain.from_iterable(read)) == items


def test_an_online_call_is_halved_until_its_parts_fit() -> None:
    items = [TextItem("x" * (20 * n)) for n in range(64)]
    cut = list(bodies(cast("type[Task]", EmbedTask), items, priority=Priority.ONLINE, most=3000))
    assert all(isinstance(body, bytes) and len(body) <= 3000 for _, body in cut)
    assert len(cut) > 15
    read = [from_arrow(body, EmbedTask.item_schema(), TextItem) for _, body in cut if isinstance(body, bytes)]
    assert list(chain.from_iterable(read)) == items
    assert [first for first, _ in cut] == [sum(map(len, read[:n])) for n in range(len(read))]


def test_a_bulk_window_that_is_too_large_is_refused_and_not_cut(url: str) -> None:
    with HttpWorker(url, max_body_bytes=2000) as remote:
        with pytest.raises(ConfigError, match=r"items 0 to 99 take .* bytes, but max_body_bytes is 2,000") as caught:
            remote.run("embed", [TextItem("a text of some length")] * 100, model=MODEL)
        assert "DATAPIPE_SERVE__MAX_TASK_BYTES" in str(caught.value)
        assert len(remote.run("embed", TEXTS[:2] * 50, model=MODEL, priority=Priority.ONLINE)) == 100
        with pytest.raises(ItemError, match=r"item 1 takes .* bytes, but max_body_bytes is 2,000") as unfit:
            remote.run("embed", [TextItem("a"), TextItem("b" * 3000)], model=MODEL, priority=Priority.ONLINE)
        assert unfit.value.index == 1


def test_the_servers_own_limit_is_told_when_it_is_lower(app_of: Callable[..., FastAPI]) -> None:
    message = "the body is larger than 2,000 bytes; send less in one request"
    with (
        listening(app_of(max_task_bytes=2000)) as url,
        HttpWorker(url) as remote,
        pytest.raises(ConfigError, match=message),
    ):
        remote.run("embed", [TextItem("a text of some length")] * 100, model=MODEL)


@pytest.mark.parametrize("place", [0, 2, 999])
def test_an_unusable_item_is_named_by_its_place_in_the_call(place: int, worker: LocalWorker, url: str) -> None:
    """What fails on the way out, before anything is sent."""
    items = [TextItem("a")] * place + [TextItem("\ud800")]
    with HttpWorker(url) as remote, pytest.raises(ItemError, match=rf"item {place}\b") as caught:
        remote.run("embed", items, model=MODEL)
    assert caught.value.index == place


def test_an_item_that_the_model_refuses_is_named_by_its_place_in_the_call(
    monkeypatch: pytest.MonkeyPatch, remote: HttpWorker
) -> None:
    """What the server refuses comes back with the index of its request, shifted by where that began."""

    def refuse(self: EmbedTask, items: Any, *, first: int = 0) -> Any:
        for place, item in enumerate(items):
            if item.text == "bad":
                raise ItemError(f"item {first + place} is bad", index=first + place)
        return prepare_many(self, items, first=first)

    prepare_many = EmbedTask.prepare_many
    monkeypatch.setattr(EmbedTask, "prepare_many", refuse)
    monkeypatch.setattr(EmbedTask, "window_items", 10, raising=False)
    with pytest.raises(ItemError, match="item 23 is bad") as caught:
        remote.run("embed", [TextItem("a")] * 23 + [TextItem("bad")] + [TextItem("a")] * 20, model=MODEL)
    assert caught.value.index == 23


def test_the_key_comes_from_the_environment_and_is_in_no_pickle(
    app_of: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(app_of(keys=(KEY,))) as url:
        with HttpWorker(url) as remote, pytest.raises(ConfigError, match=r"this server needs a key.*DATAPIPE_API_KEY"):
            remote.run("embed", TEXTS, model=MODEL)
        with HttpWorker(url, api_key=KEY) as remote:
            assert len(remote.run("embed", TEXTS, model=MODEL)) == len(TEXTS)
            pickled = pickle.dumps(remote)
            assert KEY not in repr(remote)
        assert KEY.encode() not in pickled
        monkeypatch.setenv("DATAPIPE_API_KEY", KEY)
        with pickle.loads(pickled) as copy:  # noqa: S301 - our own
            assert len(copy.run("embed", TEXTS, model=MODEL)) == len(TEXTS)


def test_a_closed_worker_leaves_no_thread_and_neither_does_a_forgotten_one(url: str) -> None:
    def threads() -> int:
        return sum(thread.name == "datapipe-http" for thread in threading.enumerate())

    before = threads()
    with HttpWorker(url) as remote:
        remote.run("embed", TEXTS, model=MODEL)
        assert threads() == before + 1
    assert threads() == before
    forgotten = HttpWorker(url)
    forgotten.run("embed", TEXTS, model=MODEL)
    del forgotten
    gc.collect()
    assert threads() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "the URL of a server looks like http://127.0.0.1:8000"),
        ({"url": "ftp://a"}, "the URL of a server looks like"),
        ({"url": "http://user:secret@a"}, "holds no user, key or query"),
        ({"url": "http://a?key=b"}, "holds no user, key or query"),
        ({"url": "http://a", "retries": -1}, "the 'retries' parameter of HttpWorker must be at least 0. Got -1"),
        ({"url": "http://a", "timeout": 0}, "the 'timeout' parameter of HttpWorker must be above 0. Got 0"),
        ({"url": "http://a", "max_body_bytes": 0}, "the 'max_body_bytes' parameter of HttpWorker must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        HttpWorker(**options)
    assert "secret" not in str(caught.value)


def _answer(url: str, queue: Any) -> None:
    with HttpWorker(url) as remote:
        queue.put(remote.run("embed", TEXTS[:1], model=MODEL)[0].tokens)


@pytest.mark.slow
def test_a_copy_works_in_another_process(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAPIPE_API_KEY", KEY)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_answer, args=(command, queue))
    process.start()
    assert queue.get(timeout=60) == 7
    process.join(30)
