"""The device: which one, and in which precision.

Precision and threads follow what the hardware states, never a timing, so that the same machine gives the same bits.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from datapipe.workers.spec import DtypeName

__all__ = ["arithmetic", "physical_cores", "resolve_device", "resolve_devices", "resolve_dtype"]

_BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})


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


def resolve_devices(name: str = "auto") -> list[torch.device]:
    """The devices of a worker: `auto` and `cuda` are every CUDA device, `auto` the CPU where there is none.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:N`, or several of the last with commas between: `cuda:0,cuda:2`.

    Raises:
        ConfigError: A name is unknown or given twice, this machine has no such device, or the devices are of different
            kinds, whose results would differ in their last bits.
    """
    import torch

    names = [part.strip() for part in name.split(",")]
    if names in (["auto"], ["cuda"]):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = [f"cuda:{index}" for index in range(count)] or names
    devices = [resolve_device(each) for each in names]
    if len(devices) > 1 and any(device.type != "cuda" or device.index is None for device in devices):
        raise ConfigError(f"several devices must each be named cuda:N. Got {name!r}")
    if len(set(devices)) < len(devices):
        raise ConfigError(f"a device is named twice in {name!r}")
    kinds = sorted({torch.cuda.get_device_name(device) for device in devices}) if len(devices) > 1 else []
    if len(kinds) > 1:
        raise ConfigError(
            f"the devices of one worker must be of one kind; start one worker for each of {', '.join(kinds)}"
        )
    return devices


def resolve_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """The precision of that name; `auto` is bfloat16 where the device has instructions for it, else float32."""
    import torch

    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    native = device.type == "cuda" or bool(_BFLOAT16_FLAGS & cpu_flags())
    return torch.bfloat16 if native else torch.float32


def arithmetic(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What changes the last bits of a result: device, its kind or instructions, kernels, precision, torch, threads."""
    import torch

    bits = {
        "device": device.type,
        "kind": torch.backends.cpu.get_cpu_capability(),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": "1",
    }
    if device.type == "cuda":
        from datapipe.workers.encoders.steps import steps_for

        bits |= {"kind": torch.cuda.get_device_name(device), "kernels": steps_for(device, dtype).name}
    return bits


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
