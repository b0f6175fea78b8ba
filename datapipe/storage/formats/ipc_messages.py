"""How many rows and decoded bytes the messages of an Arrow IPC file or stream hold, without decoding any.

An IPC message is a flatbuffer and a body. Of a compressed buffer in the body, the first eight bytes are the length
that it unpacks to (-1: it is stored as it is). Tables and fields as in Arrow's format/Message.fbs and File.fbs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FILE_MAGIC", "Found", "survey"]

FILE_MAGIC = b"ARROW1"

_RECORD_BATCH, _DICTIONARY_BATCH = "record batch", "dictionary"
_BUFFER = struct.Struct("<qq")
_LENGTH = struct.Struct("<q")
_BLOCK = struct.Struct("<qi4xq")
_TAIL = struct.Struct("<i6s")
_DICTIONARIES_SLOT, _BATCHES_SLOT = 2, 3
_BODY_CODEC_SLOT, _BUFFERS_SLOT, _ROWS_SLOT, _HEADER_SLOT, _DATA_SLOT = 3, 2, 0, 2, 1


@dataclass(frozen=True)
class Found:
    """A record batch or dictionary: its rows and the bytes that its buffers decode to."""

    rows: int
    nbytes: int
    is_dictionary: bool


def survey(stream: Any, *, size: int) -> Iterator[Found]:
    """Look at each message of an Arrow IPC file or stream.

    Args:
        stream: An Arrow input file, at its beginning.
        size: Its bytes.

    Raises:
        ValueError: A message is truncated or contradicts itself.
    """
    is_file = bytes(stream.read(len(FILE_MAGIC))) == FILE_MAGIC
    stream.seek(0)
    for message in _of_file(stream, size) if is_file else _of_stream(stream):
        if message.type in {_RECORD_BATCH, _DICTIONARY_BATCH}:
            try:
                yield _look(message)
            except (struct.error, IndexError) as error:
                raise ValueError(f"a message is damaged: {error}") from error


def _of_stream(stream: Any) -> Iterator[Any]:
    reader = pa.ipc.MessageReader.open_stream(stream)
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def _of_file(stream: Any, size: int) -> Iterator[Any]:
    """The messages that the footer points to."""
    tail = _TAIL.size
    stream.seek(max(0, size - tail))
    length, magic = _TAIL.unpack(stream.read(tail))
    if magic != FILE_MAGIC or not 0 < length <= size - tail:
        raise ValueError("it does not end in a footer")
    stream.seek(size - tail - length)
    try:
        footer = _Table.root(bytes(stream.read(length)))
        blocks = [block for slot in (_DICTIONARIES_SLOT, _BATCHES_SLOT) for block in footer.structs(slot, _BLOCK)]
    except (struct.error, IndexError) as error:
        raise ValueError(f"its footer is damaged: {error}") from error
    for offset, _, _ in blocks:
        stream.seek(offset)
        yield pa.ipc.read_message(stream)


def _look(message: Any) -> Found:
    table = _Table.root(bytes(message.metadata)).table(_HEADER_SLOT)
    is_dictionary = message.type == _DICTIONARY_BATCH
    if table is not None and is_dictionary:
        table = table.table(_DATA_SLOT)
    if table is None:
        raise ValueError("a message of the stream has no header")
    rows = table.number(_ROWS_SLOT)
    buffers = table.structs(_BUFFERS_SLOT, _BUFFER)
    if table.table(_BODY_CODEC_SLOT) is None:
        return Found(rows, sum(length for _, length in buffers), is_dictionary)
    body = memoryview(message.body if message.body is not None else b"")
    nbytes = 0
    for offset, length in buffers:
        unpacked = _LENGTH.unpack_from(body, offset)[0] if length else 0
        nbytes += length if unpacked < 0 else unpacked
    return Found(rows, nbytes, is_dictionary)


class _Table:
    """A flatbuffer table: its fields are found through a table of offsets, 0 for a field left out."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position
        self._offsets = position - struct.unpack_from("<i", data, position)[0]

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def number(self, slot: int) -> int:
        at = self._field(slot)
        return 0 if at is None else int(_LENGTH.unpack_from(self._data, at)[0])

    def table(self, slot: int) -> _Table | None:
        at = self._field(slot)
        return None if at is None else _Table(self._data, self._pointed(at))

    def structs(self, slot: int, layout: struct.Struct) -> list[tuple[int, ...]]:
        at = self._field(slot)
        if at is None:
            return []
        start = self._pointed(at)
        count = struct.unpack_from("<I", self._data, start)[0]
        found = self._data[start + 4 : start + 4 + count * layout.size]
        if len(found) != count * layout.size:
            raise IndexError("a vector ends behind its message")
        return list(layout.iter_unpack(found))

    def _field(self, slot: int) -> int | None:
        size = struct.unpack_from("<H", self._data, self._offsets)[0]
        place = 4 + 2 * slot
        if place >= size:
            return None
        offset = struct.unpack_from("<H", self._data, self._offsets + place)[0]
        return self._position + offset if offset else None

    def _pointed(self, at: int) -> int:
        return at + int(struct.unpack_from("<I", self._data, at)[0])
