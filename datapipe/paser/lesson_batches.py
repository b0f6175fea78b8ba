"""Which rows a training reads at which step, and how they lie side by side.

    lengths, tokens -> steps_of -> rows of each step -> packed -> Packed (bins x width): no row sees another

Every step reads about the same number of tokens, and two trainings of the same tokens have the same number of steps,
whatever their sets: a small set is read several times, in a new order each time, a large one in part. Pure.
Raises `ConfigError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError
from datapipe.paser.lessons import positions

if TYPE_CHECKING:
    from datapipe.paser.lessons import Lessons
    from datapipe.storage.arrays import Int64

_STEP = 8
"""Widths are multiples of it: what the attention of a GPU wants of a mask."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of one step in bins.

    Attributes:
        ids: Tokens, int64 (bins, width); 0 where a bin is not full.
        places: Position of each token in its own row, int64 (bins, width).
        segments: Number of the row in its bin, int64 (bins, width); -1 where the bin is not full.
        asked: Flat places whose next token is learnt, int64 (learnt,), ascending.
        targets: That next token, int64 (learnt,).
    """

    ids: Int64
    places: Int64
    segments: Int64
    asked: Int64
    targets: Int64

    def bins(self, first: int, last: int) -> Packed:
        """The bins `first` ... `last` - 1 alone."""
        width = self.ids.shape[1]
        own = (self.asked >= first * width) & (self.asked < last * width)
        some = slice(first, last)
        asked = self.asked[own] - first * width
        return Packed(self.ids[some], self.places[some], self.segments[some], asked, self.targets[own])


def steps_of(lengths: Int64, *, tokens: int, batch_tokens: int, seed: int) -> list[Int64]:
    """Rows of each step.

    There are max(1, floor(tokens / batch_tokens)) steps; after step s the tokens read reach s + 1 even shares of
    `tokens`, and pass it by less than one row. Every pass over the set has an order of its own.

    Args:
        lengths: Tokens of each row, int64 (rows,), at least one row, each >= 1.
        tokens: To read in all, >= 1.
        batch_tokens: About so many a step.
        seed: Of the orders.

    Raises:
        ConfigError: There are no rows, a number is below 1, or a row is longer than a batch.
    """
    if not len(lengths):
        raise ConfigError("there are no rows to learn from")
    if tokens < 1 or batch_tokens < 1:
        raise ConfigError(f"tokens and batch_tokens must be 1 or more; got {tokens} and {batch_tokens}")
    if lengths.max() > batch_tokens:
        at = int(lengths.argmax())
        raise ConfigError(
            f"row {at} has {lengths[at]} tokens, more than the {batch_tokens} of a batch; raise batch_tokens or lower "
            "max_length"
        )
    steps = max(1, tokens // batch_tokens)
    passes = -(-tokens // int(lengths.sum()))
    order = np.concatenate([_draws(seed, number).permutation(len(lengths)) for number in range(passes)])
    read = np.cumsum(lengths[order])
    marks = np.arange(1, steps + 1) * tokens // steps
    ends = np.searchsorted(read, marks, side="left") + 1
    return np.split(order, ends)[:steps]


def packed(lessons: Lessons, rows: Int64, *, width: int) -> Packed:
    """Lay rows into as few bins as first fit of falling lengths finds.

    Args:
        lessons: All rows.
        rows: Numbers of those to lay, at least one.
        width: Tokens of a bin; that of the longest row if that is more.
    """
    lengths = lessons.lengths[rows]
    width = -(-max(width, int(lengths.max())) // _STEP) * _STEP
    bins, offsets, numbers = _first_fit(lengths, width)
    shape = (int(bins.max()) + 1, width)
    into = positions(bins * width + offsets, lengths)
    out_of = positions(lessons.starts[rows], lengths)
    own = positions(np.zeros(len(rows), np.int64), lengths)
    ids, places, segments = (np.full(shape[0] * width, fill, np.int64) for fill in (0, 0, -1))
    ids[into], places[into], segments[into] = lessons.ids[out_of], own, np.repeat(numbers, lengths)
    learnt = own >= np.repeat(lessons.prompts[rows], lengths)
    asked = np.sort(into[learnt] - 1)
    return Packed(ids.reshape(shape), places.reshape(shape), segments.reshape(shape), asked, ids[asked + 1])


def _first_fit(lengths: Int64, width: int) -> tuple[Int64, Int64, Int64]:
    """Bin, offset in it, and number within it of each row."""
    free: list[int] = []
    held: list[int] = []
    found = np.empty((3, len(lengths)), np.int64)
    for at in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[at])
        place = next((number for number, left in enumerate(free) if left >= length), len(free))
        if place == len(free):
            free.append(width)
            held.append(0)
        found[:, at] = place, width - free[place], held[place]
        free[place] -= length
        held[place] += 1
    return found[0], found[1], found[2]


def _draws(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, number]))
