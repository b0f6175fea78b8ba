"""Every limit, with its status and its words; and strict reading of JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.settings import ServeSettings
from datapipe.workers.http.embeddings import EmbeddingsRequest
from datapipe.workers.http.errors import InvalidRequestError, MalformedBodyError, RequestError, TooLargeError
from datapipe.workers.http.limits import check_size, decode_json, read_timeout, validate
from tests.workers.http.servers import client_of, error_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import httpx
    from fastapi import FastAPI

JSON = {"content-type": "application/json"}


async def post(app: FastAPI, content: Any, path: str = "/v1/embeddings", **headers: str) -> httpx.Response:
    async with client_of(app) as client:
        return await client.post(path, content=content, headers=JSON | headers)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


BODY = json.dumps({"input": "a" * 500}).encode()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_413(app_of: Callable[..., FastAPI], *, chunked: bool) -> None:
    app = app_of(max_body_bytes=len(BODY) - 1)
    response = await post(app, pieces(BODY[:300], BODY[300:]) if chunked else BODY)
    assert response.status_code == 413
    assert error_of(response)["message"] == f"the body is larger than {len(BODY) - 1} bytes; send less in one request"
    assert error_of(response)["code"] == "too_large"
    assert response.headers["connection"] == "close"


async def test_a_body_at_the_limit_is_taken(app_of: Callable[..., FastAPI]) -> None:
    assert (await post(app_of(max_body_bytes=len(BODY)), BODY)).status_code == 200
    assert (await post(app_of(max_body_bytes=len(BODY)), pieces(BODY[:300], BODY[300:]))).status_code == 200


async def test_a_length_that_lies_does_not_open_the_gate(app_of: Callable[..., FastAPI]) -> None:
    app = app_of(max_body_bytes=100)
    assert (await post(app, pieces(BODY), **{"content-length": "5"})).status_code == 413


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/embeddings", {"input": ["a"] * 4}, "input"),
        ("/v1/rerank", {"query": "a", "documents": ["a"] * 4}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"text": "a"}] * 4}, "documents"),
        ("/v1/embeddings", {"whatever the client calls it": [["a"] * 4]}, "a field"),
    ],
)
async def test_more_texts_than_the_limit_are_413(
    app_of: Callable[..., FastAPI], path: str, body: dict[str, Any], field: str
) -> None:
    response = await post(app_of(max_texts=3), json.dumps(body), path)
    assert response.status_code == 413
    message = f"{field} holds 4 texts; at most 3 are taken in one request: send them in several"
    assert error_of(response)["message"] == message


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/embeddings", {"input": "a" * 11}, "input"),
        ("/v1/rerank", {"query": "a" * 11, "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": ["a", {"text": "a" * 11}]}, "documents"),
    ],
)
async def test_a_text_longer_than_the_limit_is_413(
    app_of: Callable[..., FastAPI], path: str, body: dict[str, Any], field: str
) -> None:
    response = await post(app_of(max_characters=10), json.dumps(body), path)
    assert response.status_code == 413
    assert error_of(response)["message"] == f"{field} holds a text of 11 characters; at most 10 are taken"
    assert error_of(response)["param"] == field


async def test_more_tokens_than_the_limit_are_413(app_of: Callable[..., FastAPI]) -> None:
    app = app_of(max_tokens=100)
    response = await post(app, json.dumps({"input": ["word " * 60] * 2}))
    assert response.status_code == 413
    assert error_of(response)["message"] == (
        "the request has 124 tokens for model all-MiniLM-L6-v2; at most 100 are taken in one request"
    )
    one_long_word = json.dumps({"input": "x" * 150})
    assert (await post(app, one_long_word)).status_code == 200  # more bytes than 100, and fewer tokens


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", "it is empty"),
        (b"{", "line 1, column 2"),
        (b'{"input": NaN}', "line 1, column 11"),
        (b'{"input": "a", "dimensions": Infinity}', "line 1, column 30"),
        (b'{"input": "\xff"}', "line 1, column 1"),
        (b'{"input": "\\ud800"}', "line 1, column 12"),
        (b"[" * 100_000, "line 1, column "),
        (b'{"input":' * 5000, "line 1"),
    ],
)
async def test_a_body_that_is_no_json_is_400(app: FastAPI, body: bytes, place: str) -> None:
    response = await post(app, body)
    assert response.status_code == 400
    assert error_of(response)["message"].startswith(f"the body is not valid JSON ({place}")
    assert error_of(response)["code"] == "malformed_body"


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"])
async def test_another_media_type_is_415(app: FastAPI, media_type: str) -> None:
    response = await post(app, BODY, **{"content-type": media_type})
    assert response.status_code == 415
    assert error_of(response)["message"] == "the content-type must be application/json"
    assert (await post(app, BODY, **{"content-type": "Application/JSON; charset=utf-8"})).status_code == 200


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf"])
async def test_a_timeout_that_is_no_time_is_422(app: FastAPI, value: str) -> None:
    response = await post(app, BODY, **{"x-request-timeout": value})
    assert response.status_code == 422
    assert error_of(response)["message"] == "X-Request-Timeout must be a number of seconds above 0"


def test_a_client_may_ask_for_less_time_and_not_for_more() -> None:
    settings = ServeSettings(timeout_seconds=10)
    assert read_timeout({}, settings) == 10
    assert read_timeout({"x-request-timeout": "2.5"}, settings) == 2.5
    assert read_timeout({"x-request-timeout": "1e9"}, settings) == 10


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
json_values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(value=json_values)
def test_no_json_value_gets_past_as_anything_but_a_request_or_a_refusal(value: Any) -> None:
    settings = ServeSettings(max_texts=4, max_characters=20)
    try:
        body = decode_json(json.dumps(value).encode())
        check_size(body, settings, known=EmbeddingsRequest.model_fields)
        request = validate(body, EmbeddingsRequest)
    except (MalformedBodyError, TooLargeError, InvalidRequestError):
        return
    assert request.input


@given(secret=st.text(st.characters(codec="utf-8", categories=["L"]), min_size=12), kind=st.integers(0, 4))
def test_no_refusal_quotes_the_client(secret: str, kind: int) -> None:
    bodies: list[dict[str, Any]] = [
        {secret: 1},
        {"input": {secret: 1}},
        {"input": [secret, 1.5]},
        {"input": "a", "dimensions": secret},
        {"input": "a", "encoding_format": secret},
    ]
    with pytest.raises(RequestError) as caught:
        validate(bodies[kind], EmbeddingsRequest)
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
