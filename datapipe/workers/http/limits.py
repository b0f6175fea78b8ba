"""A body becomes JSON, within limits: strict reading, then texts and characters counted whatever the route.

    bytes -> decode_json -> check_size -> validated model

Messages name fields, places and counts, never what a client wrote. Raises `MalformedBodyError`, `TooLargeError` and
`InvalidRequestError`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from datapipe.workers.http.errors import InvalidRequestError, MalformedBodyError, MediaTypeError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from datapipe.settings import ServeSettings

__all__ = ["Parsed", "check_media_type", "check_size", "decode_json", "read_timeout", "validate"]

Parsed = TypeVar("Parsed", bound=BaseModel)


TIMEOUT_HEADER = "x-request-timeout"
_SHOWN_PROBLEMS = 3


def check_media_type(headers: Mapping[str, str], *, wanted: str) -> None:
    """Refuse another media type; a page of a stranger can send a form or plain text across origins, but not this."""
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != wanted:
        raise MediaTypeError(f"the content-type must be {wanted}", param="content-type")


def decode_json(body: bytes) -> dict[str, Any]:
    """Read a JSON object: UTF-8, no NaN, no Infinity, no lone surrogates, nesting of at most 1,024."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if body else "it is empty"
        raise MalformedBodyError(f"the body is not valid JSON ({place})") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("the body must be a JSON object")
    return value


def check_size(value: dict[str, Any], settings: ServeSettings, *, known: Iterable[str]) -> None:
    """Refuse lists of more than `max_texts` and texts of more than `max_characters`, wherever they stand.

    Args:
        value: The body.
        settings: The limits.
        known: Fields that a message may name.
    """
    for field, content in value.items():
        param = field if field in known else None
        for part in _parts(content):
            if isinstance(part, list) and len(part) > settings.max_texts:
                raise TooLargeError(
                    f"{param or 'a field'} holds {len(part):,} texts; at most {settings.max_texts:,} are taken in one "
                    "request: send them in several",
                    param=param,
                )
            if isinstance(part, str) and len(part) > settings.max_characters:
                raise TooLargeError(
                    f"{param or 'a field'} holds a text of {len(part):,} characters; at most "
                    f"{settings.max_characters:,} are taken",
                    param=param,
                )


def validate(value: dict[str, Any], model: type[Parsed]) -> Parsed:
    """Make a request of its JSON. A null for a field that the model does not have counts as left out."""
    known = model.model_fields
    if not all(field in known for field in value):
        value = {field: content for field, content in value.items() if field in known or content is not None}
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        lines = dict.fromkeys(_told(problem, model) for problem in problems)
        first = problems[0]["loc"][0] if problems[0]["loc"] else None
        param = first if isinstance(first, str) and first in known else None
        raise InvalidRequestError("; ".join(list(lines)[:_SHOWN_PROBLEMS]), param=param) from None


def read_timeout(headers: Mapping[str, str], settings: ServeSettings) -> float:
    """Seconds that a request has: the server's, or fewer if the client asks for fewer.

    Raises:
        InvalidRequestError: The header is not a number above 0.
    """
    given = headers.get(TIMEOUT_HEADER)
    if given is None:
        return settings.timeout_seconds
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequestError("X-Request-Timeout must be a number of seconds above 0", param=TIMEOUT_HEADER)
    return min(seconds, settings.timeout_seconds)


def _parts(content: Any) -> Iterator[Any]:
    """A value and all that it holds."""
    stack = [content]
    while stack:
        part = stack.pop()
        yield part
        if isinstance(part, list):
            stack.extend(part)
        elif isinstance(part, dict):
            stack.extend(part.values())


def _told(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    loc = problem["loc"]
    if problem["type"] == "extra_forbidden" and len(loc) == 1:
        return f"the body has a field that is not known here; known are {', '.join(model.model_fields)}"
    place = str(loc[0]) if loc and loc[0] in model.model_fields else ""
    place += "".join(f"[{part}]" for part in loc[1:] if isinstance(part, int))
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
