"""Items into batches: pure, so that bulk work is cut the same way wherever it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["pack"]


def pack(lengths: Sequence[int], *, token_budget: int, max_items: int, padded: bool = True) -> list[list[int]]:
    """Cut items into batches, longest first, each within the token budget.

    A batch costs its longest item times its count if the device pads it, the sum of its lengths if not. An item that
    alone is over the budget gets a batch of its own. Equal lengths keep the order of their indices, so equal input
    gives equal batches. Time rows * log(rows).

    Args:
        lengths: Tokens of each item, at least 1.
        token_budget: Tokens that a batch may cost, at least 1.
        max_items: Items that a batch may hold, at least 1.
        padded: Which of the two costs applies.

    Returns:
        Indices into `lengths`, each exactly once; within a batch from longest to shortest.

    Raises:
        ConfigError: A limit or a length is below 1.
    """
    if token_budget < 1 or max_items < 1:
        raise ConfigError(f"token_budget and max_items of pack must be at least 1. Got {token_budget} and {max_items}")
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    if order and lengths[order[-1]] < 1:
        raise ConfigError(f"the length of item {order[-1]} must be at least 1. Got {lengths[order[-1]]}")
    batches: list[list[int]] = []
    longest = tokens = 0
    for index in order:
        length = lengths[index]
        if batches:
            batch = batches[-1]
            cost = longest * (len(batch) + 1) if padded else tokens + length
            if cost <= token_budget and len(batch) < max_items:
                batch.append(index)
                tokens += length
                continue
        batches.append([index])
        longest = tokens = length
    return batches
