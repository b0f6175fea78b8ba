"""Every error that a client can see, and the one map from its class to status, type and code.

    error -> answer_of -> Answer -> error_body -> {"error": {"message", "type", "code", "param", "index"}}

Raised by the gate and the routes: `RequestError` and its children, for what is wrong with a request. Raised below: the
errors of the worker. Everything else is a bug of ours; its text stays on the server, because it may quote a request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from datapipe.errors import (
    ConfigError,
    DatapipeError,
    DeadlineError,
    ItemError,
    ModelError,
    OverloadedError,
    WorkerError,
    WorkerStoppedError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ANSWERS",
    "Answer",
    "BadHeadersError",
    "ErrorBody",
    "InvalidRequestError",
    "KeyRefusedError",
    "MalformedBodyError",
    "MediaTypeError",
    "MethodRefusedError",
    "ModelNotServedError",
    "NotServedError",
    "RequestError",
    "SlowRequestError",
    "TooLargeError",
    "answer_of",
    "error_body",
    "error_headers",
]


class RequestError(DatapipeError, ValueError):
    """Something is wrong with a request; `param` is the field or parameter at fault, if one is."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class MalformedBodyError(RequestError):
    """The body is not what its media type says: no JSON, or JSON with NaN, broken UTF-8, or endless nesting."""


class KeyRefusedError(RequestError):
    """There is no bearer key in the request, or it is not one of the server's."""


class NotServedError(RequestError):
    """There is no such route or task here."""


class ModelNotServedError(NotServedError):
    """The model is not one of those that the server was started with."""


class MethodRefusedError(RequestError):
    """The route exists, but not with this method; `allowed` are those that it has."""

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class SlowRequestError(RequestError):
    """The body did not arrive in time."""


class TooLargeError(RequestError):
    """More bytes, texts, characters or tokens than the server takes in one request."""


class MediaTypeError(RequestError):
    """The body is of another media type than the route takes."""


class InvalidRequestError(RequestError):
    """The body can be read, but a field is missing, unknown, of the wrong type or out of range."""


class BadHeadersError(RequestError):
    """The request line and headers are longer than the server takes."""


@dataclass(frozen=True)
class Answer:
    """What a client sees of a class of errors.

    Attributes:
        status: HTTP status.
        kind: `type` of the body, in OpenAI's words where there is one.
        code: `code` of the body: one word a class, from which `HttpWorker` makes the error again.
        meaning: When it is seen, for the OpenAPI document.
        told: Whether the error's own message goes to the client.
    """

    status: int
    kind: str
    code: str
    meaning: str
    told: bool = True


INVALID, SERVER = "invalid_request_error", "server_error"

ANSWERS: Mapping[type[BaseException], Answer] = {
    MalformedBodyError: Answer(400, INVALID, "malformed_body", "The body cannot be read."),
    KeyRefusedError: Answer(401, "authentication_error", "invalid_api_key", "The bearer key is missing or wrong."),
    NotServedError: Answer(404, "not_found_error", "not_found", "There is no such route or task."),
    ModelNotServedError: Answer(404, "not_found_error", "model_not_found", "The model is not served here."),
    MethodRefusedError: Answer(405, INVALID, "method_not_allowed", "The route takes another method."),
    SlowRequestError: Answer(408, "timeout_error", "slow_request", "The body did not arrive in time."),
    TooLargeError: Answer(413, INVALID, "too_large", "More bytes, texts, characters or tokens than are taken."),
    MediaTypeError: Answer(415, INVALID, "media_type", "The body is of another media type."),
    InvalidRequestError: Answer(422, INVALID, "invalid_request", "A field is missing, unknown or out of range."),
    ItemError: Answer(422, INVALID, "item", "An item is unusable; `index` is its place."),
    ConfigError: Answer(422, INVALID, "config", "The model is not for this task."),
    OverloadedError: Answer(429, "rate_limit_error", "overloaded", "Too much is waiting; come again later."),
    BadHeadersError: Answer(431, INVALID, "headers_too_large", "Request line and headers are too long."),
    ModelError: Answer(500, SERVER, "model", "A served model cannot be loaded any more.", told=False),
    WorkerError: Answer(500, SERVER, "worker", "The device failed on a batch of this request."),
    WorkerStoppedError: Answer(503, SERVER, "stopped", "The worker is stopping, stuck or dead."),
    DeadlineError: Answer(504, "timeout_error", "deadline", "The deadline passed before the answer was there."),
    BaseException: Answer(500, SERVER, "internal", "A bug of the server.", told=False),
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: str
    param: str | None = Field(None, description="Field or parameter at fault.")
    index: int | None = Field(None, description="Place of the item at fault in the request.")


class ErrorBody(BaseModel):
    """Body of every answer that is no success, in the shape of OpenAI's API."""

    error: ErrorDetail


def answer_of(error: BaseException) -> Answer:
    """The answer of the nearest class that the map knows."""
    return next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)


def error_body(error: BaseException, *, request_id: str) -> dict[str, Any]:
    """The body of an error; a message that may quote what is private is replaced by where the log tells more."""
    answer = answer_of(error)
    message = str(error) if answer.told else f"{answer.meaning} The server's log names request {request_id}"
    detail: dict[str, Any] = {"message": message, "type": answer.kind, "code": answer.code, "param": None}
    if isinstance(error, RequestError):
        detail["param"] = error.param
    if isinstance(error, ItemError):
        detail["index"] = error.index
    return {"error": detail}


def error_headers(error: BaseException) -> dict[str, str]:
    """Headers that the status of an error asks for."""
    if isinstance(error, KeyRefusedError):
        return {"www-authenticate": 'Bearer realm="datapipe"'}
    if isinstance(error, MethodRefusedError):
        return {"allow": error.allowed}
    if isinstance(error, OverloadedError):
        return {"retry-after": str(max(1, math.ceil(error.retry_after)))}
    return {}
