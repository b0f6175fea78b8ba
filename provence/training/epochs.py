"""Windows of coming epochs, drawn by other processes while the device trains.

Bank, WindowConfig -> EpochDrawer -> windows(number) -> Windows
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np

from provence.training.sampler import training_windows
from provence.training.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future
    from pathlib import Path
    from types import TracebackType

    from provence.training.bank import Bank
    from provence.training.config import WindowConfig

__all__ = ["EpochDrawer"]


@dataclass(frozen=True, eq=False)
class _Source:
    """What an epoch depends on but its seed, and where epochs are kept."""

    bank: Bank
    config: WindowConfig
    repeats: tuple[int, ...]
    folder: Path | None

    def draw(self, seed: int) -> Windows:
        """An epoch, from the folder if it is there; otherwise drawn, and kept."""
        path = None if self.folder is None else self.folder / f"windows-{self._digest}-{seed}.npz"
        if path is not None and path.is_file():
            return Windows.load(path)
        windows = training_windows(self.bank, self.config, seed=seed, repeats=self.repeats)
        if path is not None:
            windows.save(path)
        return windows

    @property
    def _digest(self) -> str:
        digest = hashlib.sha256(json.dumps([asdict(self.config), self.repeats]).encode())
        for item in fields(self.bank):
            digest.update(np.ascontiguousarray(getattr(self.bank, item.name)).tobytes())
        return digest.hexdigest()[:12]


_given: _Source | None = None


class EpochDrawer:
    """Draws epochs ahead.

    Args:
        bank: Where windows come from.
        config: Shares and sizes.
        seed: Epoch number n is drawn with seed + n.
        repeats: How often each source's questions are drawn.
        processes: That draw; 0 draws in this one when an epoch is asked for.
        folder: Where epochs are kept and looked for; None keeps none.
    """

    def __init__(
        self,
        bank: Bank,
        config: WindowConfig,
        *,
        seed: int,
        repeats: Sequence[int] = (),
        processes: int = 0,
        folder: Path | None = None,
    ) -> None:
        self._source, self._seed, self._processes = _Source(bank, config, tuple(repeats), folder), seed, processes
        self._coming: dict[int, Future[Windows]] = {}
        self._pool: ProcessPoolExecutor | None = None
        if processes:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_open, initargs=(self._source,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def windows(self, number: int) -> Windows:
        """The windows of an epoch."""
        if self._pool is None:
            return self._source.draw(self._seed + number)
        for coming in range(number, number + self._processes):
            if coming not in self._coming:
                self._coming[coming] = self._pool.submit(_draw, self._seed + coming)
        return self._coming.pop(number).result()


def _open(source: _Source) -> None:
    global _given  # noqa: PLW0603 - a process of the pool holds one bank
    _given = source


def _draw(seed: int) -> Windows:
    if _given is None:
        raise RuntimeError("a process of the pool was not given its bank")
    return _given.draw(seed)
