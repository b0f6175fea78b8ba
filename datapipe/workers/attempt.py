"""Run one batch and bring every ticket in it to an end, whatever the device does.

Out of memory: the batch is halved and tried again, down to one item, which then fails alone. Any other fault of a batch
that several calls share: the calls are separated, so that it reaches only the one that caused it. A fault that the
device cannot recover from is raised as `DeviceLostError`, which ends the lane.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
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
    _attempt(batch, device, observer)


@dataclass(frozen=True)
class _Fault:
    """Why a batch failed: what its callers see, and whether a smaller batch may fit."""

    seen: Exception
    memory: bool


def _attempt(batch: Batch, device: int, observer: Observer) -> None:
    fault = _try(batch, device)
    if fault is None:
        return
    # Only here, where the failed attempt's frames and what they held are gone, is there memory for another.
    if fault.memory:
        _free_memory()
    for part in _parts(batch, halve=fault.memory):
        rest = [position for position in part if not batch.entries[position][0].done]
        if len(rest) == len(batch.entries):
            observer.failed("out_of_memory" if fault.memory else "device", len(rest))
            batch.entries[0][0].fail(fault.seen)
        elif rest:
            _attempt(batch.part(rest), device, observer)


def _try(batch: Batch, device: int) -> _Fault | None:
    replica = batch.call.replicas[device]
    begun = time.monotonic()
    try:
        raws = _forward(batch, replica.task)
    except DatapipeError as error:
        return _Fault(error, memory=False)
    except Exception as error:
        if _lost(error):
            raise DeviceLostError(f"{replica.device} is lost: {type(error).__name__}: {error}") from error
        memory = _out_of_memory(error)
        seen = WorkerError(
            f"model {batch.call.model} on {replica.device} failed on a batch of {len(batch.entries)} items, "
            f"{batch.tokens} tokens: {type(error).__name__}: {error}"
        )
        if not memory:
            seen.__cause__ = error
        return _Fault(seen, memory)
    ended = time.monotonic()
    for ticket, positions in batch.tickets():
        ticket.call.computed(begun, ended)
        ticket.deliver([batch.entries[position][1] for position in positions], [raws[p] for p in positions])
    return None


def _forward(batch: Batch, task: Any) -> Sequence[Any]:
    raws: Sequence[Any] = task.forward([ticket.prepared[place] for ticket, place in batch.entries])
    if len(raws) != len(batch.entries):
        raise WorkerError(f"model {batch.call.model} gave {len(raws)} results for {len(batch.entries)} items")
    return raws


def _parts(batch: Batch, *, halve: bool) -> list[list[int]]:
    """Halves of a batch that was too large; else its calls, separated in two; else all that is left of it."""
    everything = list(range(len(batch.entries)))
    tickets = list(batch.tickets())
    if halve and len(everything) > 1:
        middle = len(everything) // 2
        return [everything[:middle], everything[middle:]]
    if len(tickets) > 1:
        middle = len(tickets) // 2
        return [sorted(p for _, places in half for p in places) for half in (tickets[:middle], tickets[middle:])]
    return [everything]


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

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
