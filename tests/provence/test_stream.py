"""Things as they arrive: in order, so many at a time, and nothing left running."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from provence.stream import in_order

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable


async def arriving(things: Iterable[int], *, then: asyncio.Event | None = None) -> AsyncIterator[int]:
    for thing in things:
        yield thing
    if then is not None:
        await then.wait()


async def test_results_come_in_the_order_of_arrival_and_no_more_than_so_many_run_at_a_time() -> None:
    running, most = 0, 0

    async def work(thing: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (5 - thing % 5))
        running -= 1
        return thing * 2

    assert [made async for made in in_order(arriving(range(20)), work, ahead=3)] == [2 * thing for thing in range(20)]
    assert most == 3


async def test_a_result_does_not_wait_for_the_next_thing_to_arrive() -> None:
    async def work(thing: int) -> int:
        return thing

    async with aclosing(in_order(arriving([7], then=asyncio.Event()), work, ahead=2)) as made:
        assert await asyncio.wait_for(anext(made), 10) == 7
    assert len(asyncio.all_tasks()) == 1


async def test_after_an_error_or_an_early_end_what_still_runs_is_cancelled() -> None:
    cancelled: list[int] = []

    async def work(thing: int) -> int:
        try:
            if thing:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(thing)
            raise
        await asyncio.sleep(0.01)
        if fault is not None:
            raise fault
        return thing

    fault: Exception | None = OSError("broken")
    with pytest.raises(OSError, match="broken"):
        await asyncio.wait_for(anext(in_order(arriving(range(3)), work, ahead=3)), 10)
    assert sorted(cancelled) == [1, 2]
    fault = None
    async with aclosing(in_order(arriving(range(3)), work, ahead=3)) as made:
        assert await anext(made) == 0
    assert sorted(cancelled) == [1, 1, 2, 2]
    assert len(asyncio.all_tasks()) == 1
