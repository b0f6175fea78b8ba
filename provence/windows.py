"""Tokens of a question and of a text's units to windows that a model can see, so that no unit is scored alone.

    question, title, units (ids and bounds) -> lay_windows -> Window (ids, and which of them are scored for which unit)

A window is `prefix question middle title units suffix`, as the tokenizer puts a pair together. Where the units do not
fit in one, windows overlap: each unit is scored in exactly one of them, with the unit before it and the unit after it
in view; the last unit of a window is there only to be seen, and so is the first, unless the text begins or ends there.
A unit that no window holds is cut into stretches over several, each with what precedes and follows it.

Pure arithmetic. Raises nothing: whoever calls sees to it that at least one token is left for the text.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapipe.storage.arrays import Int32

__all__ = ["Frame", "Window", "lay_windows", "text_room"]

_CONTEXT_SHARE = 4
"""A neighbour that does not fit whole is seen with its nearest tokens, up to this fraction of the room: a quarter."""

_TEXT_SHARE = 4
"""Fraction of a window that a question must leave for the text: a quarter."""


@dataclass(frozen=True)
class Frame:
    """What the tokenizer puts around the two parts of a pair.

    Attributes:
        prefix: Ids before the question, int32.
        middle: Ids between question and text, int32.
        suffix: Ids after the text, int32.
    """

    prefix: Int32
    middle: Int32
    suffix: Int32

    @property
    def length(self) -> int:
        """Tokens of the three together."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)


class Window(NamedTuple):
    """What the model sees at once, and what of it is scored: units, or stretches of one, one after another.

    Attributes:
        ids: Token ids, special tokens included, int32 (tokens,).
        start: Place in `ids` of the first token that is scored.
        first: Place of the unit that it is of.
        lengths: Tokens scored of that unit and of those that follow, int32; 0 for a unit without tokens.
    """

    ids: Int32
    start: int
    first: int
    lengths: Int32


def text_room(max_length: int, frame: Frame) -> int:
    """Tokens that a question leaves for title and text at least, for windows of `max_length`."""
    return max(1, (max_length - frame.length) // _TEXT_SHARE)


def lay_windows(
    frame: Frame, question: Int32, title: Int32, units: Int32, bounds: Sequence[int], *, max_length: int
) -> list[Window]:
    """Cut a text into windows that cover each unit's tokens exactly once.

    Every unit is scored with its whole neighbours in view where the three fit in a window together, else with their
    nearest tokens, a quarter of the room each at most.

    Args:
        frame: Special tokens.
        question: Its ids, int32; the head of every window.
        title: Its ids, int32; in every window before the units, never scored.
        units: Ids of all units, one after another, int32 (tokens,).
        bounds: Where each begins in `units`, and at the end where the last one ends; a unit may have no tokens.
        max_length: Tokens of a window.

    Returns:
        At least one window; a text without tokens has one in which nothing is scored.
    """
    head = np.concatenate([frame.prefix, question, frame.middle, title])
    room = max_length - len(head) - len(frame.suffix)
    if bounds[-1] <= room:
        lengths = np.array([end - start for start, end in pairwise(bounds)], np.int32)
        return [Window(np.concatenate([head, units, frame.suffix]), len(head), 0, lengths)]
    found = []
    for view, scored in _views(bounds, room):
        ids = np.concatenate([head, units[view.start : view.stop], frame.suffix])
        first, after = _holding(scored.start, bounds), bisect_left(bounds, scored.stop)
        cuts = np.clip(np.array(bounds[first : after + 1], np.int32), scored.start, scored.stop)
        found.append(Window(ids, len(head) + scored.start - view.start, first, np.diff(cuts)))
    return found


def _views(bounds: Sequence[int], room: int) -> Iterator[tuple[range, range]]:
    """Of each window, the tokens in view and the tokens scored, both as ranges over the units' tokens."""
    end = bounds[-1]
    done = 0
    while True:
        left, stop, right = _scored_from(done, bounds, room)
        yield range(left, right), range(done, stop)
        done = stop
        if done >= end:
            return


def _scored_from(done: int, bounds: Sequence[int], room: int) -> tuple[int, int, int]:
    """Where the window that scores from token `done` on begins, where its scored part ends, and where it ends."""
    if done in {0, bounds[_holding(done, bounds)]}:
        before = _beginning(done, bounds)
        right = bounds[bisect_right(bounds, before + room) - 1]
        stop = right if right == bounds[-1] else _beginning(right, bounds)
        if stop > done or right == bounds[-1]:
            return before, stop, right
    return _nearest_tokens(done, bounds, room)


def _nearest_tokens(done: int, bounds: Sequence[int], room: int) -> tuple[int, int, int]:
    """The same for one unit or a stretch of it, where the unit and its neighbours are too long for a window."""
    limit = room // _CONTEXT_SHARE
    unit = _holding(done, bounds)
    inside = bounds[unit] < done
    before = max(done - limit, 0 if inside else _beginning(done, bounds))
    reach, stop = min(before + room, bounds[-1]), bounds[unit + 1]
    if reach < bounds[-1] and stop > reach - limit:
        return before, reach - limit, reach
    if reach == bounds[-1] and not inside:
        return before, reach, reach
    after = bounds[min(_holding(stop, bounds) + 1, len(bounds) - 1)]
    return before, stop, min(reach, after)


def _beginning(token: int, bounds: Sequence[int]) -> int:
    """Where the unit before a token begins; 0 at the start of the text."""
    return bounds[_holding(token - 1, bounds)] if token else 0


def _holding(token: int, bounds: Sequence[int]) -> int:
    """Place of the unit that holds a token."""
    return bisect_right(bounds, token) - 1
