"""Text cut into records, in one pass and bounded memory; CSV and JSONL share it.

bytes -> blocks of whole records | records refused where they stand (longer than `max_line_bytes`, a quote never closed)

A quote that is never closed would swallow the rest of the file: its first line is refused, and reading goes on behind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager

    from datapipe.storage.arrays import Int64
    from datapipe.storage.formats.dialects import Dialect

__all__ = ["Block", "Damaged", "read_records"]

BLOCK_BYTES = 4 << 20
"""Bytes read at a time. A block is at most this and one record long."""

_MOST_UNCLOSED = 20  # each costs a look at the rest of the file
_HEAD_BYTES = 64 << 10


@dataclass(frozen=True)
class Block:
    """Whole records, one after the other.

    Attributes:
        data: Their bytes, line breaks included.
        ends: Where each ends in `data`, int64 (records,), ascending; the last is len(data).
        first: Ordinal of the first one in the file.
    """

    data: bytes
    ends: Int64
    first: int

    def records(self) -> Iterator[bytes]:
        """Each record, line break included."""
        start = 0
        for end in self.ends.tolist():
            yield self.data[start:end]
            start = end

    def without(self, bad: set[int]) -> tuple[bytes, Int64]:
        """Return the bytes of all records but `bad` (positions in the block), and the ordinals of those that stay."""
        if not bad:
            return self.data, self.first + np.arange(len(self.ends))
        kept = [(index, record) for index, record in enumerate(self.records()) if index not in bad]
        ordinals = np.fromiter((self.first + index for index, _ in kept), np.int64, len(kept))
        return b"".join(record for _, record in kept), ordinals


@dataclass(frozen=True)
class Damaged:
    """A record that cannot be handed on: its ordinal, why, and how it begins."""

    ordinal: int
    reason: str
    detail: str
    content: bytes


def read_records(
    open_at: Callable[[int], AbstractContextManager[IO[bytes]]], dialect: Dialect, *, max_bytes: int, start: int = 0
) -> Iterator[Block | Damaged]:
    """Cut a file into records.

    Args:
        open_at: Opens the file's text at a byte; called again only after a quote that is never closed in a long rest.
        dialect: Where records end.
        max_bytes: A longer record is passed over and yielded as `Damaged`.
        start: Byte at which the first record begins.

    Returns:
        Blocks and refused records in file order. Every record has an ordinal, the refused ones too.
    """
    reader = _Reader(open_at, dialect, max_bytes)
    resume: int | None = start
    while resume is not None:
        resume = yield from reader.run(resume)


class _Reader:
    def __init__(
        self, open_at: Callable[[int], AbstractContextManager[IO[bytes]]], dialect: Dialect, max_bytes: int
    ) -> None:
        self._open_at = open_at
        self._dialect = dialect
        self._max_bytes = max_bytes
        self._ordinal = 0
        self._unclosed = 0

    def run(self, start: int) -> Generator[Block | Damaged, None, int | None]:
        """Read from byte `start`; returns the byte at which to go on in a fresh stream, None at the end."""
        with self._open_at(start) as stream:
            rest = b""
            while piece := stream.read(BLOCK_BYTES):
                rest += piece
                ends = self._dialect.ends(rest)
                if len(ends):
                    yield from self._whole(rest, ends)
                    start += int(ends[-1])
                    rest = rest[ends[-1] :]
                if len(rest) > self._max_bytes:
                    head = rest[:_HEAD_BYTES]
                    line = _first_line_end(rest)
                    length, rest, closed = self._pass_over(rest, stream)
                    if not closed and line is not None and self._unclosed < _MOST_UNCLOSED:
                        yield self._never_closed(head[:line])
                        return start + line
                    yield self._damaged("too_large", self._too_long(length, closed=closed), head)
                    start += length
            yield from self._tail(rest)
        return None

    def _whole(self, data: bytes, ends: Int64) -> Iterator[Block | Damaged]:
        """Records that are complete in memory; those over the limit are refused."""
        begin = 0
        lengths = np.diff(ends, prepend=0)
        cuts = [*np.flatnonzero(lengths > self._max_bytes).tolist(), len(ends)]
        for cut in cuts:
            if cut > begin:
                low = int(ends[begin - 1]) if begin else 0
                yield Block(data[low : ends[cut - 1]], ends[begin:cut] - low, self._ordinal)
                self._ordinal += cut - begin
            if cut < len(ends):
                low = int(ends[cut - 1]) if cut else 0
                yield self._damaged("too_large", self._too_long(int(lengths[cut])), data[low : low + _HEAD_BYTES])
            begin = cut + 1

    def _tail(self, rest: bytes) -> Iterator[Block | Damaged]:
        """What stands behind the last line break: a record, or a quote that is never closed and the lines behind it."""
        while rest:
            if self._dialect.closed(rest):
                yield from self._whole(rest, np.array([len(rest)], np.int64))
                return
            line = _first_line_end(rest)
            if line is None or self._unclosed >= _MOST_UNCLOSED:
                line = len(rest)
            yield self._never_closed(rest[:line])
            rest = rest[line:]
            ends = self._dialect.ends(rest)
            if len(ends):
                yield from self._whole(rest, ends)
                rest = rest[ends[-1] :]

    def _pass_over(self, rest: bytes, stream: IO[bytes]) -> tuple[int, bytes, bool]:
        """Drop a record that is too long to hold: its length, what follows it, and whether it ended as a record."""
        skipper = self._dialect.skipper()
        length = 0
        while rest:
            end = skipper.feed(rest)
            if end is not None:
                return length + end, rest[end:], True
            length += len(rest)
            rest = stream.read(BLOCK_BYTES)
        return length, b"", skipper.closed()

    def _never_closed(self, line: bytes) -> Damaged:
        self._unclosed += 1
        return self._damaged("undecodable", "a quote is opened and never closed", line[:_HEAD_BYTES])

    def _too_long(self, length: int, *, closed: bool = True) -> str:
        why = "" if closed else "; a quote is opened and never closed"
        return f"a record of {length:,} bytes, more than max_line_bytes={self._max_bytes:,}{why}"

    def _damaged(self, reason: str, detail: str, content: bytes) -> Damaged:
        self._ordinal += 1
        return Damaged(self._ordinal - 1, reason, detail, content)


def _first_line_end(data: bytes) -> int | None:
    """Position after the first line break, or None where nothing follows one."""
    found = re.search(rb"\r\n?|\n", data)
    return found.end() if found is not None and found.end() < len(data) else None
