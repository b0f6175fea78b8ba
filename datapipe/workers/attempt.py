"""Run one batch and bring every ticket in it to an end, whatever the device does.

Out of memory: the batch is halved and tried again, down to one item, which then fails alone. Any other fault of a batch
that several calls share: the calls are separated, so that it reaches only the one that caused it. A fault that the
device cannot recover from is raised as `DeviceLostError`, which ends the lane.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any

from datapipe.errors import DatapipeError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datapipe.workers.batcher import Batch
    from datapipe.workers.observe import Observer

__all__ = ["DeviceLostError", "fail_batch", "run_batch"]


class DeviceLostError(WorkerError):
    """The device cannot compute any more in this process."""


def run_batch(batch: Batch, *, device: int, observer: Observer) -> None:
    """Compute a batch; every ticket gets its values or a fault.

    Args:
        batch: What to compute.
        device: Which replica of the model computes it.
        observer: Told of the batch and of what failed.

    Raises:
        DeviceLostError: Nothing will work on this device any more. The tickets are left to whoever catches it.
    """
    call = batch.call
    observer.batch(
        task=call.task,
        model=call.model,
        priority=batch.priority,
        items=len(batch.entries),
        tokens=batch.tokens,
        cost=batch.cost,
    )
    begun = time.monotonic()
    _attempt(batch, device, observer)
    ended = time.monotonic()
    for ticket, _ in batch.tickets():
        ticket.call.computed(begun, ended)


def _attempt(batch: Batch, device: int, observer: Observer) -> None:
    replica = batch.call.replicas[device]
    try:
        raws = _forward(batch, replica.task)
    except DatapipeError as error:
        _contain(batch, device, observer, error, error)
    except Exception as error:
        if _lost(error):
            raise DeviceLostError(f"{replica.device} is lost: {type(error).__name__}: {error}") from error
        what = f"model {batch.call.model} on {replica.device} failed on a batch of {_size(batch)}"
        wrapped = WorkerError(f"{what}: {type(error).__name__}: {error}")
        wrapped.__cause__ = error
        _contain(batch, device, observer, error, wrapped)
    else:
        for ticket, positions in batch.tickets():
            ticket.deliver([batch.entries[position][1] for position in positions], [raws[p] for p in positions])


def _forward(batch: Batch, task: Any) -> Sequence[Any]:
    raws: Sequence[Any] = task.forward([ticket.prepared[place] for ticket, place in batch.entries])
    if len(raws) != len(batch.entries):
        raise WorkerError(f"model {batch.call.model} gave {len(raws)} results for {len(batch.entries)} items")
    return raws


def _contain(batch: Batch, device: int, observer: Observer, error: Exception, seen: Exception) -> None:
    """Halve a batch that was too large; else separate the calls in it; else fail the one that is left."""
    memory = _out_of_memory(error)
    if memory:
        _free_memory()
    tickets = list(batch.tickets())
    everything = range(len(batch.entries))
    if memory and len(batch.entries) > 1:
        middle = len(batch.entries) // 2
        parts: list[Any] = [everything[:middle], everything[middle:]]
    elif len(tickets) > 1:
        middle = len(tickets) // 2
        parts = [sorted(p for _, places in half for p in places) for half in (tickets[:middle], tickets[middle:])]
    else:
        observer.failed("out_of_memory" if memory else "device", len(batch.entries))
        tickets[0][0].fail(seen)
        return
    for part in parts:
        rest = [position for position in part if not batch.entries[position][0].done]
        if rest:
            _attempt(batch.part(rest), device, observer)


def _size(batch: Batch) -> str:
    return f"{len(batch.entries)} items, {batch.tokens} tokens"


def fail_batch(batch: Batch, fault: Callable[[], Exception]) -> None:
    """Fail every ticket of a batch that is not resolved; each caller gets an exception of its own."""
    for ticket, _ in batch.tickets():
        ticket.fail(fault())


def _out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)  # how the CPU allocator of torch says it


def _lost(error: Exception) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return False
    accelerator = getattr(torch, "AcceleratorError", None)
    return (accelerator is not None and isinstance(error, accelerator)) or str(error).startswith("CUDA error")


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
