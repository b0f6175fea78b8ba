"""Source code of any language, by indentation: signatures, and the paragraphs of what stands under them.

    text -> lines -> signature (a line that opens an indented block) | paragraph of lines -> units

A paragraph ends at a blank line, at a signature, where its block ends, or where it grows long. Its parent is the
signature of its block, whose parent is the signature of the block around it. Comments and decorators right above a
signature belong to it; closing brackets belong to what they close. Nothing here raises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from provence.units.spans import lines, trim

if TYPE_CHECKING:
    from provence.units.spans import Collector

__all__ = ["add_code"]

_MODIFIER = (
    r"(?:public|private|protected|internal|static|final|abstract|virtual|override|async|export|default|inline|extern|pub"
    r"|unsafe|const|local|data|sealed|open|partial|declare)\b(?:\(\w+\))?"
)
_DEFINES = re.compile(
    rf"(?:{_MODIFIER}[ \t]+)*+(?:def|class|function|func|fn|fun|interface|struct|enum|union|impl|trait|module|namespace"
    r"|package|object|protocol|extension|record|contract|sub|proc|procedure|macro|test|describe|it)\b(?![ \t]*[=.,)])"
    r"|(?:public|private|protected|internal|static|abstract|virtual|override|async|export)[ \t]"
    r"|(?!(?:if|for|while|switch|catch|with|return)\b)[\w$#]++\([^()\r\n]*+\)[ \t]*+\{"
    r"|[\w.$]++[ \t]*+[:=][ \t]*+(?:async[ \t]+)?(?:function\b|\()"
)
_ABOVE = re.compile(r"@|#|//|/\*|\*|--|;;|<!--|'''|\"\"\"|template\b|\[[A-Z]")
_CLOSES = re.compile(r"[)\]}>]|end\b|fi\b|done\b|esac\b")
_LONG = 400
_SIGNATURE_LINES = 30


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    end: int
    indent: int
    gap: bool  # whether a blank line stands before it


def add_code(to: Collector, start: int, end: int, parent: int | None = None) -> None:
    """Gather the code in a part of a text, under a parent."""
    _Reader(to, _lines(to.text, start, end), parent).read()


def _lines(text: str, start: int, end: int) -> list[_Line]:
    found: list[_Line] = []
    gap = False
    for row in lines(text, start, end):
        begin, stop = trim(text, *row)
        if begin < stop:
            found.append(_Line(begin, stop, sum(4 if char == "\t" else 1 for char in text[row[0] : begin]), gap))
        gap = begin == stop
    return found


class _Reader:
    """One pass over the lines; `blocks` holds indent and signature of the blocks that are open."""

    def __init__(self, to: Collector, rows: list[_Line], parent: int | None) -> None:
        self.to = to
        self.rows = rows
        self.parent = parent
        self.top = rows[0].indent if rows else 0
        self.blocks: list[tuple[int, int]] = []
        self.paragraph: list[_Line] = []

    def read(self) -> None:
        at = 0
        while at < len(self.rows):
            row = self.rows[at]
            if self._closes(row):
                self.paragraph.append(row)
                at += 1
                continue
            self._enter(row)
            last = self._signature(at)
            if last is None:
                self.paragraph.append(row)
                at += 1
            else:
                self._open(row, self.rows[last])
                at = last + 1
        self._flush()

    def _closes(self, row: _Line) -> bool:
        """Whether the line ends the paragraph or block before it, so that it belongs there."""
        if not self.paragraph or not _CLOSES.match(self.to.text, row.start, row.end):
            return False
        return row.indent < self.paragraph[-1].indent and self._size(row) <= 2 * _LONG

    def _enter(self, row: _Line) -> None:
        """Close the blocks that the line is not in, and the paragraph if the line does not go on with it."""
        left = bool(self.blocks) and row.indent <= self.blocks[-1][0]
        full = self._size(row) > _LONG and bool(self.paragraph) and row.indent <= self.paragraph[0].indent
        if row.gap or left or full or self._size(row) > 2 * _LONG:
            self._flush()
        while self.blocks and row.indent <= self.blocks[-1][0]:
            self.blocks.pop()

    def _size(self, row: _Line) -> int:
        return row.end - self.paragraph[0].start if self.paragraph else 0

    def _signature(self, at: int) -> int | None:
        """Place of the last line of the signature that begins here, or None."""
        row, text = self.rows[at], self.to.text
        if _ABOVE.match(text, row.start, row.end):
            return None
        if not _DEFINES.match(text, row.start, row.end) and (self.blocks or row.indent > self.top or self._small(at)):
            return None
        last = self._bracket(at) if text[row.end - 1] in "(,[<" else at
        for line in (last, at):
            if line + 1 < len(self.rows):
                following = self.rows[line + 1]
                if following.indent == row.indent and text[following.start : following.end] == "{":
                    return line + 1
                if following.indent > row.indent:
                    return line
        return None

    def _bracket(self, at: int) -> int:
        """Place of the line that closes what the line at `at` leaves open, or `at` if none soon does."""
        row, last = self.rows[at], at + 1
        while last < len(self.rows) and last - at < _SIGNATURE_LINES and self.rows[last].indent > row.indent:
            last += 1
        return last if last < len(self.rows) and _CLOSES.match(self.to.text, self.rows[last].start) else at

    def _small(self, at: int) -> bool:
        """Whether the line and what is indented under it are so short that they stay together."""
        row, last = self.rows[at], at + 1
        while last < len(self.rows) and self.rows[last].indent > row.indent:
            if self.rows[last].end - row.start > _LONG:
                return False
            last += 1
        return True

    def _open(self, first: _Line, last: _Line) -> None:
        above = self.paragraph
        if above and (first.gap or any(not _ABOVE.match(self.to.text, row.start, row.end) for row in above)):
            self._flush()
        start = self.paragraph[0].start if self.paragraph else first.start
        self.paragraph = []
        place = self.to.add(start, last.end, "code", self._around())
        if place is not None:
            self.blocks.append((first.indent, place))

    def _flush(self) -> None:
        if self.paragraph:
            self.to.add(self.paragraph[0].start, self.paragraph[-1].end, "code", self._around())
            self.paragraph = []

    def _around(self) -> int | None:
        return self.blocks[-1][1] if self.blocks else self.parent
