"""Where records of text end: at line feeds, or as CSV has it.

A CSV record ends at a line break outside quotes. A quote opens only at the start of a field, as Arrow's parser has it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from datapipe.storage.arrays import Int64

__all__ = ["CsvDialect", "Dialect", "LineDialect", "Skipper"]

_LINE_FEED, _CARRIAGE_RETURN = b"\n"[0], b"\r"[0]


class Dialect(Protocol):
    """Where records end."""

    def ends(self, data: bytes) -> Int64:
        """Ends of the whole records at the start of `data`, int64, ascending."""

    def closed(self, rest: bytes) -> bool:
        """Whether `rest`, the last bytes of a file, which hold no whole record, are one."""

    def skipper(self) -> Skipper:
        """Return a finder of the end of one record that is too long to hold."""


class Skipper(Protocol):
    """Finds the end of a record in pieces that come one after the other."""

    def feed(self, data: bytes) -> int | None:
        """Position after the record in `data`; None if it goes on."""

    def closed(self) -> bool:
        """Whether the record may end here, with the file."""


class LineDialect:
    """A record a line, ended by a line feed."""

    def ends(self, data: bytes) -> Int64:
        """See `Dialect`."""
        return np.flatnonzero(np.frombuffer(data, np.uint8) == _LINE_FEED).astype(np.int64) + 1

    def closed(self, rest: bytes) -> bool:
        """See `Dialect`."""
        return True

    def skipper(self) -> _LineSkipper:
        """See `Dialect`."""
        return _LineSkipper()


class _LineSkipper:
    def feed(self, data: bytes) -> int | None:
        return data.find(b"\n") + 1 or None

    def closed(self) -> bool:
        return True


class CsvDialect:
    """Fields between delimiters, in quotes where they hold a delimiter, a quote (doubled) or a line break.

    Args:
        delimiter: One byte.
    """

    def __init__(self, delimiter: bytes = b",") -> None:
        mark = re.escape(delimiter)
        field = rb'(?:"(?:[^"]++|"")*+"[^%b\r\n]*+|[^"%b\r\n][^%b\r\n]*+|)' % (mark, mark, mark)
        line = rb"%b(?:%b%b)*+" % (field, mark, field)
        self.delimiter = delimiter
        self._record = re.compile(line + rb"(?:\r\n?|\n)")
        self._last = re.compile(line + rb"\Z")

    def ends(self, data: bytes) -> Int64:
        """See `Dialect`."""
        if data.endswith(b"\r"):  # a line feed may follow
            data = data[:-1]
        if b'"' not in data:
            return _line_ends(data)
        found = []
        end = 0
        # Not finditer: behind a quote that this block does not close, it would try each byte for the start of a record.
        while (match := self._record.match(data, end)) is not None:
            end = match.end()
            found.append(end)
        return np.array(found, np.int64)

    def closed(self, rest: bytes) -> bool:
        """See `Dialect`."""
        return self._last.match(rest.removesuffix(b"\r")) is not None

    def skipper(self) -> _CsvSkipper:
        """See `Dialect`."""
        return _CsvSkipper(self.delimiter)


class _CsvSkipper:
    """The states of `CsvDialect` one field at a time, for records of which only the end matters."""

    def __init__(self, delimiter: bytes) -> None:
        self._stop = re.compile(rb"[%b\r\n]" % re.escape(delimiter))
        self._state = "start"

    def feed(self, data: bytes) -> int | None:
        at = 0
        while at < len(data):
            here = data[at : at + 1]
            if self._state == "return":
                return at + (here == b"\n")
            if self._state == "quoted":
                at = data.find(b'"', at) + 1 or len(data) + 1
                self._state = "quoted" if at > len(data) else "quote"
            elif here == b'"' and self._state in {"start", "quote"}:
                self._state = "quoted"
                at += 1
            else:
                stop = self._stop.search(data, at)
                if stop is None:
                    self._state = "plain"
                    return None
                at = stop.end()
                if stop.group() == b"\n":
                    return at
                self._state = "return" if stop.group() == b"\r" else "start"
        return None

    def closed(self) -> bool:
        return self._state != "quoted"


def _line_ends(data: bytes) -> Int64:
    """Ends of lines that close with a line feed, a carriage return, or both."""
    if b"\r" not in data:
        return LineDialect().ends(data)
    codes = np.frombuffer(data, np.uint8)
    ends = codes == _LINE_FEED
    lone = codes == _CARRIAGE_RETURN
    lone[:-1] &= ~ends[1:]
    return np.flatnonzero(ends | lone).astype(np.int64) + 1
