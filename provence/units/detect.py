"""Which kind of text this is, from its own lines: prose, unless the marks of another kind are plain.

    text -> JSON? -> fences? -> log? -> code? -> Markdown? -> prose

JSON is judged by the whole text, everything else by its first 400 lines. Nothing here raises.
"""

from __future__ import annotations

import re
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from provence.units.lines import ENTRY
from provence.units.markdown import FENCE, HEADING, ITEM, is_delimiter
from provence.units.spans import after_marks, lines, trim
from provence.units.structured import is_json, is_json_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from provence.units.unit import TextKind

__all__ = ["detect"]

_SAMPLE = 400
_LINE = 300
_LOG_SHARE = 0.4
_CODE_SHARE = 0.5

_STATEMENT = re.compile(
    r"(?:import [\w.{*]+|from [\w.]+ import\b|package [\w:.]+;?$|using [\w.]+;|use [\w:]+|#include\s*[<\"]|#!/"
    r"|@\w+(?:\(.*\))?$|(?:async )?def \w+\(|class \w+\s*[:({]|(?:export )?(?:async )?function\b.*[({]|(?:pub )?fn \w+"
    r"|func [\w(]|(?:const|let|var)\s[\w{\[].*=|return\b.*[;)\w\]]$|(?:if|for|while|switch)\s*\(.*\)\s*\{?$"
    r"|(?:if|elif|for|while|with|except|try|else|finally)\b.*:$|(?:public|private|protected|static)\s+\w.*[;{(]$"
    r"|#\s*(?:define|if|ifdef|ifndef|endif|elif|else|undef|pragma)\b)"
)
_ASSIGNS = re.compile(r"[\w.$\[\]\"']+\s*(?:[-+*/|&]|:)?=\s*\S|[\w.$]+\(.*\)[;,]?$")
_COMMENT = re.compile(r"//|/\*|\*/|#(?!#|\s*(?:define|if|ifdef|ifndef|endif|elif|else|undef|pragma|include)\b|!/)")
_BLOCK_COMMENTS = (("/*", "*/"), ('"""', '"""'), ("'''", "'''"), ("=pod", "=cut"), ("=head", "=cut"), ("<!--", "-->"))
_ENDS = (",", "(", "[", "{", ")", "]", "\\", "=", "&&", "||")
_LINK = re.compile(r"!?\[[^\[\]]{1,80}\]\([^()\s]{1,200}\)")


def detect(text: str) -> TextKind:
    """The kind of a text; `prose` where it is not plain."""
    start, end = trim(text, after_marks(text), len(text))
    if start == end:
        return "prose"
    if text[start] in "{[" and (is_json(text, start, end) or is_json_lines(text, start, end)):
        return "json"
    rows = [trim(text, *row) for row in islice(lines(text, start, end), _SAMPLE)]
    shown = [text[begin : min(stop, begin + _LINE)] for begin, stop in rows]
    filled = [line for line in shown if line]
    if any(FENCE.match(line) for line in filled):
        return "markdown"
    if len(filled) < 2:  # noqa: PLR2004  # a line for itself may be anything
        return "markdown" if HEADING.match(filled[0]) and len(text) > end else "prose"
    if sum(bool(ENTRY.match(line)) for line in filled) >= max(2, _LOG_SHARE * len(filled)):
        return "log"
    if _looks_like_code(filled):
        return "code"
    return "markdown" if _looks_like_markdown(shown) else "prose"


def _looks_like_code(filled: list[str]) -> bool:
    """At least half of the lines that are no comments read as code, and two beyond doubt."""
    told = list(_without_comments(filled))
    sure = sum(_is_statement(line) for line in told)
    likely = sum(bool(_ASSIGNS.match(line)) or line.endswith(_ENDS) for line in told if not _is_statement(line))
    return sure >= 2 and sure + likely >= _CODE_SHARE * len(told)  # noqa: PLR2004


def _without_comments(filled: list[str]) -> Iterator[str]:
    closing = ""
    for line in filled:
        if closing:
            closing = "" if closing in line else closing
            continue
        opened = next((pair for pair in _BLOCK_COMMENTS if line.lstrip("rbuf").startswith(pair[0])), None)
        if opened:
            closing = "" if opened[1] in line[len(opened[0]) :] else opened[1]
        elif not _COMMENT.match(line):
            yield line


def _is_statement(line: str) -> bool:
    return line[-1] in ";{}" or line.endswith(("):", ");", "})")) or bool(_STATEMENT.match(line))


def _looks_like_markdown(shown: list[str]) -> bool:
    """A heading, a table, two list items, or links in two lines."""
    if any(HEADING.match(line) for line in shown):
        return True
    if any("|" in row and is_delimiter(line) for row, line in pairwise(shown)):
        return True
    numbers = [found[1] for line in shown if (found := ITEM.match(line))]
    items = len(numbers) if "1" in numbers else numbers.count(None)
    return items > 1 or sum(bool(_LINK.search(line)) for line in shown) > 1
