"""The device: which one, in which precision, and the threads that keep it busy.

Precision and threads follow what the hardware states, never a timing, so that the same machine gives the same bits.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from datapipe.errors import ConfigError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from datapipe.workers.protocol import Priority
    from datapipe.workers.spec import DtypeName

__all__ = ["Lanes", "arithmetic", "physical_cores", "resolve_device", "resolve_dtype"]

T = TypeVar("T")

_BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})
_CUDA_LANES = 2
"""One batch computes while the host builds the next; both share the device's stream, so they never run at once."""

_setting_threads = threading.Lock()


def resolve_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: The name is unknown, or this machine has no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N. Got {name!r}") from error
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N. Got {name!r}")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device {name} was asked for, but this machine has {count} CUDA devices; use cpu or auto")
    return device


def resolve_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """The precision of that name; `auto` is bfloat16 where the device has instructions for it, else float32."""
    import torch

    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    native = device.type == "cuda" or bool(_BFLOAT16_FLAGS & cpu_flags())
    return torch.bfloat16 if native else torch.float32


def arithmetic(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What changes the last bits of a result: device, its kind or instructions, precision, torch, threads a batch."""
    import torch

    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "device": device.type,
        "kind": kind,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": "1",
    }


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction set extensions that the kernel reports; empty where it reports none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


@cache
def physical_cores() -> int:
    """Cores that this process may use; threads of one core count once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text(encoding="utf-8").strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


@dataclass(order=True)
class _Job:
    priority: int
    place: int
    work: Callable[[], Any] | None = field(compare=False)
    future: Future[Any] = field(compare=False, default_factory=Future)


class Lanes:
    """Threads that run sealed batches, each whole on one thread; the most urgent first, then in order of arrival.

    On the CPU each lane computes with one thread of its own: as many batches as cores run side by side, no core waits
    for another inside a product, and a batch has the same bits whatever the number of lanes. The thread settings of the
    caller stay as they are.

    Args:
        count: Lanes; None takes the physical cores of the CPU, and 2 for CUDA.
        device: What the batches run on.
    """

    def __init__(self, count: int | None, *, device: torch.device) -> None:
        on_cpu = device.type == "cpu"
        self.count = count or (physical_cores() if on_cpu else _CUDA_LANES)
        self._jobs: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._places = itertools.count()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, name=f"datapipe-lane-{lane}", daemon=True)
            for lane in range(self.count)
        ]
        self._start(single=on_cpu)

    def submit(self, work: Callable[[], T], *, priority: Priority) -> Future[T]:
        """Queue one batch; its future holds what `work` returns or raises. Raises `WorkerError` once closed."""
        if self._closed.is_set():
            raise WorkerError("the worker is closed")
        job = _Job(int(priority), next(self._places), work)
        self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Let the running batches finish, cancel the waiting ones, end the threads."""
        if self._closed.is_set():
            return
        self._closed.set()
        for _ in self._threads:
            self._jobs.put(_Job(-1, next(self._places), None))
        for thread in self._threads:
            thread.join()
        while not self._jobs.empty():
            self._jobs.get_nowait().future.cancel()

    def _start(self, *, single: bool) -> None:
        import torch

        if not single:
            for thread in self._threads:
                thread.start()
            return
        # torch keeps one setting a thread and one for threads to come: each lane sets its own to one, and the latter,
        # which that changes too, is put back.
        self._limited = threading.Barrier(len(self._threads) + 1)
        with _setting_threads:
            before = torch.get_num_threads()
            for thread in self._threads:
                thread.start()
            self._limited.wait()
            torch.set_num_threads(before)
            self._limited.wait()

    def _serve(self) -> None:
        import torch

        if hasattr(self, "_limited"):
            torch.get_num_threads()  # the first call in a thread takes the common setting, later ones do not
            torch.set_num_threads(1)
            self._limited.wait()
            self._limited.wait()
        while True:
            job = self._jobs.get()
            if job.work is None:
                return
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                job.future.set_result(job.work())
            except BaseException as error:  # noqa: BLE001 - whatever went wrong belongs to the one who waits for it
                job.future.set_exception(error)
            del job
