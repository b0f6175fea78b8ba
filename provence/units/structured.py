r"""JSON and JSON Lines: members and small subtrees, each under the unit that opens the object or array around it.

    text -> marks (where every bracket closes) -> one pass: opener | member | run of small array elements -> units

An opener is a key with its bracket, such as `"users": [`; of an object without a key, it takes the first member along,
which as a rule says which object it is. A subtree of at most 200 characters is one unit, with its key. Commas and
closing brackets belong to the unit before them. Text that is no JSON is read by lines, and so is JSON that is nested
deeper than 200 levels. A long string is cut into sentences under its beginning. Nothing here raises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from provence.units.lines import add_lines
from provence.units.prose import add_prose
from provence.units.spans import lines, trim

if TYPE_CHECKING:
    from provence.units.spans import Collector

__all__ = ["add_json", "is_json", "is_json_lines"]

_TOKEN = re.compile(
    r"""[\s,:]*+(?:
    (?P<open>[\[{])|(?P<close>[\]}])
    |(?P<leaf>"[^"\\]*+(?:\\.[^"\\]*+)*+"(?P<key>\s*+:)?
        |(?:-?\d[\d.eE+-]*+|true|false|null|NaN|-?Infinity)(?![^\s,\]}])))""",
    re.VERBOSE | re.DOTALL,
)
_OPENS = {"}": "{", "]": "["}
_SMALL = 200
_LONG = 400
_DEEPEST = 200


@dataclass(slots=True)
class _Node:
    """A value with its key: a leaf, or an object or array with its members.

    Attributes:
        start: Offset of its key, or of its value where it has none.
        inner: Offset after its opening bracket; of a leaf, `end`.
        end: Offset after its value.
        members: What it holds.
        keyed: Whether it has a key.
    """

    start: int
    inner: int
    end: int
    members: list[_Node] = field(default_factory=list)
    keyed: bool = False


def is_json(text: str, start: int, end: int) -> bool:
    """Whether this part of a text is one JSON object or array, as far as its brackets and tokens tell."""
    return _parse(text, start, end) is not None


def is_json_lines(text: str, start: int, end: int) -> bool:
    """Whether every line that is not blank is a JSON object or array."""
    rows = [row for row in (trim(text, *line) for line in lines(text, start, end)) if row[0] < row[1]]
    return bool(rows) and all(text[row[0]] in "{[" and is_json(text, *row) for row in rows)


def add_json(to: Collector, start: int, end: int) -> None:
    """Gather JSON or JSON Lines; anything else by lines."""
    start, end = trim(to.text, start, end)
    if root := _parse(to.text, start, end):
        _add(to, root, root.end, None)
        return
    if not is_json_lines(to.text, start, end):
        add_lines(to, start, end)
        return
    for line in lines(to.text, start, end):
        row = trim(to.text, *line)
        if row[0] < row[1] and (entry := _parse(to.text, *row)):
            _add(to, entry, entry.end, None)


def _parse(text: str, start: int, end: int) -> _Node | None:
    start, end = trim(text, start, end)
    if start == end or text[start] not in "{[":
        return None
    root = _Node(start, start, end)
    around = [root]
    at, key = start, -1
    while found := _TOKEN.match(text, at, end):
        at = found.end()
        kind = found.lastgroup
        begin = found.start(kind) if kind else at
        if kind == "close":
            if len(around) == 1 or _OPENS[text[begin]] != text[around[-1].inner - 1]:
                return None
            around.pop().end = at
            if len(around) == 1:
                break
        elif found["key"]:
            key = begin if key < 0 else key
            continue
        else:
            node = _Node(begin if key < 0 else key, at, at, keyed=key >= 0)
            around[-1].members.append(node)
            if kind == "open":
                around.append(node)
        if len(around) > _DEEPEST:
            return None
        key = -1
    return root.members[0] if len(around) == 1 and root.members and at == end and key < 0 else None


def _add(to: Collector, node: _Node, end: int, parent: int | None) -> None:
    """Gather a value; it ends where the next one begins (`end`), so commas and brackets after it come along."""
    if node.end - node.start <= _SMALL:
        to.add(node.start, end, "value", parent)
    elif node.members:
        _add_members(to, node, end, parent)
    elif end - node.start <= _LONG:
        to.add(node.start, end, "value", parent)
    else:
        add_prose(to, node.start, end, parent, first="value")


def _add_members(to: Collector, node: _Node, end: int, parent: int | None) -> None:
    members = node.members
    ends = [*(member.start for member in members[1:]), end]
    first = 0
    opened = members[0].start
    if not node.keyed and members[0].end - members[0].start <= _SMALL and members[0].keyed:
        first, opened = 1, ends[0]
    own = to.add(node.start, opened, "value", parent)
    at = first
    while at < len(members):
        last = at
        while _plain(members[at]) and last + 1 < len(members) and _plain(members[last + 1]):
            if ends[last + 1] - members[at].start > _SMALL:
                break
            last += 1
        if last > at:
            to.add(members[at].start, ends[last], "value", own)
        else:
            _add(to, members[at], ends[at], own)
        at = last + 1


def _plain(node: _Node) -> bool:
    return not node.keyed and not node.members
