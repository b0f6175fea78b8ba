"""A long text as several items, and what was said of them as what was said of the text.

    PruneItem -> slices -> PruneItems -> (worker) -> PruneScores -> whole -> PruneScores of the text

A worker computes an item in one go, so one long text would hold a lane, whatever the deadline, and whoever waits behind
it. Its slices are computed side by side with other work, and a worker may stop between them. They are cut between
units, and each shows the unit before its first and the one after its last, so every unit is scored in sight of both its
neighbours, as in one item.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from provence.tokens import check_item, units_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from provence.task import PruneItem, PruneScores
    from provence.units.unit import Unit

__all__ = ["MOST_CHARACTERS", "Slice", "slices", "whole"]

MOST_CHARACTERS = 1 << 15
"""Characters of an item at most, neighbours not counted, unless one unit has more: some twenty windows of 512."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a text.

    Attributes:
        item: What a worker is asked.
        before: Units of the item that only show what stands before: one, or none at the beginning.
        units: Those that it is asked about, with their offsets in the whole text.
    """

    item: PruneItem
    before: int
    units: Sequence[Unit]


def slices(item: PruneItem, place: int) -> list[Slice]:
    """Parts of an item's text of at most `MOST_CHARACTERS`, in order; none if it is no longer than that.

    Args:
        item: A text; what is none is left to the worker to refuse.
        place: Of the text, for messages.

    Raises:
        ItemError: The kind of a long text is unknown, or its spans do not cover it.
    """
    if _is_short(item.text):
        return []
    check_item(item, place)
    units = units_of(item, place)
    bounds = list(_bounds(units))
    return [_slice(item, units, first, stop) for first, stop in zip(bounds, [*bounds[1:], len(units)], strict=True)]


def whole(found: Sequence[PruneScores], parts: Sequence[Slice]) -> PruneScores:
    """What the scores of the slices say of the text: its units in order, and the score of the best slice."""
    own = [slice(each.before, each.before + len(each.units)) for each in parts]
    units = [unit for each in parts for unit in each.units]
    lengths = np.concatenate([scores.lengths[ours] for scores, ours in zip(found, own, strict=True)])
    shares = [scores.shares[ours] for scores, ours in zip(found, own, strict=True) if scores.shares is not None]
    around = found[0].tokens - int(found[0].lengths.sum())  # of question and title
    return replace(
        found[0],
        starts=np.array([unit.start for unit in units], np.int32),
        ends=np.array([unit.end for unit in units], np.int32),
        kinds=[unit.kind for unit in units],
        parents=np.array([-1 if unit.parent is None else unit.parent for unit in units], np.int32),
        lengths=lengths,
        probabilities=np.concatenate([scores.probabilities[ours] for scores, ours in zip(found, own, strict=True)]),
        shares=np.concatenate(shares) if shares else None,
        score=max(scores.score for scores in found),
        tokens=around + int(lengths.sum()),
    )


def _is_short(text: object) -> bool:
    return not isinstance(text, str) or len(text) <= MOST_CHARACTERS


def _bounds(units: Sequence[Unit]) -> Iterator[int]:
    """The place of the first unit of each slice."""
    begin = 0
    for place, unit in enumerate(units):
        if not place or unit.end - begin > MOST_CHARACTERS:
            begin = unit.start
            yield place


def _slice(item: PruneItem, units: Sequence[Unit], first: int, stop: int) -> Slice:
    shown = units[max(0, first - 1) : stop + 1]
    begin = shown[0].start
    end = units[stop + 1].start if stop + 1 < len(units) else len(item.text)
    asked = replace(
        item,
        text=item.text[begin:end],
        starts=[unit.start - begin for unit in shown],
        ends=[unit.end - begin for unit in shown],
    )
    return Slice(asked, min(first, 1), units[first:stop])
