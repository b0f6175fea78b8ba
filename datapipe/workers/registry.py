"""Loaded models: each loaded once, when first asked for; over a memory budget the least recently used is given up."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from datapipe.errors import ConfigError
from datapipe.workers.device import arithmetic, resolve_device, resolve_dtype
from datapipe.workers.folder import resolve
from datapipe.workers.spec import spec_of
from datapipe.workers.tasks.lookup import find_task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from datapipe.workers.protocol import DerivedTask, Task
    from datapipe.workers.spec import ModelSpec

__all__ = ["LoadedModel", "ModelRegistry"]

_log = logging.getLogger(__name__)

MEMORY_BYTES = 8 << 30


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, bound to its task.

    Attributes:
        spec: What was asked for.
        digest: SHA-256 of the model's files.
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
        memory_bytes: What the loaded models may hold together. The one asked for last always stays.

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
        self._loaded: OrderedDict[tuple[ModelSpec, str], LoadedModel] = OrderedDict()
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
        base = getattr(find_task(task), "derives_from", None)
        spec = self._specs.get(name) or spec_of(name, task=base or task)
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
        if task is not None and task != spec.task:
            base = self.load(spec, device)
            return replace(base, task=cast("type[DerivedTask]", find_task(task)).over(base.task))
        where = resolve_device(device)
        key = (spec, str(where))
        with self._lock:
            lock = self._loading.setdefault(key, threading.Lock())
        with lock:
            with self._lock:
                found = self._loaded.get(key)
                if found is not None:
                    self._loaded.move_to_end(key)
                    return found
            loaded = _load(spec, where)
            with self._lock:
                self._loaded[key] = loaded
                self._give_up()
            return loaded

    def _give_up(self) -> None:
        while len(self._loaded) > 1 and sum(model.nbytes for model in self._loaded.values()) > self._memory_bytes:
            (spec, device), _ = self._loaded.popitem(last=False)
            _log.info("model %s on %s given up: the memory budget is %d bytes", spec.name, device, self._memory_bytes)


def _load(spec: ModelSpec, device: torch.device) -> LoadedModel:
    task_type = find_task(spec.task)
    folder = resolve(spec)
    folder.check(spec.digest)
    dtype = resolve_dtype(spec.dtype, device)
    task = task_type.open(folder, spec=spec, device=device, dtype=dtype)
    _log.info("model %s: %s loaded on %s as %s, %d bytes", spec.name, folder.root, device, dtype, task.nbytes)
    return LoadedModel(spec, folder.digest, device, dtype, task, arithmetic(device, dtype))
