"""An executor by its name, so that Ray is imported only where it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from datapipe.config import ExecutorName
from datapipe.errors import ConfigError
from datapipe.executors.local import LocalExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.pipeline import Executor
    from datapipe.settings import Settings

__all__ = ["make_executor"]


def make_executor(
    name: ExecutorName, *, workers: int | None, settings: Settings, device: str
) -> tuple[Executor, Callable[[], None]]:
    """The executor of that name, and what is to be called after each run: it ends a Ray that the run has started.

    Args:
        name: `local` or `ray`.
        workers: Threads, or actors at most; None takes what the settings say.
        settings: The machine's.
        device: Where models run.

    Raises:
        ConfigError: There is no executor of that name, it cannot use the device, or `workers` is less than 1.
        MissingExtraError: Ray is asked for and not installed.
    """
    if name == "local":
        return LocalExecutor(workers if workers is not None else settings.workers), _nothing
    if name != "ray":
        raise ConfigError(f"executor must be one of {', '.join(get_args(ExecutorName))}; got {name!r}")
    if ":" in device:
        raise ConfigError(f"device {device} names a GPU of this machine, but Ray chooses the GPU: use device cuda")
    from datapipe.executors.ray import RayExecutor

    actors = workers if workers is not None else settings.ray.actors
    executor = RayExecutor(actors, num_cpus=settings.ray.cpus, num_gpus=settings.ray.gpus)
    return executor, executor.close


def _nothing() -> None:
    """Threads end with their work."""
