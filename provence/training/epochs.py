"""Windows of coming epochs, drawn by other processes while the device trains.

Bank, WindowConfig -> EpochDrawer -> windows(number) -> Windows
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Self

from provence.training.windows import training_windows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from provence.training.bank import Bank
    from provence.training.config import WindowConfig
    from provence.training.windows import Windows

__all__ = ["EpochDrawer"]

_given: tuple[Bank, WindowConfig, tuple[int, ...]] | None = None


class EpochDrawer:
    """Draws epochs ahead.

    Args:
        bank: Where windows come from.
        config: Shares and sizes.
        seed: Epoch number n is drawn with seed + n.
        repeats: How often each source's questions are drawn.
        processes: That draw; 0 draws in this one when an epoch is asked for.
    """

    def __init__(
        self, bank: Bank, config: WindowConfig, *, seed: int, repeats: Sequence[int] = (), processes: int = 0
    ) -> None:
        self._given, self._seed, self._processes = (bank, config, tuple(repeats)), seed, processes
        self._coming: dict[int, Future[Windows]] = {}
        self._pool: ProcessPoolExecutor | None = None
        if processes:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_open, initargs=self._given)

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
            bank, config, repeats = self._given
            return training_windows(bank, config, seed=self._seed + number, repeats=repeats)
        for coming in range(number, number + self._processes):
            if coming not in self._coming:
                self._coming[coming] = self._pool.submit(_draw, self._seed + coming)
        return self._coming.pop(number).result()


def _open(bank: Bank, config: WindowConfig, repeats: tuple[int, ...]) -> None:
    global _given  # noqa: PLW0603 - a process of the pool holds one bank
    _given = bank, config, repeats


def _draw(seed: int) -> Windows:
    if _given is None:
        raise RuntimeError("a process of the pool was not given its bank")
    bank, config, repeats = _given
    return training_windows(bank, config, seed=seed, repeats=repeats)
