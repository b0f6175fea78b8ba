"""What an image file says before a decoder sees it: format, size, orientation, and the same file without its metadata.

JPEG, PNG, WebP, GIF and BMP; everything else is refused. Sizes are read here, so that no decoder allocates for a size
that nobody accepts; metadata is left out, so that a damaged EXIF block or text chunk, of which the web is full, neither
warns nor fails. Damage to the pixels themselves is for the decoder to find. Raises `ContainerError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Container", "ContainerError", "ImageFormat", "inspect"]

ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP"]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers of a JPEG that no length follows."""

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_MARK, _JPEG_SCAN, _JPEG_EXIF = 0xFF, 0xDA, 0xE1
_JPEG_METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
"""Application segments and comments; JFIF (E0) and Adobe (EE), which say how colours are coded, stay."""

_ORIENTATION = 0x0112
_BMP_CORE_HEADER = 12


class ContainerError(ValueError):
    """The bytes are no image of a known format, or their header is damaged."""


@dataclass(frozen=True)
class Container:
    """An image file, read as far as its header.

    Attributes:
        format: Pillow's name of the format.
        width: Pixels, as stored.
        height: Pixels, as stored.
        orientation: EXIF orientation, 1 (as stored) to 8.
        data: The file without what no pixel depends on.
    """

    format: ImageFormat
    width: int
    height: int
    orientation: int
    data: bytes


def inspect(data: bytes) -> Container:
    """Read the header of an image file.

    Raises:
        ContainerError: The format is not one of the five, or the header is cut off or impossible.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(_PNG):
            return _png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _gif(data)
        if data.startswith(b"BM"):
            return _bmp(data)
    except (struct.error, IndexError) as error:
        raise ContainerError("its header is cut off") from error
    raise ContainerError("it is no JPEG, PNG, WebP, GIF or BMP image")


def _jpeg(data: bytes) -> Container:
    kept, exif, size = [data[:2]], b"", None
    end = 2
    for marker, at, end in _segments(data):
        if marker in _JPEG_FRAMES and size is None:
            size = struct.unpack_from(">HH", data, at + 5)
        if marker == _JPEG_EXIF and data[at + 4 : at + 8] == b"Exif":
            exif = exif or data[at + 4 : end]
        if marker not in _JPEG_METADATA:
            kept.append(data[at:end])
    if size is None:
        raise ContainerError("its header states no size")
    return Container("JPEG", size[1], size[0], _orientation(exif), b"".join([*kept, data[end:]]))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment before the first scan; stops at junk, which is left to the decoder."""
    at = 2
    while data[at] == _JPEG_MARK:
        marker = data[at + 1]
        if marker == _JPEG_SCAN:
            return
        if marker == _JPEG_MARK:  # filling
            at += 1
        elif marker in _JPEG_ALONE:
            at += 2
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            yield marker, at, at + 2 + length
            at += 2 + length


def _png(data: bytes) -> Container:
    width, height = struct.unpack_from(">II", data, 16)
    kept, exif = [_PNG], b""
    at = len(_PNG)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if kind == b"eXIf":
            exif = data[at + 8 : at + 8 + length]
        if kind in _PNG_KEPT:
            kept.append(data[at:end])
        if kind == b"IEND":
            break
        at = end
    return Container("PNG", width, height, _orientation(exif), b"".join(kept))


def _webp(data: bytes) -> Container:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[place : place + 3], "little") + 1 for place in (24, 27))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise ContainerError("its header is damaged")
    exif, at = b"", 12
    while at + 8 <= len(data):
        kind = data[at : at + 4]
        (length,) = struct.unpack_from("<I", data, at + 4)
        if kind == b"EXIF":
            exif = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return Container("WEBP", width, height, _orientation(exif), data)


def _gif(data: bytes) -> Container:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[at] != ord(","):  # as the decoder does, skip extensions and junk before the first image
        at += 1
        if data[at - 1] == ord("!"):
            at += 1
            while data[at]:
                at += 1 + data[at]
            at += 1
    left, top, wide, high = struct.unpack_from("<HHHH", data, at + 1)  # a screen grows to hold its image
    width, height = max(width, left + wide), max(height, top + high)
    return Container("GIF", width, height, 1, data)


def _bmp(data: bytes) -> Container:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == _BMP_CORE_HEADER else "<ii", data, 18)
    return Container("BMP", width, abs(height), 1, data)


def _orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory of an EXIF block; 1 where there is none, or the block is damaged."""
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (entries,) = struct.unpack_from(order + "H", block, directory)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", block, directory + 2 + 12 * entry)
            if tag == _ORIENTATION:
                short = kind == 3 and count == 1  # noqa: PLR2004 - type 3 of TIFF is SHORT
                return value if short and 1 <= value <= 8 else 1  # noqa: PLR2004 - as the tag is defined
    except struct.error:
        pass  # a directory that runs out of its block states nothing
    return 1
