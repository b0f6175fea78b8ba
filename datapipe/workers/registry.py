"""Loaded models: each loaded once, when first asked for; over a memory budget the least recently used is given up."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from datapipe.errors import ConfigError, ModelError
from datapipe.workers.device import arithmetic, resolve_device, resolve_dtype
from datapipe.workers.folder import resolve
from datapipe.workers.spec import spec_of
from datapipe.workers.tasks.lookup import find_task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.protocol import DerivedTask, Task
    from datapipe.workers.spec import DtypeName, ModelSpec

__all__ = ["LoadedModel", "ModelRegistry"]

_log = logging.getLogger(__name__)

MEMORY_BYTES = 8 << 30


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, bound to its task.

    Attributes:
        spec: What was asked for.
        digest: SHA-256 of the model's files; with models beside it, of the digests of all.
        device: Where it computes.
        dtype: In which precision.
        task: The three steps.
        bits: What changes the last bits of a result: device, kind, dtype, torch version, threads.
    """

    spec: ModelSpec
    digest: str
    device: torch.device
    dtype: torch.dtype
    task: Task
    bits: Mapping[str, str]

    @property
    def dim(self) -> int:
        """Length of a result's vector; 0 for a task whose results hold none."""
        return self.task.dim

    @property
    def nbytes(self) -> int:
        """Memory that the model holds."""
        return self.task.nbytes


class ModelRegistry:
    """Models by name, loaded on demand; safe to share between threads.

    Args:
        specs: Models known by name. Any other name is taken for a source (`spec_of`).
        memory_bytes: What the loaded models may hold together on a device. The one asked for last always stays.

    Raises:
        ConfigError: Two specs share a name.
    """

    def __init__(self, specs: Iterable[ModelSpec] = (), *, memory_bytes: int = MEMORY_BYTES) -> None:
        self._specs: dict[str, ModelSpec] = {}
        for spec in specs:
            if spec.name in self._specs:
                raise ConfigError(f"two models are named {spec.name!r}")
            self._specs[spec.name] = spec
        self._memory_bytes = memory_bytes
        self._loaded: OrderedDict[tuple[ModelSpec, str], dict[str, LoadedModel]] = OrderedDict()
        self._loading: dict[tuple[ModelSpec, str], threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names given to the constructor, in that order."""
        return list(self._specs)

    def spec(self, name: str, *, task: str = "embed") -> ModelSpec:
        """The spec of a name: a known one, or one whose source is the name.

        Raises:
            ConfigError: The task is unknown, or the model is known for another that this one does not derive from.
        """
        known = self._specs.get(name)
        if known is not None and known.task == task:
            return known
        base = getattr(find_task(task), "derives_from", None)
        spec = known or spec_of(name, task=base or task)
        if spec.task not in {task, base}:
            raise ConfigError(f"model {name} is for the task {spec.task!r}, not for {task!r}")
        return spec

    def load(self, spec: ModelSpec, device: str = "auto", *, task: str | None = None) -> LoadedModel:
        """Return the model on that device, loading it if it is not there.

        Args:
            spec: Which model.
            device: Where it is to compute.
            task: A task that derives from the spec's own and shares its tensors; None is the spec's own.

        Raises:
            ConfigError: The device or the task is unknown.
            ModelNotFoundError: There is no such model, or no safetensors in its folder.
            UnsafeModelError: Its weights are pickles only.
            DigestError: Its files do not have the spec's digest.
            ModelError: It is damaged, of an unknown architecture, or tensors are missing or left over.
        """
        where = resolve_device(device)
        key = (spec, str(where))
        with self._lock:
            lock = self._loading.setdefault(key, threading.Lock())
        with lock:
            if self._found(key, spec.task) is None:
                loaded = _load(spec, where)
                with self._lock:
                    self._loaded[key] = {spec.task: loaded}
                    self._give_up(str(where))
            found = self._found(key, task or spec.task)
        if found is None:
            raise ModelError(f"model {spec.name} was given up while it was loaded: the memory budget is too small")
        return found

    def replicas(self, name: str, task: str, devices: Sequence[torch.device]) -> tuple[LoadedModel, ...]:
        """The model of that name on each device, bound to the task; loads what is not there. Raises as `load`."""
        spec = self.spec(name, task=task)
        return tuple(self.load(spec, str(device), task=task) for device in devices)

    def find(self, name: str, task: str, devices: Sequence[torch.device]) -> tuple[LoadedModel, ...]:
        """The same where nothing has to be loaded, else nothing; never blocks. Raises `ConfigError`."""
        spec = self.spec(name, task=task)
        found = [self._found((spec, str(device)), task) for device in devices]
        return tuple(model for model in found if model is not None) if None not in found else ()

    def _found(self, key: tuple[ModelSpec, str], task: str) -> LoadedModel | None:
        with self._lock:
            by_task = self._loaded.get(key)
            if by_task is None:
                return None
            self._loaded.move_to_end(key)
            if task not in by_task:
                base = by_task[key[0].task]
                derived = cast("type[DerivedTask]", find_task(task)).over(base.task)
                by_task[task] = replace(base, task=derived)
            return by_task[task]

    def _give_up(self, device: str) -> None:
        """Give up the models on that device that were asked for longest ago, until the rest fit."""
        there = [key for key in self._loaded if key[1] == device]
        held = {key: self._loaded[key][key[0].task].nbytes for key in there}
        for key in there[:-1]:
            if sum(held.values()) <= self._memory_bytes:
                return
            del self._loaded[key], held[key]
            _log.info("model %s on %s given up: the memory budget is %d", key[0].name, device, self._memory_bytes)


def _load(spec: ModelSpec, device: torch.device) -> LoadedModel:
    task_type = find_task(spec.task)
    folder = resolve(spec)
    folder.check(spec.digest)
    dtype = resolve_dtype(_precision(task_type, spec, folder, device), device)
    task = task_type.open(folder, spec=spec, device=device, dtype=dtype)
    if device.type == "cuda":
        _settle(device)
    _log.info("model %s: %s loaded on %s as %s, %d bytes", spec.name, folder.root, device, dtype, task.nbytes)
    return LoadedModel(spec, _digest(spec, folder), device, dtype, task, arithmetic(device, dtype))


def _digest(spec: ModelSpec, folder: ModelFolder) -> str:
    others = [resolve(spec_of(source)).digest for source in spec.beside]
    return hashlib.sha256("".join([folder.digest, *others]).encode()).hexdigest() if others else folder.digest


def _precision(task: type[Task], spec: ModelSpec, folder: ModelFolder, device: torch.device) -> DtypeName:
    """The precision of a spec; where it says `auto` and the task has an opinion, that of the task."""
    own = getattr(task, "precision", None)
    return spec.dtype if own is None or spec.dtype != "auto" else cast("DtypeName", own(folder, device=device))


def _settle(device: torch.device) -> None:
    """Wait until the tensors are there: they are read from other streams than the one that copied them."""
    import torch

    torch.cuda.synchronize(device)
