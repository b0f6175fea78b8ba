"""`/v1/tasks/{task}`: any task over HTTP as Arrow IPC streams, for `HttpWorker`.

    POST body (Arrow items) -> survey, limits -> from_arrow -> worker -> to_arrow -> Arrow results
    GET -> digest, dim and bits of a model, which name a stage of a curation

A bulk request is packed as the in-process worker packs it, so its vectors have the same bits; what bounds it is its
bytes and the rows of a window, which must not be cut. An online request also has the limits of the other routes. The
body is surveyed before it is decoded: rows and unpacked bytes stand in its messages, so a small body cannot fill the
memory.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from datapipe.errors import ItemError, WorkerError
from datapipe.workers.http.errors import InvalidRequestError, MalformedBodyError, TooLargeError
from datapipe.workers.http.models import task_of
from datapipe.workers.protocol import Priority
from datapipe.workers.wire import from_arrow, to_arrow
from datapipe.workers.worker import WINDOW_ITEMS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.settings import ServeSettings
    from datapipe.workers.http.service import Call, Service
    from datapipe.workers.protocol import Item, Task

__all__ = ["ARROW", "PRIORITIES", "ModelStatement", "run_task", "state_model"]

ARROW = "application/vnd.apache.arrow.stream"
PRIORITIES = {priority.name.lower(): priority for priority in Priority}
_DECODED = 2
"""Bytes that a body may unpack to, as a multiple of what the body itself may have."""


class ModelStatement(BaseModel):
    """What a worker states of a model that it has loaded."""

    task: str
    model: str
    digest: str = Field(description="SHA-256 of the model's files.")
    dim: int = Field(description="Length of a result's vector; 0 where there is none.")
    bits: dict[str, str] = Field(description="What changes the last bits of a result.")


async def state_model(service: Service, task: str, model: str | None) -> dict[str, Any]:
    """Digest, dim and bits of a served model. Raises `NotServedError` and `ConfigError`."""
    task_of(task)
    name = service.offer.find(task, model).name
    loaded = await asyncio.to_thread(service.worker.load, name, task=task)
    return {"task": task, "model": name, "digest": loaded.digest, "dim": loaded.dim, "bits": dict(loaded.bits)}


async def run_task(call: Call, task: str, query: Mapping[str, str], body: bytes) -> bytes:
    """Results as one Arrow stream.

    Raises:
        NotServedError: There is no such task or model here.
        MalformedBodyError: The body is no Arrow stream.
        InvalidRequestError: A parameter or a column is not as it must be.
        TooLargeError: There are too many rows, characters or bytes.
    """
    kind = task_of(task)
    call = replace(call, priority=_priority(query), expires=_expires(query))
    model = call.model_for(task, query.get("model"))
    items = await asyncio.to_thread(_items, body, kind, call.service.settings, bulk=call.priority is Priority.BULK)
    if call.priority is Priority.ONLINE:
        _check_characters(items, call.service.settings.max_characters)
    results = await call.run(task, items, model=model)
    try:
        return await asyncio.to_thread(to_arrow, results, kind.result_schema())
    except ItemError as error:
        raise WorkerError(f"task {task} gave results that do not fit its schema") from error


def _priority(query: Mapping[str, str]) -> Priority:
    given = query.get("priority", "online")
    if given not in PRIORITIES:
        raise InvalidRequestError(f"priority must be one of {', '.join(PRIORITIES)}", param="priority")
    return PRIORITIES[given]


def _expires(query: Mapping[str, str]) -> float | None:
    """When a request's time is over; bulk work without a deadline waits as long as its client does."""
    if "deadline" not in query:
        return None
    try:
        seconds = float(query["deadline"])
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InvalidRequestError("deadline must be a number of seconds, at least 0", param="deadline")
    return time.monotonic() + seconds


def _items(body: bytes, kind: type[Task], settings: ServeSettings, *, bulk: bool) -> list[Item]:
    import pyarrow as pa

    from datapipe.storage.formats.ipc_messages import survey

    rows = decoded = 0
    try:
        pa.ipc.open_stream(pa.py_buffer(body)).close()
        for found in survey(pa.BufferReader(body), size=len(body)):
            rows += 0 if found.is_dictionary else found.rows
            decoded += found.nbytes
    except (ValueError, OSError) as error:  # pyarrow's own errors are among them
        raise MalformedBodyError("the body is not an Arrow IPC stream") from error
    most_rows = max(WINDOW_ITEMS, settings.max_texts) if bulk else settings.max_texts
    if rows > most_rows:
        raise TooLargeError(f"the body holds {rows:,} items; at most {most_rows:,} are taken in one request")
    if decoded > _DECODED * settings.max_task_bytes:
        most = _DECODED * settings.max_task_bytes
        raise TooLargeError(f"the body unpacks to {decoded:,} bytes; at most {most:,} are taken in one request")
    try:
        return from_arrow(body, kind.item_schema(), kind.item_type)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error


def _check_characters(items: list[Item], most: int) -> None:
    for index, item in enumerate(items):
        for name in type(item).__dataclass_fields__:
            value = getattr(item, name)
            if isinstance(value, str) and len(value) > most:
                raise TooLargeError(
                    f"item {index} holds a text of {len(value):,} characters; at most {most:,} are taken", param=name
                )
