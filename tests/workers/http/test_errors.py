"""The map from errors to answers: every class has one, and the client makes the class again from it."""

from __future__ import annotations

import inspect
from typing import Any

import httpx
import pytest

import datapipe.errors
from datapipe.errors import (
    ConfigError,
    DatapipeError,
    DeadlineError,
    DigestError,
    ItemError,
    ModelError,
    ModelNotFoundError,
    OverloadedError,
    WorkerError,
    WorkerStoppedError,
)
from datapipe.workers.http import errors
from datapipe.workers.http.errors import ANSWERS, RequestError, answer_of, error_body, error_headers
from datapipe.workers.http.exchange import error_of

EVERY = [
    kind
    for module in (datapipe.errors, errors)
    for kind in vars(module).values()
    if inspect.isclass(kind) and issubclass(kind, DatapipeError)
]


def made(kind: type[DatapipeError]) -> DatapipeError:
    extra: dict[str, Any] = {"index": 7} if kind is ItemError else {}
    if kind is errors.MethodRefusedError:
        extra = {"allowed": "POST"}
    return kind("what went wrong", **extra)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_has_an_answer_and_only_bugs_and_faults_are_500(kind: type[DatapipeError]) -> None:
    answer = answer_of(made(kind))
    assert 400 <= answer.status < 600
    if issubclass(kind, RequestError) and kind is not RequestError:
        assert answer.status < 500


def test_codes_name_their_class() -> None:
    codes = [answer.code for answer in ANSWERS.values()]
    assert len(set(codes)) == len(codes)


def test_a_bug_keeps_its_words_to_itself() -> None:
    body = error_body(KeyError("a private text"), request_id="abc")
    assert body["error"] == {
        "message": "A bug of the server. The server's log names request abc",
        "type": "server_error",
        "code": "internal",
        "param": None,
    }


def response_of(error: Exception) -> httpx.Response:
    return httpx.Response(
        answer_of(error).status,
        json=error_body(error, request_id="abc"),
        headers=error_headers(error),
        request=httpx.Request("POST", "http://server/v1/tasks/embed"),
    )


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (ItemError("item 3 is none", index=3), ItemError),
        (ModelError("damaged"), ModelError),
        (DigestError("another"), ModelError),
        (ConfigError("not for this task"), ConfigError),
        (OverloadedError("full", retry_after=3.0), OverloadedError),
        (DeadlineError("late"), DeadlineError),
        (WorkerStoppedError("dead"), WorkerStoppedError),
        (WorkerError("failed"), WorkerError),
        (errors.ModelNotServedError("not here"), ModelNotFoundError),
        (errors.NotServedError("no such task"), ConfigError),
        (errors.TooLargeError("too large"), ConfigError),
        (errors.InvalidRequestError("wrong"), ConfigError),
        (errors.KeyRefusedError("no key"), ConfigError),
        (KeyError("bug"), WorkerError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_the_client_makes_the_error_again(raised: Exception, seen: type[Exception]) -> None:
    error = error_of(response_of(raised))
    assert type(error) is seen
    if answer_of(raised).told:
        assert str(raised) in str(error)
    if isinstance(error, ItemError):
        assert error.index == 3
    if isinstance(error, OverloadedError):
        assert error.retry_after == 3.0


@pytest.mark.parametrize(
    ("status", "seen"), [(502, WorkerStoppedError), (504, WorkerStoppedError), (500, WorkerError), (403, ConfigError)]
)
def test_the_page_of_a_proxy_becomes_an_error_too(status: int, seen: type[Exception]) -> None:
    request = httpx.Request("POST", "http://server/v1/tasks/embed")
    for body in (b"<html>Bad Gateway</html>", b'{"error": 5}', b"[]", b""):
        error = error_of(httpx.Response(status, content=body, request=request))
        assert type(error) is seen
        assert str(error) == f"server answered {status}"
