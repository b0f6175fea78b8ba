"""`/v1/tasks/{task}`: any task as Arrow, with the bits of the worker and within limits that bytes cannot get around."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapipe.errors import DatapipeError
from datapipe.settings import ServeSettings
from datapipe.workers.http.errors import answer_of
from datapipe.workers.http.tasks import ARROW, _items
from datapipe.workers.protocol import Priority
from datapipe.workers.tasks.embed import Embedding, EmbedTask, TextItem
from datapipe.workers.tasks.rerank import RerankItem, RerankScore, RerankTask
from datapipe.workers.wire import from_arrow, to_arrow
from tests.workers.http.conftest import PRECISE
from tests.workers.http.servers import client_of, error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    from datapipe.workers.protocol import Task
    from datapipe.workers.worker import LocalWorker

ITEMS = [TextItem(text) for text in ("Which card was declined?", "", "Größe 🪴")]
SCHEMA = EmbedTask.item_schema()


async def post(app: FastAPI, body: bytes, task: str = "embed", **params: Any) -> httpx.Response:
    async with client_of(app) as client:
        return await client.post(f"/v1/tasks/{task}", content=body, params=params, headers={"content-type": ARROW})


def written(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def texts(*values: str | None) -> pa.Table:
    return pa.table({"text": pa.array(values, pa.string())})


@pytest.mark.parametrize("priority", ["online", "bulk"])
async def test_results_are_those_of_the_worker(app: FastAPI, worker: LocalWorker, priority: str) -> None:
    response = await post(app, to_arrow(ITEMS, SCHEMA), priority=priority, model="default", deadline=30)
    assert response.status_code == 200
    assert response.headers["content-type"] == ARROW
    results = from_arrow(response.content, EmbedTask.result_schema(), Embedding)
    want = worker.run("embed", ITEMS, model=PRECISE.name, priority=Priority[priority.upper()])
    for result, expected in zip(results, want, strict=True):
        assert result.tokens == expected.tokens
        assert result.vector == pytest.approx(expected.vector, abs=1e-6)
        assert priority == "online" or result.vector.tobytes() == expected.vector.tobytes()


async def test_a_derived_task_runs_on_the_model_of_its_base(app: FastAPI) -> None:
    response = await post(app, to_arrow([RerankItem("a card", "my card")], RerankTask.item_schema()), "rerank")
    (score,) = from_arrow(response.content, RerankTask.result_schema(), RerankScore)
    assert score.score > 0.5


async def test_no_items_give_no_results(app: FastAPI) -> None:
    response = await post(app, to_arrow([], SCHEMA))
    assert from_arrow(response.content, EmbedTask.result_schema(), Embedding) == []


async def test_a_server_states_digest_width_and_bits(app: FastAPI, worker: LocalWorker) -> None:
    async with client_of(app) as client:
        stated = (await client.get("/v1/tasks/embed", params={"model": "default"})).json()
        lost = await client.get("/v1/tasks/embed", params={"model": "nothing"})
        unfit = await client.get("/v1/tasks/classify", params={"model": PRECISE.name})
    loaded = worker.load(PRECISE.name)
    assert stated == {
        "task": "embed",
        "model": PRECISE.name,
        "digest": loaded.digest,
        "dim": 384,
        "bits": dict(loaded.bits),
    }
    assert (lost.status_code, error_of(lost)["code"]) == (404, "model_not_found")
    assert (unfit.status_code, error_of(unfit)["code"]) == (422, "config")


@pytest.mark.parametrize(
    ("task", "params", "status", "message"),
    [
        ("nothing", {}, 404, "there is no such task here"),
        ("embed", {"model": "nothing"}, 404, "this model is not served here; served are all-MiniLM-L6-v2"),
        ("classify", {}, 404, "no model for the task 'classify' is served here"),
        ("embed", {"priority": "high"}, 422, "priority must be one of online, bulk"),
        ("embed", {"deadline": "soon"}, 422, "deadline must be a number of seconds, at least 0"),
        ("embed", {"deadline": "-1"}, 422, "deadline must be a number of seconds, at least 0"),
        ("embed", {"deadline": "0"}, 504, "the deadline of a call to model all-MiniLM-L6-v2 passed before it was done"),
    ],
)
async def test_what_is_asked_wrongly_is_said(
    app: FastAPI, task: str, params: dict[str, str], status: int, message: str
) -> None:
    response = await post(app, to_arrow(ITEMS, SCHEMA), task, **params)
    assert response.status_code == status
    assert error_of(response)["message"] == message


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is not an Arrow IPC stream"),
        (b"{}", 400, "the body is not an Arrow IPC stream"),
        (b"ARROW1\0\0 and so on", 400, "the body is not an Arrow IPC stream"),
        (written(texts("a" * 100))[:-60], 400, "the body is not an Arrow IPC stream"),
        (written(pa.table({"other": ["a"]})), 422, "column 'text' is missing; the columns are text"),
        (written(pa.table({"text": [1]})), 422, "column 'text' must be string. Got int64"),
        (written(texts("a", None)), 422, "column 'text' holds nulls, which it must not"),
        (written(texts(*["a"] * 4)), 413, "the body holds 4 items; at most 3 are taken in one request"),
        (written(texts("a", "b" * 31)), 413, "item 1 holds a text of 31 characters; at most 30 are taken"),
    ],
)
async def test_a_body_that_cannot_be_taken_is_refused(
    app_of: Callable[..., FastAPI], body: bytes, status: int, message: str
) -> None:
    response = await post(app_of(max_texts=3, max_characters=30), body)
    assert response.status_code == status
    assert error_of(response)["message"] == message


async def test_broken_utf8_in_a_column_is_refused(app: FastAPI) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )  # fmt: skip
    response = await post(app, written(pa.table({"text": broken})))
    assert response.status_code == 422
    assert "column 'text' is damaged" in error_of(response)["message"]


async def test_a_small_body_that_unpacks_to_a_large_one_is_refused(app_of: Callable[..., FastAPI]) -> None:
    bomb = written(texts("a" * 4_000_000), compression="zstd")
    assert len(bomb) < 10_000
    response = await post(app_of(max_task_bytes=100_000), bomb, priority="bulk")
    assert response.status_code == 413
    assert error_of(response)["message"] == (
        "the body unpacks to 4,000,008 bytes; at most 200,000 are taken in one request"
    )


async def test_bulk_windows_are_bound_by_bytes_alone(app_of: Callable[..., FastAPI]) -> None:
    app = app_of(max_characters=10, max_tokens=10)
    body = to_arrow([TextItem("many words in one text")] * 3, SCHEMA)
    assert (await post(app, body, priority="bulk")).status_code == 200
    assert (await post(app, body, priority="online")).status_code == 413


async def test_arrow_has_a_limit_of_its_own(app_of: Callable[..., FastAPI]) -> None:
    app = app_of(max_body_bytes=100, max_task_bytes=2000)
    assert (await post(app, written(texts("a" * 500)))).status_code == 200
    refused = await post(app, written(texts("a" * 2500)))
    assert refused.status_code == 413
    assert error_of(refused)["message"] == "the body is larger than 2,000 bytes; send less in one request"


async def test_json_is_not_taken_for_arrow(app: FastAPI) -> None:
    async with client_of(app) as client:
        response = await client.post("/v1/tasks/embed", json={"text": "a"})
    assert response.status_code == 415
    assert error_of(response)["message"] == f"the content-type must be {ARROW}"


GOOD = [written(texts("one text", "", "Größe"), compression=how) for how in (None, "lz4", "zstd")]


@settings(max_examples=300)
@given(
    body=st.sampled_from(GOOD),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
    end=st.integers(0, 2000),
)
def test_no_damaged_stream_is_more_than_a_refusal(body: bytes, changes: list[tuple[int, int]], end: int) -> None:
    damaged = bytearray(body)
    for place, value in changes:
        damaged[place % len(body)] = value
    limits = ServeSettings(max_texts=100, max_task_bytes=10_000)
    refusals: list[DatapipeError] = []
    items: list[TextItem] = []
    try:
        task = cast("type[Task]", EmbedTask)
        items = _items(bytes(damaged[: max(1, end % (len(body) + 1))]), task, limits, bulk=False)
    except DatapipeError as error:
        refusals.append(error)
    assert all(answer_of(refusal).status in {400, 413, 422} for refusal in refusals)
    assert all(isinstance(item.text, str) for item in items)
