"""Sentences of running text in many languages, by rules, in time proportional to the text.

    text -> paragraphs (blank lines) -> lines that were broken on purpose -> sentences -> parts of a very long one

A candidate is a run of end marks with the quotes and brackets that close after it. What stands before and after it
decides: an abbreviation, an initial or an ordinal before it, a small letter after it keep the sentence together. An
abbreviation that may end a sentence does so if a frequent sentence starter follows (the thought of Punkt: Kiss and
Strunk, Computational Linguistics 32(4), 2006, section 4.1.3), here from a fixed list. Each candidate looks back at
most 24 characters. Nothing here raises.
"""

# ruff: noqa: RUF001  # the marks of many scripts look alike

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from provence.units.spans import LONGEST, pieces, trim
from provence.units.words import (
    CLOSERS,
    DOES_NOT_END,
    ENDS_BEFORE_STARTER,
    MONTHS,
    NEEDS_NUMBER,
    OPENERS,
    SPACED_END,
    STARTERS,
    WIDE_END,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from provence.units.spans import Collector, Span
    from provence.units.unit import UnitKind

__all__ = ["add_prose", "sentences"]

_PARAGRAPH = re.compile(r"[\f\u2029]|(?:\r\n?+|[\n\u2028])[^\S\r\n\u2028]*+(?:\r\n?+|[\n\u2028])")
_NEW_LINE = re.compile(r"[\r\n\u2028]")
_LINE = re.compile(r"[^\r\n\u2028]++")
_UNMARKED = re.compile(r"[\u0e01-\u0eff]{8}")  # Thai and Lao mark no sentences, and put spaces between clauses only
_BULLET = re.compile(r"(?:[-*+•‣◦▪·●○–—]|\(?[A-Za-z]\))\s")
_NUMBER = re.compile(r"[(\[]?\d{1,3}[.)\]]\s")
_FIRST_NUMBER = re.compile(r"[(\[]?1[.)\]]\s")
_CANDIDATE = re.compile(
    rf"([{SPACED_END}{WIDE_END}]++)"
    rf"((?:[{re.escape(CLOSERS)}]|[ \u00a0\u202f](?:[»›]|'')(?!\S))*+(?:\[[^\[\]\r\n]{{1,20}}\])*+)"
    r"(\s*+)"
)
_WORD = re.compile(r"\w")
_ENUMERATOR = re.compile(r"\d{1,3}(?:\.\d{1,3}){0,4}|\w|[IVXLC]{1,5}|[ivxlc]{1,5}")
_NEXT = re.compile(rf"[\s{re.escape(OPENERS)}–—-]*+((\w?)(\w?)\w{{0,30}}+)(.?)", re.DOTALL)
_ROMAN_OR_NUMBER = re.compile(r"\d|(?:[IVXLC]{2,}|[VXLC])\b|[A-Z]\d|[(#§]")

_LOOK_BACK = 24
_LOOK_AHEAD = 400
_CLAUSES = 160
_MARK = 3
_UNWRAPPED = 160
_NARROW = 40


def sentences(text: str, start: int, end: int, *, small: bool = False) -> Iterator[Span]:
    """Spans of the sentences in a part of a text: trimmed, in order, none longer than `LONGEST`.

    If `small`, sentences may begin with a small letter after any end mark.
    """
    for first, last in _blocks(text, start, end):
        for begin, stop in _sentences(text, first, last, small=small):
            unmarked = _UNMARKED.search(text, begin, min(stop, begin + _LOOK_AHEAD))
            yield from pieces(text, begin, stop, by_line=False, longest=_CLAUSES if unmarked else LONGEST)


def add_prose(to: Collector, start: int, end: int, parent: int | None, *, first: UnitKind = "sentence") -> int | None:
    """Gather the sentences of a part of a text; the place of the last, or None if it is white space only.

    With another kind for the first, that one is the parent of the others: they continue it.
    """
    place = None
    for begin, stop in sentences(to.text, start, end, small=to.small):
        head = place is None
        place = to.add(begin, stop, first if head else "sentence", parent)
        if head and first != "sentence":
            parent = place
    return place


def _blocks(text: str, start: int, end: int) -> Iterator[Span]:
    at = start
    for found in _PARAGRAPH.finditer(text, start, end):
        yield from _unwrapped(text, at, found.start())
        at = found.end()
    yield from _unwrapped(text, at, end)


def _unwrapped(text: str, start: int, end: int) -> Iterator[Span]:
    """A paragraph, cut at those line ends that are not there only because the line was full."""
    start, end = trim(text, start, end)
    if not _NEW_LINE.search(text, start, end):
        if start < end:
            yield start, end
        return
    rows = [trim(text, *found.span()) for found in _LINE.finditer(text, start, end)]
    width = max((stop - begin for begin, stop in rows), default=0)
    listed = any(_FIRST_NUMBER.match(text, *row) for row in rows)
    at = start
    for row, following in pairwise(rows):
        if _ends_on_purpose(text, row, following, width) or (listed and _NUMBER.match(text, *following)):
            yield at, row[1]
            at = following[0]
    if at < end:
        yield at, end


def _ends_on_purpose(text: str, row: Span, following: Span, width: int) -> bool:
    begin, stop = following
    if _bare(text, row):
        return False
    if begin == stop or _bare(text, following) or _BULLET.match(text, begin, stop):
        return True
    first = text[begin]
    if first.islower():
        return False
    length = row[1] - row[0]
    word = text[begin : begin + 20].split(None, 1)[0]
    if width > _UNWRAPPED or length + 1 + len(word) <= 0.8 * width:
        return True
    return width <= _NARROW and (first.isupper() or first.isdigit()) and text[row[1] - 1 : row[1]] != ","


def _bare(text: str, row: Span) -> bool:
    """Whether a line holds a bullet, of whatever sign, and nothing else."""
    start, end = row
    return 0 < end - start <= _MARK and not _WORD.search(text, start, end) and text[start] not in SPACED_END + CLOSERS


def _sentences(text: str, start: int, end: int, *, small: bool) -> Iterator[Span]:
    """Sentences of a block. Marks without letter or digit go with the sentence after them, at the end with the last."""
    held = (start, start)
    at = seen = start
    spoken = False
    for found in _CANDIDATE.finditer(text, start, end):
        spoken = spoken or _WORD.search(text, seen, found.start()) is not None
        seen = found.end()
        if spoken and seen < end and _ends(text, at, found, end, small=small):
            if at > start:
                yield held
            held = (at, found.end(2))
            at = seen
            spoken = False
    if at > start and (spoken or _WORD.search(text, seen, end)):
        yield held
        held = (at, end)
    yield held[0], end


def _ends(text: str, at: int, found: re.Match[str], end: int, *, small: bool) -> bool:
    """Whether a sentence that began at `at` ends with this candidate, after which more text follows."""
    marks, closers, space = found.groups()
    after = text[found.end()]
    if after in ".…,;:、，；：)]}":
        return False
    if marks[-1] in WIDE_END:
        return not (closers and after in "とっ")
    follows = _NEXT.match(text, found.end(), end)
    word, first, second, then = follows.groups() if follows else ("", "", "", "")
    before = _word_before(text, at, found.start())
    if not space:
        glued = before.isalpha() and before.islower() and len(before) > 2  # noqa: PLR2004  # `end.The`, not `Node.The`
        return glued and len(marks) == 1 and word in STARTERS and then != "."
    if first.islower() and not second.isupper() and not small:
        return "?" in marks and not closers
    if marks != "." or not before:
        return True
    starts = word in STARTERS and then != "."
    return _full_stop(before, word or then, starts=starts, alone=found.start() - len(before) == at)


def _word_before(text: str, at: int, mark: int) -> str:
    if mark == at or text[mark - 1].isspace():
        return ""
    return text[max(at, mark - _LOOK_BACK) : mark].rsplit(None, 1)[-1].lstrip(OPENERS)


def _full_stop(before: str, after: str, *, starts: bool, alone: bool) -> bool:
    """Whether the full stop after `before` ends a sentence; `after` begins with no small letter."""
    name = before.lower()
    parts = before.split(".")
    number = before.isdigit()
    if alone and _ENUMERATOR.fullmatch(before):
        return False
    if number:
        return not (len(before) <= 2 and (after in MONTHS or after.isdigit()))  # noqa: PLR2004  # a day
    if name in DOES_NOT_END:
        return False
    if name in NEEDS_NUMBER and _ROMAN_OR_NUMBER.match(after):
        return False
    initial = len(before) == 1 and (before.isupper() or before.islower())
    dotted = len(parts) > 1 and all(part.isalpha() and len(part) <= 2 for part in parts)  # noqa: PLR2004  # Ph.D.
    if initial or dotted or name in ENDS_BEFORE_STARTER:
        return starts
    return True
