"""Several texts as one, so that they share windows, and what was said of it as what was said of each.

    PruneItems of one question -> join -> a PruneItem or more -> (worker) -> PruneScores -> part -> PruneScores a text

The texts stand one after another, each under its title, so evidence that lies in several of them is seen together, and
the question is computed once a window instead of once a text. What is far apart shares no window anyway: many texts
become several items, which a worker may compute side by side and between which it may stop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ItemError
from provence.sliced import MOST_CHARACTERS
from provence.tokens import check_item, units_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provence.task import PruneItem, PruneScores
    from provence.units.unit import Unit

__all__ = ["Part", "join", "part"]

_SEPARATOR = "\n\n"


@dataclass(frozen=True, slots=True)
class Part:
    """Where a text lies in the joint one.

    Attributes:
        first: Place of its first unit among all units.
        units: Its own units.
    """

    first: int
    units: Sequence[Unit]


def join(items: Sequence[PruneItem]) -> list[tuple[PruneItem, list[Part]]]:
    """Items of the texts one after another, and where each text lies in its item.

    An item has at most `MOST_CHARACTERS`, unless one text alone has more.

    Args:
        items: Of one question.

    Raises:
        ItemError: A text or title is none, or the spans of an item do not cover its text.
    """
    groups: list[list[tuple[int, PruneItem]]] = []
    total = 0
    for place, item in enumerate(items):
        _check(item, place)
        total += len(item.text)
        if not groups or total > MOST_CHARACTERS:
            groups.append([])
            total = len(item.text)
        groups[-1].append((place, item))
    return [_join(group) for group in groups]


def _check(item: PruneItem, place: int) -> None:
    check_item(item, place)
    if not isinstance(item.title, str | None):
        raise ItemError(f"the title of item {place} must be text. Got {type(item.title).__name__}", index=place)
    try:
        (item.text + (item.title or "")).encode()
    except UnicodeEncodeError as error:
        raise ItemError(f"item {place} holds half a surrogate pair, which is no text", index=place) from error


def _join(group: Sequence[tuple[int, PruneItem]]) -> tuple[PruneItem, list[Part]]:
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    parts = []
    offset = 0
    for place, item in group:
        title = (item.title or "").strip()
        if title:
            starts.append(offset)
            ends.append(offset + len(title))
            pieces += [title, "\n"]
            offset += len(title) + 1
        units = units_of(item, place)
        parts.append(Part(len(starts), units))
        starts += [offset + unit.start for unit in units]
        ends += [offset + unit.end for unit in units]
        pieces += [item.text, _SEPARATOR]
        offset += len(item.text) + len(_SEPARATOR)
    return replace(group[0][1], text="".join(pieces), title=None, starts=starts, ends=ends), parts


def part(scores: PruneScores, parts: Sequence[Part]) -> list[PruneScores]:
    """What the joint scores say of each text; its score is the probability of its most probable unit, 0 without any."""
    return [_of(scores, each) for each in parts]


def _of(scores: PruneScores, own: Part) -> PruneScores:
    ours = slice(own.first, own.first + len(own.units))
    lengths, probabilities = scores.lengths[ours], scores.probabilities[ours]
    return replace(
        scores,
        starts=np.array([unit.start for unit in own.units], np.int32),
        ends=np.array([unit.end for unit in own.units], np.int32),
        kinds=[unit.kind for unit in own.units],
        parents=np.array([-1 if unit.parent is None else unit.parent for unit in own.units], np.int32),
        lengths=lengths,
        probabilities=probabilities,
        shares=None if scores.shares is None else scores.shares[ours],
        score=float(probabilities.max(initial=0)),
        tokens=int(lengths.sum()),
    )
