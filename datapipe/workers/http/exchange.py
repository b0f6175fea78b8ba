"""One request of the client: sent, sent again where that can help, and its refusal made an error of ours.

    send -> 429, 502, 503, or a broken connection -> wait: backoff, jitter, Retry-After, no longer than allowed -> again
         -> 2xx -> response
         -> anything else -> the class that the server raised

Sending again is safe: a task's results depend on its items alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from datapipe.errors import (
    ConfigError,
    DatapipeError,
    DeadlineError,
    ItemError,
    ModelNotFoundError,
    OverloadedError,
    WorkerError,
    WorkerStoppedError,
)
from datapipe.workers.http.errors import ANSWERS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Retries", "error_of", "exchange"]

_AGAIN = frozenset({502, 503})
_PLAIN = {
    answer.code: kind
    for kind, answer in ANSWERS.items()
    if issubclass(kind, DatapipeError) and kind.__module__ == DatapipeError.__module__
}
_KINDS: Mapping[str, type[BaseException]] = {**_PLAIN, "model_not_found": ModelNotFoundError}


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often and how long to wait.

    Attributes:
        attempts: Further attempts after the first; 0 never sends again.
        first_seconds: Longest wait before the second attempt; it doubles with each.
        most_seconds: Longest wait, unless the server asks for more.
    """

    attempts: int = 6
    first_seconds: float = 0.25
    most_seconds: float = 10.0

    def wait(self, attempt: int, retry_after: float) -> float:
        """Seconds before the next attempt: drawn at random, so that refused clients do not come back together."""
        longest = min(self.most_seconds, self.first_seconds * 2**attempt)
        return retry_after + random.uniform(0.0, longest)  # noqa: S311 - no secret depends on it


async def exchange(
    client: httpx.AsyncClient, method: str, path: str, *, expires: float | None, retries: Retries, **content: Any
) -> httpx.Response:
    """Send a request until it is answered.

    Args:
        client: The pool.
        method: `GET` or `POST`.
        path: Below the server's URL.
        expires: Time of the monotonic clock after which nobody waits; None waits for ever.
        retries: How often.
        content: What httpx takes: `params`, `content`, `headers`. With `expires`, `params` gets the seconds left.

    Raises:
        DeadlineError: The deadline passed first.
        WorkerStoppedError: The server cannot be reached.
        DatapipeError: It refused; see `error_of`.
    """
    for attempt in range(retries.attempts + 1):
        params = dict(content.get("params", {}))
        left = None if expires is None else max(0.0, expires - time.monotonic())
        if left is not None:
            params["deadline"] = repr(left)
        try:
            async with asyncio.timeout(left):
                return await _once(client, method, path, **{**content, "params": params})
        except TimeoutError as error:
            if isinstance(error, DeadlineError):
                raise
            raise _too_late(client) from error
        except (OverloadedError, _OutOfReachError) as error:
            if attempt == retries.attempts:
                raise
            wait = retries.wait(attempt, error.retry_after)
            if expires is not None and time.monotonic() + wait >= expires:
                raise _too_late(client) from error
        await asyncio.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


class _OutOfReachError(WorkerStoppedError):
    """The server cannot be reached or is stopping; another attempt may find it, or another one."""

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


async def _once(client: httpx.AsyncClient, method: str, path: str, **content: Any) -> httpx.Response:
    try:
        response = await client.request(method, path, **content)
    except httpx.ReadTimeout as error:
        raise WorkerStoppedError(f"{client.base_url} did not answer within {client.timeout.read:g} seconds") from error
    except httpx.UnsupportedProtocol as error:
        raise ConfigError(f"{client.base_url} is no URL of a server ({_words(error)})") from error
    except httpx.TransportError as error:
        raise _OutOfReachError(f"{client.base_url} cannot be reached ({_words(error)})") from error
    if response.is_success:
        return response
    failure = error_of(response)
    if response.status_code in _AGAIN and not isinstance(failure, OverloadedError):
        raise _OutOfReachError(str(failure), retry_after=_retry_after(response))
    raise failure


def error_of(response: httpx.Response) -> DatapipeError:
    """The error that a refusal stands for, of the class that the server raised where it says so."""
    status = response.status_code
    try:
        detail = response.json()["error"]
        message, code = str(detail["message"]), str(detail["code"])
    except (ValueError, LookupError, TypeError):
        message, code, detail = f"{response.url.host} answered {status}", "", {}
    if code == "item" and isinstance(detail.get("index"), int):
        return ItemError(message, index=detail["index"])
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return OverloadedError(message, retry_after=_retry_after(response) or 1.0)
    if status == httpx.codes.UNAUTHORIZED:
        return ConfigError(f"{message}; the client takes it from DATAPIPE_API_KEY or api_key=")
    kind = _KINDS.get(code)
    if kind is None:
        kind = ConfigError if status < httpx.codes.INTERNAL_SERVER_ERROR else WorkerError
        if status in _AGAIN or status == httpx.codes.GATEWAY_TIMEOUT:  # of a proxy: ours would have said more
            kind = WorkerStoppedError
    made: DatapipeError = kind(message)  # type: ignore[assignment]
    return made


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:  # a date, which no server of ours sends
        return 0.0


def _too_late(client: httpx.AsyncClient) -> DeadlineError:
    return DeadlineError(f"the deadline of a call to {client.base_url} passed before it was done")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
