"""Ten thousand real requests of 64 clients, many given up half-way, beside a bulk job: nothing is lost or left."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

from datapipe.errors import DeadlineError, OverloadedError
from datapipe.workers.batcher import Batch
from datapipe.workers.calls import Call, Ticket
from datapipe.workers.protocol import Priority
from datapipe.workers.tasks.embed import TextItem
from datapipe.workers.worker import LocalWorker

if TYPE_CHECKING:
    from pathlib import Path

REQUESTS, CLIENTS = 10_000, 64


def alive() -> dict[str, int]:
    """How many objects of a call are left in memory."""
    gc.collect()
    kinds = (Call, Ticket, Batch, Future)
    objects = gc.get_objects()
    return {kind.__name__: sum(issubclass(type(each), kind) for each in objects) for kind in kinds}


class Clients:
    """Ask for vectors of short texts, and check each against what the worker says alone."""

    def __init__(self, worker: LocalWorker, texts: list[str], truth: np.ndarray) -> None:
        self.worker, self.texts, self.truth = worker, texts, truth
        self.random = random.Random(0)
        self.counts = dict.fromkeys(("answered", "cancelled", "late", "refused"), 0)
        self.left = REQUESTS

    async def client(self) -> None:
        while self.left > 0:
            self.left -= 1
            places = [self.random.randrange(len(self.texts)) for _ in range(self.random.choice([1, 1, 1, 3]))]
            deadline = self.random.choice([None, None, None, 0.02])
            call = asyncio.create_task(self.ask(places, deadline))
            if self.random.random() < 0.2:
                await asyncio.sleep(self.random.random() * 0.05)
                call.cancel()
            try:
                await call
            except asyncio.CancelledError:
                self.counts["cancelled"] += 1

    async def ask(self, places: list[int], deadline: float | None) -> None:
        items = [TextItem(self.texts[place]) for place in places]
        try:
            results = await self.worker.arun(
                "embed", items, model="default", priority=Priority.ONLINE, deadline=deadline
            )
        except DeadlineError:
            self.counts["late"] += 1
        except OverloadedError:
            self.counts["refused"] += 1
        else:
            self.counts["answered"] += 1
            for place, result in zip(places, results, strict=True):
                assert float(result.vector @ self.truth[place]) > 0.9995

    async def all(self) -> None:
        await asyncio.gather(*(self.client() for _ in range(CLIENTS)))


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_a_crowd_and_a_bulk_job_leave_nothing_behind(data: Path) -> None:
    texts = sorted(set(pq.read_table(data / "banking77.parquet")["text"].to_pylist()), key=len)[:600]
    threads, before = threading.active_count(), alive()
    with LocalWorker(device="cpu", queue_items=96) as worker:
        alone = worker.run("embed", [TextItem(text) for text in texts], model="default")
        truth = np.stack([result.vector for result in alone])
        stop, bulk = threading.Event(), []

        def job() -> None:
            while not stop.is_set():
                results = worker.run("embed", [TextItem(text) for text in texts], model="default")
                bulk.append(np.array_equal(np.stack([result.vector for result in results]), truth))

        thread = threading.Thread(target=job)
        thread.start()
        clients = Clients(worker, texts, truth)
        asyncio.run(clients.all())
        inside = threading.active_count()
        stop.set()
        thread.join()
        assert worker.health().state == "ok"
        assert worker.health().queued == 0
        assert (worker._batcher.waiting, worker._batcher.admitted) == (0, 0)
    del alone
    assert sum(clients.counts.values()) == REQUESTS
    assert min(clients.counts["answered"], clients.counts["cancelled"], clients.counts["late"]) > 100
    assert bulk
    assert all(bulk)
    assert inside < threads + 20
    clients.worker.close()
    after = alive()
    assert all(after[name] <= before[name] + 4 for name in before), (before, after)
