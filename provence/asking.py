"""How a worker is asked: with which priority, and in whose words it refuses.

    Request, ... -> placed(worker.run) -> PruneScores of each; ItemError of an item -> ItemError of a text

A worker counts items. A text may be several of them, and several texts one, so what is told to a caller is put in the
places of texts: of a question, or of several questions with their texts.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

from datapipe.errors import ItemError
from datapipe.workers.protocol import Priority

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapipe.workers.protocol import Worker
    from provence.assemble import Request
    from provence.task import PruneItem, PruneScores

__all__ = ["answers", "how", "placed"]

ONLINE_TEXTS = 1024
ONLINE_CHARACTERS = 1 << 16
"""A call of more texts, or of more characters, is bulk work unless it says otherwise."""


def how(priority: Priority | None, deadline: float | None, texts: Sequence[str]) -> dict[str, Any]:
    """What a worker is told of a call; None as priority goes by its size."""
    if priority is None:
        large = len(texts) > ONLINE_TEXTS or sum(map(_characters, texts)) > ONLINE_CHARACTERS
        priority = Priority.BULK if large else Priority.ONLINE
    return {"priority": priority, "deadline": deadline}


def answers(requests: Sequence[Request], worker: Worker, **told: Any) -> list[list[PruneScores]]:
    """Scores of all texts of several requests, from one call. Raises `ItemError` with question and text."""
    parts: list[list[PruneItem]] = []
    for question, request in enumerate(requests):
        try:
            parts.append(request.items)
        except ItemError as error:
            _refuse(error, requests, question, error.index, of=error.index)
    with _of_many(requests):
        found = iter(worker.run("prune", [item for part in parts for item in part], **told))
    return [request.scores(list(islice(found, len(part)))) for request, part in zip(requests, parts, strict=True)]


@contextmanager
def placed(request: Request) -> Iterator[None]:
    """Put what a worker says of an item of one request in the place of its text."""
    try:
        yield
    except ItemError as error:
        text = _owner(request, error.index)
        if text == error.index:
            raise
        raise ItemError(_renamed(error, f"item {text}", of=error.index), index=text) from error


@contextmanager
def _of_many(requests: Sequence[Request]) -> Iterator[None]:
    try:
        yield
    except ItemError as error:
        first = 0
        for question, request in enumerate(requests):
            if error.index < first + len(request.owners):
                _refuse(error, requests, question, _owner(request, error.index - first), of=error.index)
            first += len(request.owners)
        raise


def _refuse(error: ItemError, requests: Sequence[Request], question: int, text: int, *, of: int) -> NoReturn:
    """Raise the error with its question and text; the index counts the texts of all questions."""
    before = sum(len(request.texts) for request in requests[:question])
    said = _renamed(error, f"text {text} of question {question}", of=of)
    raise ItemError(said, index=before + text) from error


def _renamed(error: ItemError, name: str, *, of: int) -> str:
    return re.sub(rf"\bitem {of}\b", name, str(error))


def _owner(request: Request, item: int) -> int:
    owners = request.owners
    return owners[item] if item < len(owners) else item


def _characters(text: object) -> int:
    return len(text) if isinstance(text, str) else 0
