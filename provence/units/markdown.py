"""Markdown: headings, sentences of paragraphs, list items, fenced and indented code, table rows.

    text -> lines -> blocks (after CommonMark 0.31, GitHub's tables, front matter) -> units with parents

Parents: a heading has the heading of higher rank that it stands under; an item, the item that it is nested in or the
sentence that leads the list in; a row, the table's header; code, the sentence before it if that ends with a colon. All
else, and what lacks such a parent, has its heading or, indented, its item. Nothing here raises.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from provence.units.code import add_code
from provence.units.prose import add_prose
from provence.units.spans import LONGEST, lines, trim
from provence.units.unit import Unit

if TYPE_CHECKING:
    from provence.units.spans import Collector, Span
    from provence.units.unit import UnitKind

__all__ = ["FENCE", "HEADING", "ITEM", "add_markdown", "is_delimiter"]

FENCE = re.compile(r"`{3,}|~{3,}")
HEADING = re.compile(r"(#{1,6})(?:\s|$)")
ITEM = re.compile(r"(?:[-*+•‣◦]|\(?(\d{1,3})[.)])(?:[ \t]|$)")
_UNDERLINE = re.compile(r"(?:=+|-+)$")
_LEADS_IN = (":", "\uff1a", ":**", ":*", ":__", ":_")
_TOGETHER = 400
_CODE_INDENT = 4
_FRONT_MATTER_LINES = 100


def is_delimiter(line: str) -> bool:
    """Whether a trimmed line divides a table's header from its rows."""
    return "-" in line and "|" in line and set(line) <= set("|-: \t")


def add_markdown(to: Collector, start: int, end: int) -> None:
    """Gather the units of a part of a text."""
    _Reader(to, list(lines(to.text, start, end))).read()


class _Reader:
    """One pass over the lines.

    Attributes:
        starts: Where the lines begin.
        rows: The lines, trimmed.
        indents: Their indents, in characters, a tab counting as four.
        headings: Rank and place of the headings that are open, ranks rising.
        items: Indent and place of the list items that are open, indents rising.
        lead: What the open list has as its parent.
        before: The last unit of a paragraph, until another block follows.
    """

    def __init__(self, to: Collector, rows: list[Span]) -> None:
        self.to = to
        self.starts = [row[0] for row in rows]
        self.rows = [trim(to.text, *row) for row in rows]
        self.indents = [
            sum(4 if char == "\t" else 1 for char in to.text[row[0] : inner[0]])
            for row, inner in zip(rows, self.rows, strict=True)
        ]
        self.headings: list[tuple[int, int]] = []
        self.items: list[tuple[int, int]] = []
        self.lead: int | None = None
        self.before: int | None = None

    def read(self) -> None:
        at = self._front_matter()
        while at < len(self.rows):
            at = self._block(at) if self._line(at) else at + 1

    def _block(self, at: int) -> int:
        """Gather the block that begins on a line; the line after it."""
        line, indent = self._line(at), self.indents[at]
        item = None if _is_rule(line) else ITEM.match(line)
        while self.items and not item and self.items[-1][0] >= indent:
            self.items.pop()
        if item:
            return self._item(at, indent)
        if fence := FENCE.match(line):
            return self._fence(at, fence[0])
        if indent >= _CODE_INDENT and not self.items and (at == 0 or not self._line(at - 1)):
            return self._indented(at)
        if heading := HEADING.match(line):
            return self._heading(at, at + 1, len(heading[1]))
        if _is_rule(line):
            self._add(at, at + 1, "line", None)
            self.before = None
            return at + 1
        return self._table(at) if self._begins_table(at) else self._paragraph(at)

    def _front_matter(self) -> int:
        last = min(len(self.rows), _FRONT_MATTER_LINES)
        if self._line(0) != "---":
            return 0
        end = next((at + 1 for at in range(1, last) if self._line(at) in {"---", "..."}), 0)
        if end and self._size(0, end) <= _TOGETHER:
            self._add(0, end, "value", None)
        else:
            for at in range(end):
                self._add(at, at + 1, "value", None)
        return end

    def _heading(self, at: int, end: int, rank: int) -> int:
        while self.headings and self.headings[-1][0] >= rank:
            self.headings.pop()
        place = self._add(at, end, "heading", self._under_heading())
        self.headings.append((rank, place))
        self.items = []
        self.before = None
        return end

    def _paragraph(self, at: int) -> int:
        end = at + 1
        if end < len(self.rows) and self._line(end) and _UNDERLINE.match(self._line(end)):
            return self._heading(at, end + 1, 1 if self._line(end)[0] == "=" else 2)
        while end < len(self.rows) and not self._interrupts(end):
            end += 1
        self.before = add_prose(self.to, self.rows[at][0], self.rows[end - 1][1], self._around())
        return end

    def _item(self, at: int, indent: int) -> int:
        if not self.items:
            self.lead = self._led_in(at, adjacent=True)
        while self.items and self.items[-1][0] >= indent:
            self.items.pop()
        end = at + 1
        while end < len(self.rows) and not self._interrupts(end, listed=True):
            end += 1
        parent = self.items[-1][1] if self.items else self.lead
        self.items.append((indent, len(self.to.units)))
        if self._size(at, end) <= _TOGETHER:
            self._add(at, end, "item", parent)
        else:
            add_prose(self.to, self.rows[at][0], self.rows[end - 1][1], parent, first="item")
        self.before = None
        return end

    def _fence(self, at: int, mark: str) -> int:
        close = at + 1
        while close < len(self.rows) and not self._closes_fence(close, mark):
            close += 1
        end = min(close + 1, len(self.rows))
        parent = self._led_in(at)
        if self._size(at, end) <= _TOGETHER:
            self._add(at, end, "code", parent)
        else:
            opening = self._add(at, at + 1, "code", parent)
            if at + 1 < close:
                add_code(self.to, self.starts[at + 1], self.rows[close - 1][1], opening)
            if close < len(self.rows):
                self._append(close, opening)
        self.before = None
        return end

    def _closes_fence(self, at: int, mark: str) -> bool:
        line = self._line(at)
        return line.startswith(mark) and not line.strip(mark[0])

    def _append(self, at: int, parent: int) -> None:
        """Let a line belong to the unit before it, unless that grows too long."""
        last = self.to.units[-1]
        end = self.rows[at][1]
        if end - last.start <= LONGEST:
            self.to.units[-1] = Unit(last.start, end, last.kind, last.parent)
        else:
            self._add(at, at + 1, "code", parent)

    def _indented(self, at: int) -> int:
        end = last = at + 1
        while end < len(self.rows) and (not self._line(end) or self.indents[end] >= _CODE_INDENT):
            end += 1
            last = end if self._line(end - 1) else last
        parent = self._led_in(at)
        if self._size(at, last) <= _TOGETHER:
            self._add(at, last, "code", parent)
        else:
            add_code(self.to, self.starts[at], self.rows[last - 1][1], parent)
        self.before = None
        return last

    def _table(self, at: int) -> int:
        header = None
        parent = self._led_in(at, adjacent=True)
        if self._is_header(at):
            header = self._add(at, at + 2, "table_header", parent)
            at += 2
        while at < len(self.rows) and "|" in self._line(at):
            self._add(at, at + 1, "table_row", parent if header is None else header)
            at += 1
        self.before = None
        return at

    def _is_header(self, at: int) -> bool:
        return at + 1 < len(self.rows) and "|" in self._line(at) and is_delimiter(self._line(at + 1))

    def _begins_table(self, at: int) -> bool:
        line = self._line(at)
        return self._is_header(at) or (len(line) > 2 and line[0] == line[-1] == "|")  # noqa: PLR2004  # `|` and `||`

    def _interrupts(self, at: int, *, listed: bool = False) -> bool:
        """Whether a line ends the paragraph (or, if `listed`, the item) before it."""
        line = self._line(at)
        if not line or FENCE.match(line) or HEADING.match(line) or _is_rule(line) or self._begins_table(at):
            return True
        item = ITEM.match(line)
        return item is not None and (listed or item[1] in {None, "1"})

    def _led_in(self, at: int, *, adjacent: bool = False) -> int | None:
        """The sentence before a block if it announces the block; else what the block stands under."""
        if self.before is not None:
            unit = self.to.units[self.before]
            announced = self.to.text.endswith(_LEADS_IN, unit.start, unit.end)
            if announced or (adjacent and self._line(at - 1)):
                return self.before
        return self._around()

    def _around(self) -> int | None:
        return self.items[-1][1] if self.items else self._under_heading()

    def _under_heading(self) -> int | None:
        return self.headings[-1][1] if self.headings else None

    def _line(self, at: int) -> str:
        start, end = self.rows[at]
        return self.to.text[start:end]

    def _size(self, at: int, end: int) -> int:
        return self.rows[end - 1][1] - self.rows[at][0]

    def _add(self, at: int, end: int, kind: UnitKind, parent: int | None) -> int:
        place = len(self.to.units)
        self.to.add(self.rows[at][0], self.rows[end - 1][1], kind, parent)
        return place


def _is_rule(line: str) -> bool:
    """Whether a trimmed line is a thematic break: three or more of one mark, with white space between them or not."""
    return line[0] in "-*_" and line.count(line[0]) > 2 and not line.strip(line[0] + " \t")  # noqa: PLR2004
