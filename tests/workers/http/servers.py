"""Ways to reach the server in a test: in process, on a port of this process, and as the command it is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn

from datapipe.workers.http.connection import bounded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI


def client_of(app: FastAPI, **options: Any) -> httpx.AsyncClient:
    """A client of the application itself, without a network."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", **options)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """What a refusal says, after a look at its form."""
    assert response.headers["content-type"] == "application/json"
    detail: dict[str, Any] = response.json()["error"]
    assert detail.keys() >= {"message", "type", "code", "param"}
    return detail


@contextmanager
def listening(app: Any, *, max_header_bytes: int = 65_536, head_seconds: float = 30.0) -> Iterator[str]:
    """The application on a free port, with the connections that `datapipe serve` uses. Yields its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=bounded(max_header_bytes=max_header_bytes, head_seconds=head_seconds),
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=10,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


class Command:
    """`datapipe serve` in a process of its own."""

    def __init__(self, *options: str, **environment: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DATAPIPE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "datapipe.cli", "serve", "--port", "0", "--device", "cpu", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**inherited, **environment},
        )
        self._ended: tuple[int, str] | None = None

    def __enter__(self) -> str:
        """Yields the URL once requests are taken."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on http://"), self.end()[1]
        return line.split()[-1]

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self, by: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; returns the exit code and all that the process wrote to standard error."""
        if self._ended is None:
            if self.process.poll() is None:
                self.process.send_signal(by)
            _, errors = self.process.communicate(timeout=60)
            self._ended = self.process.returncode, errors
        return self._ended


def talk(url: str, *pieces: bytes, pause: float = 0.0, seconds: float = 10.0) -> bytes:
    """Send bytes as they are, one piece after another, and read until the server hangs up."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        received = b""
        with suppress(ConnectionError):  # the server may hang up first
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        with suppress(ConnectionResetError):
            while part := connection.recv(65_536):
                received += part
        return received


def wait_until(reached: Any, *, seconds: float = 20.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
