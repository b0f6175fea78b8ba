"""A pool computes with one intra-op thread each and leaves everybody else's setting alone."""

from __future__ import annotations

import threading

import pytest
import torch

from datapipe.metrics.pool import ChunkPool, usable_cpus


def test_the_threads_of_a_pool_leave_the_settings_of_others_alone() -> None:
    before = torch.get_num_threads()
    pool = ChunkPool(3)
    inside: list[int] = []
    pool.map(lambda _: inside.append(torch.get_num_threads()), range(20))
    outside: list[int] = []
    thread = threading.Thread(target=lambda: outside.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    pool.close()
    assert set(inside) == {1}
    assert torch.get_num_threads() == before
    assert outside == [before]


def test_work_is_done_for_every_start_and_the_first_failure_is_raised() -> None:
    pool = ChunkPool(2)
    done: list[int] = []
    pool.map(done.append, range(0, 50, 5))
    assert sorted(done) == list(range(0, 50, 5))

    def fail(start: int) -> None:
        raise ValueError(f"start {start}")

    with pytest.raises(ValueError, match="start 3"):
        pool.map(fail, [3, 4])
    pool.close()


def test_without_a_number_a_pool_takes_the_usable_cpus() -> None:
    pool = ChunkPool()
    assert pool.threads == usable_cpus() >= 1
    pool.close()
