"""What a worker promises, and what a task must offer to run on one.

    items -> prepare (CPU threads) -> pack (sealed batches) -> forward (device) -> finish -> results, in item order

A worker runs tasks by name and knows nothing of what they compute; a task knows nothing of queues, batches or retries.
Whoever calls sees `ItemError` for an unusable item, `ModelError` for a model that cannot be loaded, `OverloadedError`
for a full queue, `DeadlineError` for a passed deadline, `WorkerStoppedError` for a worker that is closed, stuck or
dead, and `WorkerError` for everything that goes wrong on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    import torch

    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.spec import ModelSpec

__all__ = ["DerivedTask", "Health", "Item", "Prepared", "Priority", "Result", "Task", "Worker"]

Item: TypeAlias = Any
"""What a task takes: a frozen dataclass whose fields are the columns of the task's `item_schema`."""

Result: TypeAlias = Any
"""What a task gives: a frozen dataclass whose fields are the columns of the task's `result_schema`."""


class Priority(IntEnum):
    """Whose batch runs next when the device is free; the smaller value goes first."""

    ONLINE = 0
    BULK = 1


@dataclass(frozen=True)
class Health:
    """Whether a worker can answer.

    Attributes:
        state: `ok`; `stuck` while a batch runs far too long, until it ends; `dead` and `closed` for ever.
        detail: What happened and what to do, in a sentence; empty where all is well.
        queued: Items that wait for the device.
        idle_seconds: Seconds since a batch last began or ended; 0 while nothing waits or runs.
    """

    state: Literal["ok", "stuck", "dead", "closed"]
    detail: str = ""
    queued: int = 0
    idle_seconds: float = 0.0


class Prepared(Protocol):
    """An item ready for the device."""

    @property
    def length(self) -> int:
        """What the item costs in a batch, in tokens; at least 1."""


class Task(Protocol):
    """A computation on one loaded model, in three steps.

    Attributes:
        name: What callers ask for.
        item_type: Class of the items; its fields are the columns of `item_schema()`.
        result_type: Class of the results; its fields are the columns of `result_schema()`.
        padded: Whether a batch costs its longest item times its count (true) or the sum of its lengths (false).
        dim: Length of a result's vector; 0 for a task whose results hold none.
        nbytes: Memory that the model's tensors hold on their device.

    A task whose prepared items are large may state `window_items`: how many are prepared and packed together, a divisor
    of 8,192, which is the rule. One whose models need another precision than the hardware does best may have a class
    method `precision(folder, *, device)`: the `DtypeName` that a spec's `auto` then means, in every kind of worker.
    """

    name: ClassVar[str]
    item_type: ClassVar[type]
    result_type: ClassVar[type]
    padded: bool
    dim: int
    nbytes: int

    @classmethod
    def item_schema(cls) -> pa.Schema:
        """Arrow schema of the items, so that a transport can carry them without knowing the task."""

    @classmethod
    def result_schema(cls) -> pa.Schema:
        """Arrow schema of the results."""

    @classmethod
    def open(cls, folder: ModelFolder, *, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Self:
        """Load the model in `folder` and bind the task to it. Raises `ModelError`."""

    def prepare(self, item: Item) -> Any:
        """Ready one item on the CPU; the same as `prepare_many([item])[0]`."""

    def prepare_many(self, items: Sequence[Item], *, first: int = 0) -> list[Any]:
        """Ready many items at once, each a `Prepared`; called from several threads.

        Raises:
            ItemError: An item is unusable; its index is counted from `first`, the place of `items[0]` in the request.
        """

    def forward(self, batch: Sequence[Any]) -> Sequence[Any]:
        """Compute one sealed batch on the device, one transfer each way; one raw value an item, in their order.

        Raises:
            FloatingPointError: The model's output is not finite.
        """

    def finish(self, raw: Any, prepared: Any) -> Result:
        """Make the result of one item from its raw value."""


class DerivedTask(Task, Protocol):
    """A task that computes on the model of another, sharing its tensors.

    Attributes:
        derives_from: Name of the task that opens the model.
    """

    derives_from: ClassVar[str]

    @classmethod
    def over(cls, base: Task) -> Self:
        """Bind the task to a model that is loaded already."""


class Worker(Protocol):
    """Runs tasks on models; the same contract in process, over HTTP and on a cluster."""

    def run(
        self,
        task: str,
        items: Sequence[Item],
        *,
        model: str,
        priority: Priority = Priority.BULK,
        deadline: float | None = None,
    ) -> list[Result]:
        """Return one result an item, in the order of the items.

        Args:
            task: Name of the task.
            items: Items of that task; an empty sequence gives an empty list.
            model: Name of a model that this worker knows.
            priority: Batches of `ONLINE` calls run before those of `BULK` calls.
            deadline: Seconds from now after which no further batch begins; None waits for ever.

        Raises:
            ItemError: An item is unusable; holds its index.
            ModelError: The model is unknown, or cannot be loaded.
            OverloadedError: The queue is full; says when to come again.
            DeadlineError: The deadline passed first.
            WorkerStoppedError: The worker is closed, stuck or dead.
            WorkerError: A batch failed.
        """

    async def arun(
        self,
        task: str,
        items: Sequence[Item],
        *,
        model: str,
        priority: Priority = Priority.BULK,
        deadline: float | None = None,
    ) -> list[Result]:
        """The same as `run`, without blocking the event loop; cancelling it drops the batches that have not begun."""

    def health(self) -> Health:
        """Whether the worker can answer, without asking it for work."""

    def close(self) -> None:
        """Finish the batches that run and refuse everything after; may be called again."""
