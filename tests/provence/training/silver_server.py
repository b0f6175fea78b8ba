"""A chat server on a free port of this machine that answers as it is told, and remembers what it was sent."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class ChatServer:
    """What was asked, and how it is answered.

    Attributes:
        faults: Statuses with headers given to the next requests, before any is answered; 0 hangs up without a word.
        seen: Bodies of all requests, in order of arrival.
        keys: Their Authorization headers.
    """

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer
        self.faults: list[tuple[int, dict[str, str]]] = []
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.finish_reason = "stop"
        self.raw: bytes | None = None
        self.lock = threading.Lock()
        self.hold = threading.Event()
        self.hold.set()
        self.address = ""

    def reply(self, prompt: str) -> bytes:
        if self.raw is not None:
            return self.raw
        message = {"role": "assistant", "content": self.answer(prompt)}
        return json.dumps({"choices": [{"message": message, "finish_reason": self.finish_reason}]}).encode()


@contextmanager
def chat_server(answer: Callable[[str], str]) -> Iterator[ChatServer]:
    state = ChatServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.seen.append(body | {"path": self.path})
                state.keys.append(self.headers["Authorization"])
                fault = state.faults.pop(0) if state.faults else None
            state.hold.wait(10)
            if fault is not None and fault[0] == 0:
                self.close_connection = True
                return
            status, headers = fault or (200, {})
            content = state.reply(body["messages"][0]["content"]) if fault is None else b'{"error": "as told"}'
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        state.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()
