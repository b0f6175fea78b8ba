"""What all routes of one server share: the worker, what it offers, the limits; and the one door to the worker.

    handler -> Call.run -> tokens counted -> worker.arun (deadline, priority) -> results

Raises `TooLargeError` for too many tokens, and everything that `Worker.run` raises.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from datapipe.errors import ModelError
from datapipe.workers.folder import resolve
from datapipe.workers.http.errors import TooLargeError
from datapipe.workers.http.models import probe_item
from datapipe.workers.protocol import Priority, Worker
from datapipe.workers.registry import LoadedModel
from datapipe.workers.tasks.lookup import find_task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.settings import ServeSettings
    from datapipe.workers.http.metrics import Metrics
    from datapipe.workers.http.models import Offer
    from datapipe.workers.protocol import Item, Result
    from datapipe.workers.spec import ModelSpec

__all__ = ["Call", "Loaded", "ServableWorker", "Service", "matryoshka_dimensions"]


class Loaded(Protocol):
    """What a worker states of a model."""

    @property
    def digest(self) -> str:
        """SHA-256 of its files."""

    @property
    def dim(self) -> int:
        """Length of a result's vector; 0 where there is none."""

    @property
    def bits(self) -> Mapping[str, str]:
        """What changes the last bits of a result."""


class ServableWorker(Worker, Protocol):
    """A worker that also says what it has loaded."""

    def load(self, model: str, *, task: str = "embed") -> Loaded:
        """Load a model ahead of its first call. Raises `ModelError` and `ConfigError`."""


@dataclass(frozen=True, eq=False)
class Service:
    """One server.

    Attributes:
        worker: Where models run; the server does not close it.
        offer: The models that requests may name.
        settings: Limits and times.
        metrics: Where everything is counted.
    """

    worker: ServableWorker
    offer: Offer
    settings: ServeSettings
    metrics: Metrics

    def warm(self) -> None:
        """Load every model and run one item through each that takes text. Raises what the worker raises."""
        for spec in self.offer.specs.values():
            self.worker.load(spec.name, task=spec.task)
            item = probe_item(find_task(spec.task))
            if item is not None:
                self.worker.run(spec.task, [item], model=spec.name, priority=Priority.ONLINE)


@dataclass(frozen=True, eq=False)
class Call:
    """One request while it is handled; see `RouteContext`.

    Attributes:
        service: The server.
        request_id: Names the request in the log.
        expires: Time of the monotonic clock after which nobody waits; None waits for ever.
        priority: Whose batches go first.
    """

    service: Service
    request_id: str
    expires: float | None
    priority: Priority = Priority.ONLINE

    def model_for(self, task: str, name: str | None = None) -> str:
        """Name of a served model for a task; see `RouteContext.model_for`."""
        return self.service.offer.find(task, name).name

    async def run(
        self, task: str, items: Sequence[Item], *, model: str, priority: Priority | None = None
    ) -> list[Result]:
        """Results of the worker; see `RouteContext.run`."""
        await self._count_tokens(task, items, model)
        priority = self.priority if priority is None else priority
        return await self.service.worker.arun(task, items, model=model, priority=priority, deadline=self.remaining())

    def remaining(self) -> float | None:
        """Seconds that may still be waited."""
        return None if self.expires is None else max(0.0, self.expires - time.monotonic())

    async def _count_tokens(self, task: str, items: Sequence[Item], model: str) -> None:
        """Count what the model would see of an online request, unless its bytes show that it is short enough."""
        most = self.service.settings.max_tokens
        if self.priority is not Priority.ONLINE or _text_bytes(items) <= most:
            return
        loaded = await asyncio.to_thread(self.service.worker.load, model, task=task)
        if not isinstance(loaded, LoadedModel):  # the process that has the tokenizer counts
            return
        prepared = await asyncio.to_thread(loaded.task.prepare_many, items)
        tokens = sum(item.length for item in prepared)
        if tokens > most:
            raise TooLargeError(
                f"the request has {tokens:,} tokens for model {model}; at most {most:,} are taken in one request"
            )


def _text_bytes(items: Sequence[Item]) -> int:
    """About as many tokens as the texts of items can have: one a byte, and some special ones."""
    if not items:
        return 0
    names = [field.name for field in fields(items[0])]
    texts = (text for item in items for name in names if isinstance(text := getattr(item, name), str))
    return 4 * len(items) + sum(len(text.encode(errors="surrogatepass")) for text in texts)


@lru_cache(maxsize=64)
def matryoshka_dimensions(spec: ModelSpec) -> frozenset[int]:
    """Lengths that a model's vectors may be cut to, as its config.json states under `matryoshka_dimensions`.

    Raises:
        ModelError: The statement is no list of numbers.
    """
    stated: list[Any] = []
    folder = resolve(spec)
    for name in ("config.json", "config_sentence_transformers.json"):
        config = folder.json(name)
        if isinstance(config, dict):
            stated += config.get("matryoshka_dimensions") or []
    if not all(isinstance(dim, int) and dim > 0 for dim in stated):
        raise ModelError(f"model {spec.name}: matryoshka_dimensions must be a list of numbers. Got {stated}")
    return frozenset(stated)
