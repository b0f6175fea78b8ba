"""A worker as a service that is spoken to in bytes: what runs in each replica of a Ray Serve deployment.

    Arrow items -> from_arrow -> LocalWorker.arun -> to_arrow -> Arrow results, or a described error

Knows nothing of Ray. Batches are made by the worker, so they are the same as in process. An error goes back as a value,
since what carries calls between processes would wrap it and lose its fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.errors import DatapipeError, ItemError, ModelNotFoundError, WorkerError, WorkerStoppedError
from datapipe.workers.faults import to_plain
from datapipe.workers.protocol import Priority
from datapipe.workers.tasks.lookup import find_task
from datapipe.workers.wire import from_arrow, to_arrow
from datapipe.workers.worker import LocalWorker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.workers.spec import ModelSpec

__all__ = ["Replica", "WorkerOptions"]


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How a replica's worker is made; see `LocalWorker`.

    Attributes:
        models: The models that it serves, and no others.
        device: Where it computes.
        threads: Batches side by side; None is the worker's default.
        token_budget: Tokens of a batch; None is the worker's default.
        queue_items: Online items in a replica at a time.
    """

    models: tuple[ModelSpec, ...]
    device: str
    threads: int | None
    token_budget: int | None
    queue_items: int


class Replica:
    """Owns one worker, its models loaded.

    Args:
        options: How to make the worker.

    Raises:
        DatapipeError: A model cannot be loaded, or the device is not there.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self._worker = LocalWorker(
            options.models,
            device=options.device,
            threads=options.threads,
            token_budget=options.token_budget,
            queue_items=options.queue_items,
        )
        for spec in options.models:
            self._worker.load(spec.name, task=spec.task)

    def __del__(self) -> None:
        if hasattr(self, "_worker"):
            self._worker.close()

    async def run(
        self, task: str, items: bytes, model: str, priority: int, deadline: float | None
    ) -> bytes | dict[str, Any]:
        """Results of `Worker.arun` as Arrow bytes, or what `to_plain` says of its error."""
        try:
            self._know(model)
            kind = find_task(task)
            asked: Sequence[Any] = from_arrow(items, kind.item_schema(), kind.item_type)
            results = await self._worker.arun(task, asked, model=model, priority=Priority(priority), deadline=deadline)
            return _written(results, kind.result_schema())
        except DatapipeError as error:
            return to_plain(error)

    def describe(self, model: str, task: str) -> dict[str, Any]:
        """Digest, dim and bits of a model, or what `to_plain` says of the error."""
        try:
            self._know(model)
            loaded = self._worker.load(model, task=task)
        except DatapipeError as error:
            return to_plain(error)
        return {"digest": loaded.digest, "dim": loaded.dim, "bits": dict(loaded.bits)}

    def models(self) -> list[str]:
        """Names of the models served here, in the order in which they were given."""
        return self._worker.models

    def check_health(self) -> None:
        """Raise `WorkerStoppedError` where the worker is stuck or dead, so that the replica is replaced."""
        health = self._worker.health()
        if health.state != "ok":
            raise WorkerStoppedError(f"the worker is {health.state}: {health.detail}")

    def _know(self, model: str) -> None:
        if model not in self._worker.models:
            raise ModelNotFoundError(f"model {model!r} is not served here; served are {', '.join(self._worker.models)}")


def _written(results: Sequence[Any], schema: Any) -> bytes:
    try:
        return to_arrow(results, schema)
    except ItemError as error:
        # The fault is the task's, not that of an item.
        raise WorkerError(f"the task gave results that do not fit its schema: {error}") from error
