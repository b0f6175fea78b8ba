"""A call's items cut into the bodies of requests.

    items -> windows of the task, or fewer items at a time if online -> Arrow -> (place of the first item, body)
    bodies -> sent, some at a time -> results, in item order

A bulk window is never cut: a worker packs it as a whole, so cutting it would change the bits of its results.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from datapipe.errors import ConfigError, DatapipeError, ItemError
from datapipe.workers.faults import shifted
from datapipe.workers.protocol import Priority
from datapipe.workers.wire import to_arrow
from datapipe.workers.worker import WINDOW_ITEMS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from datapipe.workers.protocol import Item, Result, Task

__all__ = ["bodies", "sent"]

ONLINE_ITEMS = 1024
"""Items of an online body: what a server takes by default in one request, with room left for others in its queue."""


def bodies(
    kind: type[Task], items: Sequence[Item], *, priority: Priority, most: int
) -> Iterator[tuple[int, bytes | DatapipeError]]:
    """Bodies in the order of the items, each with the place of its first; made when they are asked for.

    A part that cannot be sent comes as its error, so that it is raised in its turn: `ItemError` for an item that does
    not fit its schema or is larger than a body may be, `ConfigError` for a bulk window that is.

    Args:
        kind: The task.
        items: Of the call; an empty call has one empty body, so that its model is checked.
        priority: Online parts are halved until they fit.
        most: Bytes of a body.
    """
    schema = kind.item_schema()
    window: int = getattr(kind, "window_items", WINDOW_ITEMS)
    size = min(window, ONLINE_ITEMS) if priority is Priority.ONLINE else window
    waiting = deque((first, min(first + size, len(items))) for first in range(0, max(len(items), 1), size))
    while waiting:
        first, end = waiting.popleft()
        try:
            body = to_arrow(items[first:end], schema)
        except ItemError as error:
            yield first, shifted(error, first)
            continue
        if len(body) <= most:
            yield first, body
        elif priority is Priority.ONLINE and end - first > 1:
            middle = (first + end) // 2
            waiting.extendleft([(middle, end), (first, middle)])
        elif priority is Priority.ONLINE:
            message = f"item {first} takes {len(body):,} bytes, but max_body_bytes is {most:,}"
            yield first, ItemError(message, index=first)
        else:
            yield first, _uncuttable(first, end, len(body), most)


def _uncuttable(first: int, end: int, nbytes: int, most: int) -> ConfigError:
    return ConfigError(
        f"items {first} to {end - 1} take {nbytes:,} bytes, but max_body_bytes is {most:,}. They are packed together, "
        "so cutting them would change the bits of their results: raise max_body_bytes here and "
        "DATAPIPE_SERVE__MAX_TASK_BYTES at the server, or run them as online work"
    )


async def sent(
    parts: Iterator[tuple[int, bytes | DatapipeError]],
    send: Callable[[bytes], Awaitable[list[Result]]],
    *,
    ahead: int,
) -> list[Result]:
    """Send bodies, so many at a time, and put their results together in order.

    Args:
        parts: Of `bodies`.
        send: Sends one body; gives the results of its items.
        ahead: Parts that are under way at a time.

    Raises:
        DatapipeError: Of the first part, in their order, that failed; the others are cancelled. The index of an
            `ItemError` is its place in the call.
    """

    async def one(first: int, body: bytes | DatapipeError) -> list[Result]:
        if isinstance(body, DatapipeError):
            raise body
        try:
            return await send(body)
        except ItemError as error:
            raise shifted(error, first) from error.__cause__

    flying: deque[asyncio.Task[list[Result]]] = deque()
    results: list[Result] = []

    def send_more() -> None:
        for first, body in parts:
            flying.append(asyncio.create_task(one(first, body)))
            if len(flying) >= ahead:
                return

    try:
        send_more()
        while flying:
            results += await flying[0]
            flying.popleft()
            send_more()
    finally:
        for part in flying:
            part.cancel()
        await asyncio.gather(*flying, return_exceptions=True)
    return results
