"""Tasks by name: those here, the registered, and those of other installed packages (entry points `datapipe.tasks`)."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from datapipe.workers.protocol import Task

__all__ = ["ENTRY_POINT_GROUP", "find_task", "register"]

ENTRY_POINT_GROUP = "datapipe.tasks"

_HERE = {
    "causal": ("datapipe.workers.tasks.causal", "CausalTask"),
    "classify": ("datapipe.workers.tasks.classify", "ClassifyTask"),
    "classify_image": ("datapipe.workers.tasks.image", "ClassifyImageTask"),
    "embed": ("datapipe.workers.tasks.embed", "EmbedTask"),
    "embed_image": ("datapipe.workers.tasks.image", "EmbedImageTask"),
    "generate": ("datapipe.workers.tasks.generate", "GenerateTask"),
    "rerank": ("datapipe.workers.tasks.rerank", "RerankTask"),
    "teach": ("datapipe.workers.tasks.teach", "TeachTask"),
}
_registered: dict[str, type[Task]] = {}


def register(task: type[Task]) -> type[Task]:
    """Make a task known by its `name`; usable as a decorator. Registering the same class again changes nothing.

    Raises:
        ConfigError: The name belongs to another task.
    """
    known = _registered.get(task.name)
    if task.name in _HERE or (known is not None and known is not task):
        raise ConfigError(f"a task named {task.name!r} exists already")
    _registered[task.name] = task
    return task


def find_task(name: str) -> type[Task]:
    """The task of that name. Raises `ConfigError` with the names there are."""
    if name in _HERE:
        module, attribute = _HERE[name]
        return cast("type[Task]", getattr(importlib.import_module(module), attribute))
    if name in _registered:
        return _registered[name]
    installed = entry_points(group=ENTRY_POINT_GROUP)
    if name in installed.names:
        return cast("type[Task]", installed[name].load())
    known = sorted({*_HERE, *_registered, *installed.names})
    raise ConfigError(f"there is no task {name!r}; known are {', '.join(known)}")
