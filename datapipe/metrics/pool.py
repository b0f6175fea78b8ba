"""Threads for arithmetic whose bits must not depend on how many of them there are.

A product split by the library over n threads may round differently for another n. So the rows are cut into chunks of
fixed size, each chunk is computed by one thread, and the threads share out the chunks.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SETTING_THREADS = threading.Lock()


class ChunkPool:
    """Threads that each compute with one intra-op thread, whatever the rest of the process uses.

    Args:
        threads: How many; None takes the CPUs this process may use.
    """

    def __init__(self, threads: int | None = None) -> None:
        import torch

        self.threads = threads or usable_cpus()
        # torch keeps the setting per thread, yet a thread takes the last one made anywhere when it first asks for it:
        # so each thread asks at once, and the setting that threads started later will find is put back.
        with _SETTING_THREADS:
            before = torch.get_num_threads()
            started = threading.Barrier(self.threads + 1)

            def begin() -> None:
                torch.set_num_threads(1)
                torch.get_num_threads()
                started.wait()

            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="chunk", initializer=begin)
            for _ in range(self.threads):
                self._pool.submit(started.wait)
            started.wait()
            started.wait()
            torch.set_num_threads(before)

    def map(self, work: Callable[[int], None], starts: Sequence[int]) -> None:
        """Call `work` with every start; the first exception in the order of `starts` is raised."""
        for _ in self._pool.map(work, starts):
            pass

    def close(self) -> None:
        """Let the threads end; work already handed in is finished."""
        self._pool.shutdown()


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_blocks(work: Callable[[int], None], blocks: int, *, device: str, threads: int | None) -> None:
    """Call `work` with each of 0 ... blocks - 1: on threads for "cpu", one after the other for an accelerator.

    Args:
        work: Must not depend on the order of the calls.
        blocks: How many there are.
        device: Where the arithmetic runs.
        threads: Host threads; None takes the CPUs this process may use.
    """
    if device != "cpu":
        for at in range(blocks):
            work(at)
        return
    pool = ChunkPool(threads)
    try:
        pool.map(work, range(blocks))
    finally:
        pool.close()
