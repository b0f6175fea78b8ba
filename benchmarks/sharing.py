"""One worker for online questions and a bulk job, against two processes with a model each.

    python -m benchmarks.sharing            # this machine's CPU, or --device cuda
    python -m benchmarks.sharing --table

The bulk job embeds texts of mixed lengths without pause. The online traffic is one question a request, arriving at
random (exponential gaps) at 15 % of what the worker answers when it has nothing else to do. Every way runs the same
arrivals, in turns, `--rounds` times: online alone, bulk alone, and both together in

    shared            one worker; bulk lanes give way to online lanes (the default)
    one online lane   the same, and one online batch at a time, so that company gathers behind it
    no give way       lanes left to the scheduler as equals
    two processes     the naive way: the bulk job in a process of its own, with a model of its own

The row `linger` was measured at the commit that it names: online items waited for company as long as a batch takes.
What online work takes from bulk work at the least, seconds of a core for each question by the questions that share a
batch, goes to `sharing_cost.json`.

A latency is from the moment a question was due to its answer. `times_alone_p95` is the median over the rounds of p95
together over p95 alone. Memory is that of one fresh process which has run both kinds, or of two that have run one each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partialmethod
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from benchmarks.common import Row, finished, record, table
from benchmarks.embedding import data_sets
from datapipe.workers.lanes import Lanes
from datapipe.workers.observe import Unobserved
from datapipe.workers.protocol import Priority
from datapipe.workers.tasks.embed import TextItem
from datapipe.workers.worker import LocalWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.synchronize import Event

NAME = "sharing"
SHARE = 0.15
SLICE = 256
WARM_SECONDS = 1.0
COLUMNS = [
    *("device", "way", "online_per_s", "p50_ms", "p95_ms", "alone_p95_ms", "times_alone_p95"),
    *("bulk_tokens_per_s", "alone_bulk_tokens_per_s", "share_of_bulk_alone", "memory_mib"),
    "device_memory_mib",
]


class Counter(Unobserved):
    """Counts the tokens of bulk batches as they begin."""

    tokens = 0

    def batch(self, *, priority: Priority, tokens: int, **_: Any) -> None:
        if priority is Priority.BULK:
            self.tokens += tokens


class Bulk:
    """The bulk job in this process: embeds slices until it is stopped."""

    def __init__(self, worker: LocalWorker, texts: Sequence[str]) -> None:
        self._worker, self._stop = worker, threading.Event()
        self._slices = cycle([texts[start : start + SLICE] for start in range(0, len(texts) - SLICE + 1, SLICE)])
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            batch = [TextItem(text) for text in next(self._slices)]
            self._worker.run("embed", batch, model="default")

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def bulk_process(device: str, texts: list[str], tokens: Any, stop: Event) -> None:
    """The bulk job in a process of its own."""
    counter = Counter()
    with LocalWorker(device=device, observer=counter) as worker:
        bulk = Bulk(worker, texts)
        while not stop.wait(0.02):
            tokens.value = counter.tokens
        bulk.end()


async def ask(worker: LocalWorker, questions: Iterator[str], gaps: Sequence[float]) -> list[float]:
    """Send questions at the given gaps whatever the answers do; seconds from due to answered, in order."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    calls = []

    async def one(text: str, at: float) -> float:
        await worker.arun("embed", [TextItem(text)], model="default", priority=Priority.ONLINE)
        return loop.time() - at

    for gap in gaps:
        due += gap
        await asyncio.sleep(max(0.0, due - loop.time()))
        calls.append(asyncio.create_task(one(next(questions), due)))
    return await asyncio.gather(*calls)


async def capacity(worker: LocalWorker, questions: Iterator[str], *, clients: int, seconds: float) -> float:
    """Questions a second that so many clients get answered, each asking again at once."""
    loop = asyncio.get_running_loop()
    end, answered = loop.time() + seconds, 0

    async def client() -> None:
        nonlocal answered
        while loop.time() < end:
            await worker.arun("embed", [TextItem(next(questions))], model="default", priority=Priority.ONLINE)
            answered += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return answered / seconds


def resident(device: str, texts: list[str], priorities: list[Priority], found: Any) -> None:
    """In a process of its own: what a worker holds once it has run work of these priorities."""
    import torch

    with LocalWorker(device=device) as worker:
        for priority in priorities:
            worker.run("embed", [TextItem(text) for text in texts], model="default", priority=priority)
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
        own = next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10
        found.put((own, torch.cuda.memory_reserved() if device == "cuda" else 0))


def footprint(device: str, texts: Sequence[str], *processes: list[Priority]) -> tuple[float, float]:
    """Memory in MiB, on the host (proportional set size) and reserved on the device, of workers in processes."""
    context = multiprocessing.get_context("spawn")
    whole = [0, 0]
    for priorities in processes:
        found = context.SimpleQueue()
        process = context.Process(target=resident, args=(device, list(texts[:2000]), priorities, found))
        process.start()
        host, on_device = found.get()
        process.join()
        whole = [whole[0] + host, whole[1] + on_device]
    return whole[0] / 2**20, whole[1] / 2**20


class Shared:
    """Both kinds on one worker."""

    def __init__(self, device: str, texts: Sequence[str]) -> None:
        self._counter, self._texts = Counter(), texts
        self.worker = LocalWorker(device=device, observer=self._counter)

    def begin(self) -> None:
        self._bulk = Bulk(self.worker, self._texts)

    @property
    def tokens(self) -> int:
        return self._counter.tokens

    def end(self) -> None:
        self._bulk.end()


class TwoProcesses:
    """Online here, bulk in another process."""

    def __init__(self, device: str, texts: Sequence[str]) -> None:
        self.worker = LocalWorker(device=device)
        self._device, self._texts = device, texts

    def begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._tokens, self._stop = context.Value("q", 0), context.Event()
        self._process = context.Process(
            target=bulk_process, args=(self._device, list(self._texts), self._tokens, self._stop)
        )
        self._process.start()
        while not self._tokens.value:
            time.sleep(0.05)

    @property
    def tokens(self) -> int:
        return int(self._tokens.value)

    def end(self) -> None:
        self._stop.set()
        self._process.join()


def only_the_first(lanes: Lanes, work: Callable[[Lanes, Any], None], lane: Any) -> None:
    """Let an online lane end at once unless it is the first of its device."""
    if lane.priority is Priority.BULK or lane.number == lane.device:
        work(lanes, lane)


def without(name: str) -> AbstractContextManager[Any]:
    """What is switched off in the worker while a way runs."""
    return mock.patch.object(Lanes, "give_way") if name == "no give way" else nullcontext()


def together(way: Shared | TwoProcesses, questions: Iterator[str], gaps: Sequence[float]) -> Row:
    """Online traffic beside the bulk job."""
    way.begin()
    time.sleep(WARM_SECONDS)
    tokens, begun = way.tokens, time.perf_counter()
    latencies = asyncio.run(ask(way.worker, questions, gaps))
    rate = (way.tokens - tokens) / (time.perf_counter() - begun)
    way.end()
    return {"latencies": latencies, "bulk": rate}


def bulk_alone(way: Shared, seconds: float) -> float:
    """Tokens a second of the bulk job with nothing beside it."""
    way.begin()
    time.sleep(WARM_SECONDS)
    tokens, begun = way.tokens, time.perf_counter()
    time.sleep(seconds)
    rate = (way.tokens - tokens) / (time.perf_counter() - begun)
    way.end()
    return rate


def measure(device: str, *, rounds: int, seconds: float) -> None:
    """Run all ways in turns and record a row for each."""
    config = {
        "device": device,
        "share_offered": SHARE,
        "rounds": rounds,
        "seconds": seconds,
        "slice": SLICE,
    }
    names = ("shared", "one online lane", "no give way", "two processes")
    if all(finished(NAME, {**config, "way": name}) for name in names):
        print("measured already")
        return
    texts = data_sets(12_000)
    questions = cycle(texts["banking77"])
    bulk_texts = texts["mixed"]
    shared = Shared(device, bulk_texts)
    ways: dict[str, Shared | TwoProcesses] = {"shared": shared}
    ways |= {name: Shared(device, bulk_texts) for name in names[1:3]}
    ways["two processes"] = TwoProcesses(device, bulk_texts)
    for name, way in ways.items():
        patch = mock.patch.object(Lanes, "_work", partialmethod(only_the_first, Lanes._work))  # noqa: SLF001
        with without(name), patch if name == "one online lane" else nullcontext():
            asyncio.run(capacity(way.worker, questions, clients=4, seconds=1.0))
    most = asyncio.run(capacity(shared.worker, questions, clients=64, seconds=4.0))
    found: dict[str, list[Row]] = {name: [] for name in ways}
    for turn in range(rounds):
        generator = random.Random(turn)  # noqa: S311 - arrivals, not secrets
        gaps = [generator.expovariate(SHARE * most) for _ in range(int(SHARE * most * seconds))]
        alone = np.percentile(asyncio.run(ask(shared.worker, questions, gaps)), [50, 95])
        solo = bulk_alone(shared, seconds / 2)
        for name, way in ways.items():
            with without(name):
                row = together(way, questions, gaps)
            found[name].append({**row, "alone": alone, "solo": solo})
    for way in ways.values():
        way.worker.close()
    one = footprint(device, bulk_texts, [Priority.ONLINE, Priority.BULK])
    two = footprint(device, bulk_texts, [Priority.ONLINE], [Priority.BULK])
    for name, turns in found.items():
        host, on_device = two if name == "two processes" else one
        whole = [latency for row in turns for latency in row["latencies"]]
        p95 = [float(np.percentile(row["latencies"], 95)) for row in turns]
        row = {
            "online_per_s": SHARE * most,
            "p50_ms": 1e3 * float(np.percentile(whole, 50)),
            "p95_ms": 1e3 * float(np.percentile(whole, 95)),
            "p99_ms": 1e3 * float(np.percentile(whole, 99)),
            "alone_p95_ms": 1e3 * statistics.median(float(each["alone"][1]) for each in turns),
            "times_alone_p95": statistics.median(
                p / float(each["alone"][1]) for p, each in zip(p95, turns, strict=True)
            ),
            "bulk_tokens_per_s": statistics.median(each["bulk"] for each in turns),
            "alone_bulk_tokens_per_s": statistics.median(each["solo"] for each in turns),
            "share_of_bulk_alone": statistics.median(each["bulk"] / each["solo"] for each in turns),
            "memory_mib": host,
            "device_memory_mib": on_device,
        }
        print(json.dumps(record(NAME, row, {**config, "way": name}) | {"versions": None}, indent=1))


def cost(device: str) -> None:
    """Record what a question costs in batches of several sizes, one batch at a time, with nothing beside it."""
    texts = data_sets(2_000)["banking77"]
    with LocalWorker(device=device) as worker:
        for together in (1, 2, 4, 8, 16, 64):
            slices = [texts[start : start + together] for start in range(0, min(len(texts), 64 * together), together)]
            wall = core = 0.0
            for part in (slices[:8], slices):
                begun, used = time.perf_counter(), time.process_time()
                for questions in part:
                    items = [TextItem(text) for text in questions]
                    worker.run("embed", items, model="default", priority=Priority.ONLINE)
                number = sum(map(len, part))
                wall, core = (time.perf_counter() - begun) / number, (time.process_time() - used) / number
            row = {"core_ms_per_question": 1e3 * core, "wall_ms_per_question": 1e3 * wall}
            record(f"{NAME}_cost", row, {"device": device, "questions_a_batch": together})


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        cost(arguments.device)
        measure(arguments.device, rounds=arguments.rounds, seconds=arguments.seconds)
    print(table(NAME, COLUMNS))


if __name__ == "__main__":
    main()
