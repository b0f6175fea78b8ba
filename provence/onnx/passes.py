"""The passes of a call: what is prepared, which batches are computed, and how their numbers become results.

    items -> chunks -> prepare (a thread) -> windows, by length -> batches -> threads (onnxruntime) -> results, in order

The steps are a generator that yields what must be waited for, so that a blocking call and an asynchronous one are
driven alike. Raises `ItemError`, `DeadlineError`, `WorkerError` and `WorkerStoppedError`.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from datapipe.errors import DatapipeError, DeadlineError, WorkerError, WorkerStoppedError
from datapipe.workers.pack import pack
from provence.onnx.engine import window_sums
from provence.prepare import RawScores, rerank_score, unit_scores
from provence.task import marked, prune_items

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    from datapipe.workers.protocol import Item, Priority, Result
    from provence.onnx.engine import OnnxModel, WindowSums
    from provence.onnx.threads import Threads
    from provence.prepare import PreparedText, Preparer
    from provence.windows import Window

__all__ = ["TASKS", "Call", "Passes"]

TASKS: Final = ("prune", "prune_rerank")

BATCH_TOKENS: Final = 512
"""Tokens of a batch: enough that starting the graph costs little, few enough that its states stay in the cache."""

CHUNK_ITEMS: Final = 512
"""Items prepared at a time."""

_AHEAD: Final = 2
"""Chunks prepared or computed at a time."""

_SLICE: Final = 32
"""Items prepared between two looks at whether the call still goes on."""


@dataclass
class Call:
    """A call of `run` while it goes on.

    Attributes:
        priority: Whose batches go first.
        items: How many it has.
        until: Deadline by the monotonic clock; None for none.
        futures: What was begun for it and not yet collected: items to prepare, batches to compute.
        dropped: Whether nobody waits for it any more.
    """

    priority: Priority
    items: int
    until: float | None
    futures: set[Future[Any]] = field(default_factory=set)
    dropped: bool = False

    def left(self) -> float | None:
        """Seconds until the deadline."""
        return None if self.until is None else self.until - time.monotonic()

    def refuse_late(self) -> None:
        """Raise `DeadlineError` once the deadline is over, and `WorkerError` once the call was dropped."""
        if self.dropped:
            raise WorkerError("the call was given up before it was done")
        left = self.left()
        if left is not None and left <= 0:
            raise DeadlineError("the deadline passed before the call was done")

    def drop(self) -> None:
        """Take off the queue what has not begun, and end what prepares at its next slice."""
        self.dropped = True
        for future in self.futures:
            future.cancel()


@dataclass
class _Chunk:
    """Items that were prepared together, and the batches of their windows."""

    prepared: list[PreparedText]
    batches: list[tuple[list[int], Future[list[WindowSums]]]]


class Passes:
    """What the calls of a worker share.

    Args:
        model: The model.
        name: Its name, for messages.
        preparer: Readies items for it.
        pool: Threads that prepare.
        threads: Those that compute.
    """

    def __init__(
        self, model: OnnxModel, *, name: str, preparer: Preparer, pool: ThreadPoolExecutor, threads: Threads
    ) -> None:
        self._model, self._name, self._preparer = model, name, preparer
        self._pool, self._threads = pool, threads

    def steps(self, call: Call, task: str, items: Sequence[Item]) -> Generator[Future[Any], Any, list[Result]]:
        """The passes of a call: yields what must be waited for, is sent what came of it, returns the results."""
        results: list[Result] = []
        flying: deque[_Chunk] = deque()
        for first in range(0, len(items), CHUNK_ITEMS):
            part = items[first : first + CHUNK_ITEMS]
            readied = self._prepare(call, task, part, first)
            prepared = yield readied
            call.futures.discard(readied)
            flying.append(self._submit(call, prepared))
            if len(flying) == _AHEAD:
                results += yield from self._finish(call, task, flying.popleft())
        while flying:
            results += yield from self._finish(call, task, flying.popleft())
        return results

    def _prepare(self, call: Call, task: str, items: Sequence[Item], first: int) -> Future[list[PreparedText]]:
        call.refuse_late()
        ready = self._pairs if task == "prune_rerank" else self._ready
        try:
            future = self._pool.submit(ready, call, items, first)
        except RuntimeError as error:
            raise WorkerStoppedError("the worker was closed before the call was done") from error
        call.futures.add(future)
        return future

    def _ready(self, call: Call, items: Sequence[Item], first: int) -> list[PreparedText]:
        found: list[PreparedText] = []
        for begin in range(0, len(items), _SLICE):
            call.refuse_late()
            found += self._preparer.prepare_many(items[begin : begin + _SLICE], first=first + begin)
        return found

    def _pairs(self, call: Call, pairs: Sequence[Item], first: int) -> list[PreparedText]:
        return marked(self._ready(call, prune_items(pairs, first=first), first), pairs)

    def _submit(self, call: Call, prepared: list[PreparedText]) -> _Chunk:
        windows = [(window, text.share_at) for text in prepared for window in text.windows]
        lengths = [len(window.ids) for window, _ in windows]
        batches = []
        for places in pack(lengths, token_budget=BATCH_TOKENS, max_items=len(windows) or 1, padded=True):
            job = partial(self._compute, call, [windows[place] for place in places])
            future = self._threads.submit(call.priority, job)
            call.futures.add(future)
            batches.append((list(places), future))
        return _Chunk(prepared, batches)

    def _compute(self, call: Call, windows: Sequence[tuple[Window, float]]) -> list[WindowSums]:
        call.refuse_late()
        try:
            return window_sums(self._model, [window for window, _ in windows], [limit for _, limit in windows])
        except FloatingPointError as error:
            raise WorkerError(f"model {self._name}: {error}") from error
        except DatapipeError:
            raise
        except Exception as error:  # what onnxruntime raises has no common base
            raise WorkerError(f"model {self._name}: onnxruntime failed on a batch ({error})") from error

    def _finish(self, call: Call, task: str, chunk: _Chunk) -> Generator[Future[Any], Any, list[Result]]:
        found: dict[int, WindowSums] = {}
        for places, future in chunk.batches:
            found.update(zip(places, (yield future), strict=True))
            call.futures.discard(future)
        results: list[Result] = []
        window = 0
        for text in chunk.prepared:
            raw = self._raw(text, [found[window + place] for place in range(len(text.windows))])
            window += len(text.windows)
            if task == "prune_rerank":
                results.append(rerank_score(raw, text, self._model.conduct))
            else:
                results.append(unit_scores(raw, text, self._model.conduct))
        return results

    def _raw(self, text: PreparedText, parts: Sequence[WindowSums]) -> RawScores:
        """Sums of windows to means of units; a unit that several windows share has a sum in each."""
        tokens = np.maximum(text.text.lengths, 1)
        sums, above, best = np.zeros(len(tokens)), np.zeros(len(tokens)), -np.inf
        for window, part in zip(text.windows, parts, strict=True):
            units = slice(window.first, window.first + len(window.lengths))
            sums[units] += part.sums
            above[units] += part.above
            best = max(best, part.score)
        shares = (above / tokens).astype(np.float32) if self._model.conduct.rule == "share" else None
        return RawScores(np.clip(sums / tokens, 0, 1).astype(np.float32), shares, best)
