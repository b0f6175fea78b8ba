"""`POST /v1/embeddings`: the shape of OpenAI's API over the vectors of the worker."""

from __future__ import annotations

import base64
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.embed import TextItem
from datapipe.workers.worker import LocalWorker
from tests.workers.http.conftest import PRECISE
from tests.workers.http.servers import client_of, error_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx
    from fastapi import FastAPI

TEXTS = ["Which card was declined abroad?", "Größe & emoji 🪴", ""]


async def post(app: FastAPI, body: Any, **headers: str) -> httpx.Response:
    async with client_of(app) as client:
        return await client.post("/v1/embeddings", json=body, headers=headers)


async def test_texts_become_the_vectors_of_the_worker(app: FastAPI, worker: LocalWorker) -> None:
    answer = (await post(app, {"input": TEXTS, "model": PRECISE.name})).json()
    want = worker.run("embed", [TextItem(text) for text in TEXTS], model=PRECISE.name)
    assert [datum["index"] for datum in answer["data"]] == [0, 1, 2]
    np.testing.assert_allclose([datum["embedding"] for datum in answer["data"]], [r.vector for r in want], atol=1e-6)
    tokens = sum(result.tokens for result in want)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (answer["object"], answer["model"], answer["truncated"]) == ("list", PRECISE.name, [])


async def test_one_text_needs_no_list_and_no_model(app: FastAPI) -> None:
    one = (await post(app, {"input": TEXTS[0]})).json()
    named = (await post(app, {"input": [TEXTS[0]], "model": "default"})).json()
    assert one == named
    assert len(one["data"][0]["embedding"]) == 384


async def test_base64_holds_little_endian_float32(app: FastAPI) -> None:
    floats = (await post(app, {"input": TEXTS})).json()["data"]
    coded = (await post(app, {"input": TEXTS, "encoding_format": "base64"})).json()["data"]
    for one, other in zip(floats, coded, strict=True):
        vector = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
        np.testing.assert_array_equal(vector, np.array(one["embedding"], np.float32))


async def test_a_text_that_was_cut_is_named(app: FastAPI) -> None:
    answer = (await post(app, {"input": ["short", "long " * 400]})).json()
    assert answer["truncated"] == [1]
    assert answer["usage"]["total_tokens"] > 400


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "input: Field required"),
        ({"input": []}, "input: must hold at least one text"),
        ({"input": [1, 2]}, "input: token ids are not taken: send the texts themselves"),
        ({"input": [[1, 2], [3]]}, "input: token ids are not taken: send the texts themselves"),
        ({"input": ["a", None]}, "input: entry 1 must be a text"),
        ({"input": 5}, "input: must be a text or a list of texts"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format: Input should be 'float' or 'base64'"),
        ({"input": "a", "dimensions": 0}, "dimensions: Input should be greater than or equal to 1"),
        ({"input": "a", "dimensions": "8"}, "dimensions: Input should be a valid integer"),
        ({"input": "a", "dimensions": True}, "dimensions: Input should be a valid integer"),
        (
            {"input": "a", "secret words": 1},
            "the body has a field that is not known here; known are input, model, encoding_format, dimensions, user",
        ),
        ([1], "the body must be a JSON object"),
    ],
)
async def test_what_is_wrong_is_said_without_quoting_the_client(app: FastAPI, body: Any, message: str) -> None:
    response = await post(app, body)
    assert response.status_code == 422
    assert error_of(response)["message"] == message
    assert error_of(response)["code"] == "invalid_request"


async def test_a_null_field_counts_as_left_out(app: FastAPI) -> None:
    assert (await post(app, {"input": "a", "user": None, "dimensions": None, "unheard_of": None})).status_code == 200


async def test_a_model_that_is_not_served_is_not_loaded(app: FastAPI, tmp_path: Path) -> None:
    for name in ("nothing", str(tmp_path), "embedded:all-MiniLM-L6-v2"):
        response = await post(app, {"input": "a", "model": name})
        assert response.status_code == 404
        detail = error_of(response)
        assert detail["code"] == "model_not_found"
        assert detail["message"] == "this model is not served here; served are all-MiniLM-L6-v2"


async def test_dimensions_are_refused_where_the_model_was_not_trained_for_it(app: FastAPI) -> None:
    response = await post(app, {"input": "a", "dimensions": 64})
    assert response.status_code == 422
    assert error_of(response) == {
        "message": (
            "the vectors of model all-MiniLM-L6-v2 have 384 dimensions and must not be cut: it is not trained for it"
        ),
        "type": "invalid_request_error",
        "code": "invalid_request",
        "param": "dimensions",
    }
    assert (await post(app, {"input": "a", "dimensions": 384})).status_code == 200


async def test_dimensions_cut_the_vectors_of_a_matryoshka_model(
    tiny_bert: Callable[..., Path], app_of: Callable[..., FastAPI], tmp_path: Path
) -> None:
    folder = tiny_bert("nested", config={"matryoshka_dimensions": [8, 16]})
    spec = ModelSpec("nested", str(folder), dtype="float32")
    with LocalWorker([spec], device="cpu") as worker:
        app = app_of(over=worker, models=(spec,))
        whole = np.array((await post(app, {"input": "a text"})).json()["data"][0]["embedding"])
        short = np.array((await post(app, {"input": "a text", "dimensions": 8})).json()["data"][0]["embedding"])
        refused = await post(app, {"input": "a", "dimensions": 12})
    np.testing.assert_allclose(short, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)
    assert refused.status_code == 422
    assert error_of(refused)["message"] == "dimensions of model nested must be one of 8, 16, 32"


async def test_a_damaged_model_is_our_fault_and_its_path_stays_here(
    tiny_bert: Callable[..., Path], app_of: Callable[..., FastAPI], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_bert("lost")
    spec = ModelSpec("lost", str(folder))
    shutil.rmtree(folder)
    with LocalWorker([spec], device="cpu") as worker:
        response = await post(app_of(over=worker, models=(spec,)), {"input": "a"})
    assert response.status_code == 500
    detail = error_of(response)
    assert detail["code"] == "model"
    assert str(folder) not in json.dumps(detail)
    assert response.headers["x-request-id"] in detail["message"]
    assert str(folder) in caplog.text
