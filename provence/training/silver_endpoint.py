"""Replies of a language model behind an OpenAI-compatible address, several at a time.

    prompts -> threads -> POST BASE/chat/completions (retried) -> Reply, or why the server refuses a prompt

What may pass is tried again: no connection, a time-out, 408, 409, 425, 429 and 5xx, after a pause that doubles or that
the server names. A prompt that the server refuses (400, 413, 422) is the prompt's own fault, unless the first eight are
refused and none is answered: then, as for every other answer, the run ends, because something else is wrong. So does an
address at which nobody has answered yet, after a second attempt. A line of the log tells of attempts to come.
Redirects are not followed, so that the key goes nowhere else; the key stands in no message. Raises `ConfigError` and
`WorkerError`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from datapipe.errors import ConfigError, WorkerError
from provence.training.silver_journal import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from email.message import Message

    from provence.training.silver import Outcome

__all__ = ["EndpointLabeller"]

_log = logging.getLogger(__name__)

_PASSING: Final = frozenset({408, 409, 425, 429, *range(500, 600)})
_OF_THE_PROMPT: Final = frozenset({400, 413, 422})
_LONGEST_PAUSE: Final = 60.0
_MAX_BYTES: Final = 16 << 20
_TRIAL: Final = 8
"""Refusals without any reply after which the prompts are not at fault."""
_UNREACHED: Final = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})
_QUIET_SECONDS: Final = 5.0
"""Between two lines of the log about attempts, of which there may be several at a time."""


class EndpointLabeller:
    """Asks a chat model over HTTP; greedy.

    Args:
        address: Up to and including the version, such as `http://127.0.0.1:8000/v1`.
        model: Name of the model there.
        key_variable: Environment variable that holds the key; where it is unset or empty none is sent.
        max_new_tokens: Tokens of a reply at most.
        concurrency: Requests at a time.
        timeout: Seconds without a byte after which a request counts as failed.
        retries: Further attempts at a request.
        pause: Seconds before the second attempt; each further one waits twice as long, a minute at most.

    Raises:
        ConfigError: The address is no http or https address, or a number is out of range.
    """

    def __init__(
        self,
        address: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        max_new_tokens: int = 256,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 6,
        pause: float = 1.0,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"  # a query may hold a key
            raise ConfigError(f"an endpoint must look like http://HOST:PORT/v1. Got {shown!r}")
        if parts.username or parts.password:
            raise ConfigError(f"an endpoint must not hold a password; put the key into ${key_variable}")
        for name, value, least in (
            ("max_new_tokens", max_new_tokens, 1),
            ("concurrency", concurrency, 1),
            ("retries", retries, 0),
        ):
            if value < least:
                raise ConfigError(f"the {name!r} parameter of EndpointLabeller must be at least {least}. Got {value}")
        if timeout <= 0 or pause < 0:
            raise ConfigError(f"timeout must be above 0 and pause at least 0 seconds. Got {timeout} and {pause}")
        self.name = model
        self.identity = json.dumps(["endpoint", address.rstrip("/"), model, max_new_tokens])
        self._url, self._model = f"{address.rstrip('/')}/chat/completions", model
        self._key_variable, self._max_new_tokens = key_variable, max_new_tokens
        self._concurrency, self._timeout, self._retries, self._pause = concurrency, timeout, retries, pause
        self._refused, self._answered = 0, False
        self._reached, self._told, self._telling = False, -_QUIET_SECONDS, threading.Lock()
        self._opener = urllib.request.build_opener(_NoRedirect)

    def replies(self, prompts: Sequence[str]) -> Iterator[tuple[int, Outcome]]:
        """The place of each prompt and its reply, or `refused_by_endpoint`, as they come.

        Raises:
            ConfigError: The server refuses the key, or knows no such address or model.
            WorkerError: It still fails after all attempts, answers in another shape, or was never there.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="provence-labels") as pool:
            places = {pool.submit(self._ask, prompt, stop): place for place, prompt in enumerate(prompts)}
            try:
                for future in as_completed(places):
                    outcome = future.result()
                    self._answered = self._answered or isinstance(outcome, Reply)
                    yield places[future], outcome
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, prompt: str, stop: threading.Event) -> Outcome:
        request = self._request(prompt)
        for attempt in range(self._retries + 1):
            if stop.is_set():
                break
            wanted = None
            try:
                with self._opener.open(request, timeout=self._timeout) as response:
                    self._reached = True
                    return self._reply(response.read(_MAX_BYTES))
            except urllib.error.HTTPError as error:
                self._reached = True
                with error:
                    if error.code in _OF_THE_PROMPT:
                        return self._of_the_prompt(error)
                    if error.code not in _PASSING:
                        raise self._refusal(error) from None
                    wanted, problem = _retry_after(error.headers), f"HTTP {error.code}"
            except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
                cause = getattr(error, "reason", error)
                problem = _words(cause)
                if _is_unreached(cause):
                    self._refuse_absent(attempt, problem)
                else:
                    self._reached = True
            if attempt == self._retries:
                raise WorkerError(
                    f"{self._url} failed {attempt + 1} times, at last with: {problem}; replies so far are kept, "
                    "so run the same command again once it answers"
                )
            spread = random.uniform(0.75, 1.25)  # noqa: S311 - so that requests do not come back all at once
            seconds = min(_LONGEST_PAUSE, wanted if wanted is not None else self._pause * 2**attempt * spread)
            self._tell(attempt, problem, seconds)
            stop.wait(seconds)
        raise WorkerError(f"{self._url}: given up, because another request failed")

    def _refuse_absent(self, attempt: int, problem: str) -> None:
        """Raise `WorkerError` at the second attempt, or the last, at an address at which nobody has answered yet."""
        if not self._reached and attempt >= min(1, self._retries):
            raise WorkerError(
                f"{self._url} cannot be reached: {problem}; check the address, and that the server there is up"
            )

    def _tell(self, attempt: int, problem: str, seconds: float) -> None:
        with self._telling:
            now = time.monotonic()
            if now - self._told < _QUIET_SECONDS:
                return
            self._told = now
        _log.warning(
            "%s: %s; attempt %d of %d follows in %.0f s", self._url, problem, attempt + 2, self._retries + 1, seconds
        )

    def _request(self, prompt: str) -> urllib.request.Request:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(self._key_variable, "").strip()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._max_new_tokens,
            "stream": False,
        }
        return urllib.request.Request(self._url, json.dumps(body).encode(), headers)  # noqa: S310 - http or https only

    def _reply(self, body: bytes) -> Reply:
        try:
            choice = json.loads(body)["choices"][0]
            text = choice["message"]["content"] or ""
            return Reply(text.encode("utf-8", "replace").decode(), choice.get("finish_reason") != "length")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            shown = body[:200].decode("utf-8", "replace")
            raise WorkerError(f"{self._url} gave no chat completion. Got {shown!r}") from error

    def _of_the_prompt(self, error: urllib.error.HTTPError) -> str:
        self._refused += 1
        if self._answered or self._refused < _TRIAL:
            return "refused_by_endpoint"
        said = error.read(500).decode("utf-8", "replace")
        raise ConfigError(f"{self._url} refuses every prompt with HTTP {error.code}. It says {said!r}")

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        hints = {
            401: f"put a valid key into ${self._key_variable}",
            403: f"the key in ${self._key_variable} may not do this",
            404: f"check the address, which must end with the version such as /v1, and the model {self._model!r}",
        }
        hint = hints.get(error.code, "redirects are not followed" if error.code // 100 == 3 else "")  # noqa: PLR2004
        return ConfigError(f"{self._url} answers HTTP {error.code}" + (f": {hint}" if hint else ""))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _is_unreached(cause: object) -> bool:
    """Whether no server was there: no such host, no way to it, or nobody who listens."""
    return isinstance(cause, socket.gaierror) or (isinstance(cause, OSError) and cause.errno in _UNREACHED)


def _words(cause: object) -> str:
    """What a connection failed with, without the number of the error."""
    said = cause.strerror if isinstance(cause, OSError) else None
    return said or str(cause) or type(cause).__name__


def _retry_after(headers: Message) -> float | None:
    try:
        return max(0.0, float(headers["Retry-After"]))
    except (TypeError, ValueError):
        return None
