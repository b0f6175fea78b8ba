"""Spans of a text: without white space at their ends, and none so long that pruning cannot choose.

    (start, end) -> trim -> cut at line, clause or word ends -> Collector.add -> Unit, Unit, ...

All of it takes time in proportion to the text. Nothing here raises.
"""

# ruff: noqa: RUF001  # the marks of many scripts look alike

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from provence.units.unit import Unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from provence.units.unit import UnitKind

__all__ = ["LONGEST", "Collector", "after_marks", "lines", "pieces", "trim"]

LONGEST = 1200
"""Characters that a unit has at most."""

Span = tuple[int, int]

_SPACE = re.compile(r"\s*+")
_MARKS = re.compile(r"(?:\s*+\ufeff)*+")
_LINE_END = re.compile(r"\r\n|\n|\r")
_LAST_LINE_END = re.compile(r".*[\r\n]", re.DOTALL)
_LAST_CLAUSE_END = re.compile(r".*(?:[;:,)\]}—–،؛]\s|[;{}])", re.DOTALL)
_LAST_WIDE_CLAUSE_END = re.compile(r".*[、，；：]", re.DOTALL)
_LAST_SPACE = re.compile(r".*\s", re.DOTALL)
_JOINERS = "\u200d\ufe0e\ufe0f"


def after_marks(text: str) -> int:
    """Where a text begins for whoever reads it: after the byte order marks at its head; 0 if it has none.

    A mark is no white space to Python, so without this it would hide the `#` or `{` that it stands before.
    """
    found = _MARKS.match(text)
    return found.end() if found else 0


def trim(text: str, start: int, end: int) -> Span:
    """The span without the white space at its ends; start == end if nothing is left."""
    if start < end and not text[start].isspace() and not text[end - 1].isspace():
        return start, end
    start = _left(text, start, end)
    return (start, start + len(text[start:end].rstrip())) if start < end else (end, end)


def _left(text: str, start: int, end: int) -> int:
    found = _SPACE.match(text, start, end)
    return found.end() if found else start


def lines(text: str, start: int, end: int) -> Iterator[Span]:
    r"""Lines with neither their end (\n, \r\n or \r) nor their indent taken off; empty ones too."""
    at = start
    for found in _LINE_END.finditer(text, start, end):
        yield at, found.start()
        at = found.end()
    yield at, end


def pieces(text: str, start: int, end: int, *, by_line: bool, longest: int = LONGEST) -> Iterator[Span]:
    """The trimmed span in parts of at most `longest` characters, cut at line (if `by_line`), clause or word ends.

    Where none lies in the second half of what may stay together, the cut falls between two characters; not before a
    combining mark or joiner, unless more than 32 of them follow each other.
    """
    start, end = trim(text, start, end)
    while end - start > longest:
        cut = _cut(text, start, longest, by_line=by_line)
        yield trim(text, start, cut)
        start = _left(text, cut, end)
    if start < end:
        yield start, end


def _cut(text: str, start: int, longest: int, *, by_line: bool) -> int:
    low, high = start + longest // 2, start + longest
    patterns = (_LAST_CLAUSE_END, _LAST_WIDE_CLAUSE_END, _LAST_SPACE)
    for pattern in (_LAST_LINE_END, *patterns) if by_line else patterns:
        if found := pattern.match(text, low, high):
            return found.end()
    cut = high
    while cut > high - 32 and (
        unicodedata.combining(text[cut]) or text[cut] in _JOINERS or text[cut - 1] == _JOINERS[0]
    ):
        cut -= 1
    return cut


class Collector:
    """Gathers the units of one text, in order.

    Attributes:
        text: The whole text.
        start: Where it begins after its byte order marks; those belong to the first unit.
        small: Whether it has no capital, as in chats, so that none can be asked for where a sentence begins.
        units: What was gathered so far.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.start = after_marks(text)
        self.small = text.islower()
        self.units: list[Unit] = []

    def add(self, start: int, end: int, kind: UnitKind, parent: int | None = None) -> int | None:
        """Gather a span; its place, or None if it is white space only.

        A span of more than `LONGEST` characters becomes several units, of which the first is the parent of the others.
        """
        start, end = trim(self.text, start, end)
        if start == end:
            return None
        if self.start and not self.units:
            start = _left(self.text, 0, end)
        place = len(self.units)
        if end - start <= LONGEST:
            self.units.append(Unit(start, end, kind, parent))
            return place
        for begin, stop in pieces(self.text, start, end, by_line=True):
            self.units.append(Unit(begin, stop, kind, parent if len(self.units) == place else place))
        return place
