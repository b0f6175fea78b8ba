"""Replies on disk, each written once, so that nothing is asked twice whenever the work is broken off.

    prompt -> key (who was asked, and what) -> one JSON line in replies.jsonl

Each reply is handed to the system at once, so that killing the process loses none. When the journal is opened, a torn
last line is cut off, and a damaged line is passed over: what it said is asked again. Only places of lines are held in
memory. Raises `LockedError` and `OutputError`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from datapipe.errors import LockedError, OutputError
from provence.training.silver_answers import PROMPT_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

__all__ = ["Journal", "Reply", "key_of"]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote.

    Attributes:
        text: All of it.
        finished: Whether it ended by itself, not at the limit of its length.
    """

    text: str
    finished: bool = True


def key_of(prompt: str, *, identity: str) -> str:
    """Name of a reply: 32 hex digits of BLAKE2b over the prompt, its version, and who was asked under which limits."""
    content = json.dumps([PROMPT_VERSION, identity, prompt])
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Journal:
    """The replies in a file; a context manager that keeps other writers out.

    Args:
        path: The file; made if it is not there.

    Raises:
        LockedError: Another process writes to it.
        OutputError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise LockedError(f"another process is writing labels to {path.parent}; wait for it") from error
        self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            os.fsync(self._file.fileno())

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> Reply:
        self._file.seek(self._places[key])
        line = json.loads(self._file.readline())
        return Reply(line["reply"], line["finished"])

    def add(self, replies: Iterable[tuple[str, Reply]]) -> None:
        """Write replies that are not there yet. Raises `OutputError`."""
        place = self._file.seek(0, os.SEEK_END)
        lines, places = [], {}
        for key, reply in replies:
            if key in self._places or key in places:
                continue
            content = {"key": key, "reply": reply.text, "finished": reply.finished}
            lines.append(json.dumps(content).encode() + b"\n")
            places[key] = place
            place += len(lines[-1])
        try:
            self._file.write(b"".join(lines))
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._places |= places

    def _load(self) -> None:
        self._file.seek(0)
        place = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                self._file.truncate(place)
                return
            if (key := _key_in(line)) is not None:
                self._places[key] = place
            place += len(line)


def _key_in(line: bytes) -> str | None:
    """Key of a line that holds a whole reply."""
    try:
        found = json.loads(line)
        whole = isinstance(found["reply"], str) and isinstance(found["finished"], bool)
        return str(found["key"]) if whole else None
    except (ValueError, KeyError, TypeError):
        return None
