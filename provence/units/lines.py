"""Logs and other texts whose unit is the line; what continues an entry has the entry as parent.

    text -> lines -> heads (time, level, ...) and continuations (indented, stack traces) -> units

Nothing here raises.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from provence.units.spans import lines, trim

if TYPE_CHECKING:
    from provence.units.spans import Collector

__all__ = ["ENTRY", "add_lines", "add_log"]

ENTRY = re.compile(
    r"""[\[(<"]?
    (?:\d{4}[-/.]\d\d?[-/.]\d\d?(?!\d)                         # 2024-01-31, 2024/1/31
    |\d\d?[-/. ](?:\d\d?|[A-Z][a-z]{2})[-/. :]\d{2,4}\b        # 31/Jan/2024, 31.01.24
    |(?:[A-Z][a-z]{2}[ ])?[A-Z][a-z]{2}[ ]{1,2}\d\d?[ ]\d\d:\d\d  # Jan 31 10:00, Wed Jan 31 10:00
    |\d\d:\d\d:\d\d\b
    |\d{10}(?:\d{3})?[. ]                                      # seconds or milliseconds since 1970
    |(?:TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|ERR|FATAL|CRITICAL|SEVERE)\b[\]:|\s]
    |(?:trace|debug|info|notice|warn(?:ing)?|error|fatal|critical)[\]:]
    |[IWEF]\d{4}[ ]\d\d:\d\d                                   # glog
    |\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}[ ].{0,60}\[)           # access log
    """,
    re.VERBOSE,
)
"""What a log entry begins with."""

_CONTINUES = re.compile(r"\s|Caused by:|at |\.\.\. \d|Traceback \(|--- |During handling of|The above exception")


def add_lines(to: Collector, start: int, end: int, parent: int | None = None) -> None:
    """Gather every line for itself."""
    for begin, stop in lines(to.text, start, end):
        to.add(begin, stop, "line", parent)


def add_log(to: Collector, start: int, end: int) -> None:
    """Gather the lines of a log.

    Where entries begin with a time or a level, every other line continues the entry before it; elsewhere, a line that
    is indented or belongs to a stack trace does.
    """
    text = to.text
    rows = [(begin, stop) for begin, stop in lines(text, start, end) if not text[begin:stop].isspace() and begin < stop]
    entries = [bool(ENTRY.match(text, *trim(text, *row))) for row in rows]
    dated = any(entries)
    entry: int | None = None
    for (begin, stop), opens in zip(rows, entries, strict=True):
        if opens or (not dated and not _CONTINUES.match(text, begin, stop)):
            entry = to.add(begin, stop, "line")
        else:
            to.add(begin, stop, "line", entry)
            if entry is None and not dated:
                entry = len(to.units) - 1
