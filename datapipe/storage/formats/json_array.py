"""A file that is one JSON array, read as JSON Lines: every element becomes a line of its own, byte for byte as long.

    [ {…}, {…} ]  ->  commas between elements become line breaks, line breaks elsewhere blanks, the brackets blanks

What stands behind the array becomes a line that is no record. A line break inside a string, which JSON forbids, becomes
a tab there, which it forbids too: the element is refused, and its neighbours are read.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datapipe.storage.arrays import Bool, UInt8

__all__ = ["ArrayLines"]

_QUOTE, _BACKSLASH, _COMMA, _BREAK, _RETURN, _TAB, _BLANK = b'"\\,\n\r\t '
_OPENING, _CLOSING = tuple(b"[{"), tuple(b"]}")


class ArrayLines:
    """A stream of the lines of a JSON array.

    Args:
        stream: Bytes from the array's bracket on.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._inside = False
        self._escaping = False
        self._depth = 0

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        found = np.frombuffer(self._stream.read(size), np.uint8).copy()
        if not len(found):
            return b""
        quotes = (found == _QUOTE) & ~self._escaped(found)
        inside: Bool = (np.cumsum(quotes) + self._inside) % 2 == 1
        plain = ~inside & ~quotes
        opening, closing = (plain & np.isin(found, marks) for marks in (_OPENING, _CLOSING))
        depth = np.cumsum(opening.astype(np.int64) - closing) + self._depth
        broken = (found == _BREAK) | (found == _RETURN)
        between = plain & (found == _COMMA) & (depth == 1)
        outer = (opening & (depth == 1) & (found == _OPENING[0])) | (closing & (depth == 0) & (found == _CLOSING[0]))
        found[broken & plain] = _BLANK
        found[broken & inside] = _TAB
        found[between] = _BREAK
        found[outer] = _BLANK
        self._inside, self._depth = bool(inside[-1]), int(depth[-1])
        return found.tobytes()

    def _escaped(self, found: UInt8) -> Bool:
        """Which bytes stand behind an odd number of backslashes."""
        escaped = np.zeros(len(found) + 1, np.bool_)
        escaped[0] = self._escaping
        for at in np.flatnonzero(found == _BACKSLASH).tolist():
            escaped[at + 1] = not escaped[at]
        self._escaping = bool(escaped[-1])
        return escaped[:-1]
