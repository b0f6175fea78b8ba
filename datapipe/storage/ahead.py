"""Read ahead: the next items of a generator are made in a thread while the caller works on the last one."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator

T = TypeVar("T")


def ahead(items: Generator[T, None, None], *, depth: int = 2) -> Generator[T, None, None]:
    """Yield the same items in the same order; what making them raises comes out here.

    Close it (`contextlib.closing`) where it may be left early: that ends the thread and closes `items`.

    Args:
        items: A generator of anything but None.
        depth: Items made ahead, >= 1; so many are held besides the one that was yielded.
    """
    with closing(items), ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, None) for _ in range(depth))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
