"""What a worker tells whoever watches it: counts where a decision falls, and four durations a call.

The worker calls an `Observer` from its own threads and from those of its callers; it must be quick and must not raise.
No text and no vector ever reaches it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from datapipe.workers.protocol import Priority

__all__ = ["FailureReason", "Observer", "Unobserved"]

FailureReason: TypeAlias = Literal[
    "overloaded", "deadline", "cancelled", "item", "device", "out_of_memory", "stopped", "model"
]
"""Why items got no result."""


class Observer(Protocol):
    """Receives what happens in a worker."""

    def queue(self, items: int) -> None:
        """So many items wait for a device now."""

    def batch(self, *, task: str, model: str, priority: Priority, items: int, tokens: int, cost: int) -> None:
        """A batch begins: its items, their tokens, and what it costs the device in tokens, padding included."""

    def request(
        self,
        *,
        task: str,
        model: str,
        priority: Priority,
        tokenize: float,
        queue: float,
        inference: float,
        total: float,
    ) -> None:
        """A call was answered; seconds of preparing its items, waiting, computing, and all of it."""

    def failed(self, reason: FailureReason, items: int) -> None:
        """So many items of one call got no result."""


class Unobserved:
    """Watches nothing."""

    def queue(self, items: int) -> None:
        """Do nothing."""

    def batch(self, *, task: str, model: str, priority: Priority, items: int, tokens: int, cost: int) -> None:
        """Do nothing."""

    def request(
        self,
        *,
        task: str,
        model: str,
        priority: Priority,
        tokenize: float,
        queue: float,
        inference: float,
        total: float,
    ) -> None:
        """Do nothing."""

    def failed(self, reason: FailureReason, items: int) -> None:
        """Do nothing."""
