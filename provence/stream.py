"""Work on things as they arrive, some at a time, with the results in the order of arrival.

    texts as they arrive -> one_by_one -> aprune, some at a time -> in_order -> PrunedContext, in the order of the texts

`one_by_one` raises `ConfigError` for options that need all texts at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping

    from provence.results import PrunedContext

__all__ = ["in_order", "one_by_one"]

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


async def one_by_one(
    texts: AsyncIterable[str],
    aprune: Callable[[str], Coroutine[Any, Any, list[PrunedContext]]],
    *,
    ahead: int,
    options: Mapping[str, object],
) -> AsyncGenerator[PrunedContext, None]:
    """What pruning leaves of each text, with its place among all; see `Pruner.stream`."""
    refused = [name for name in ("budget_tokens", "top_n", "joint") if options.get(name)]
    if refused or ahead < 1:
        what = f"{refused[0]} needs all texts at once" if refused else f"ahead must be at least 1. Got {ahead}"
        raise ConfigError(f"stream prunes texts one by one: {what}")
    place = 0
    async with aclosing(in_order(texts, aprune, ahead=ahead)) as parts:
        async for found in parts:
            for context in found:
                yield replace(context, index=place)
            place += 1


async def in_order(
    given: AsyncIterable[_Given], work: Callable[[_Given], Coroutine[Any, Any, _Made]], *, ahead: int
) -> AsyncGenerator[_Made, None]:
    """What `work` makes of each thing, in order; each as soon as it and all before it are there.

    The first error, of the source or of the work, is raised in its turn. Whatever still runs then, or when the
    generator is closed, is cancelled.

    Args:
        given: Things as they arrive; the next is asked for while earlier ones are worked on.
        work: Called once a thing.
        ahead: Things that are worked on at a time, at least 1.
    """
    source = aiter(given)
    coming: asyncio.Task[tuple[_Given] | None] | None = asyncio.create_task(_next(source))
    flying: deque[asyncio.Task[_Made]] = deque()
    try:
        while coming is not None or flying:
            waits: set[asyncio.Task[Any]] = {flying[0]} if flying else set()
            if coming is not None and not coming.done():
                waits.add(coming)
            elif coming is not None and not (flying and (coming.exception() or len(flying) >= ahead)):
                arrived = coming.result()
                coming = None if arrived is None else asyncio.create_task(_next(source))
                if arrived is not None:
                    flying.append(asyncio.create_task(work(*arrived)))
                continue
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            while flying and flying[0].done():
                yield flying.popleft().result()
    finally:
        running = [task for task in (coming, *flying) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _next(source: AsyncIterator[_Given]) -> tuple[_Given] | None:
    """The next thing, in a tuple that tells it from the end."""
    try:
        return (await anext(source),)
    except StopAsyncIteration:
        return None
