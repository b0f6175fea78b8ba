"""Image files for tests, good and bad, made from the shipped ones."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path


def shipped(data: Path) -> list[bytes]:
    """The 60 images of the shipped Fashion-MNIST sample, PNG files of 28 x 28."""
    files: list[bytes] = pq.read_table(data / "fashion_mnist_60.parquet")["image"].to_pylist()
    return files


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as an image file."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def animated(images: list[bytes], kind: str) -> bytes:
    """The images as the frames of one file."""
    first, *more = [opened(image) for image in images]
    return encoded(first, kind, save_all=True, append_images=more)


def claimed(width: int, height: int) -> bytes:
    """A PNG whose header claims that size and that holds a hundred bytes of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def hostile(images: list[bytes]) -> dict[str, tuple[bytes | None, str]]:
    """Image files that cannot be used, by what is wrong with them, each with the reason to expect."""
    picture = opened(images[0])
    return {
        "null": (None, "null_image"),
        "empty": (b"", "not_an_image"),
        "text": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        "tiff": (encoded(picture, "TIFF"), "not_an_image"),
        "bomb": (claimed(60_000, 60_000), "image_too_large"),
        "no pixels": (claimed(0, 9), "image_damaged"),
        "elongated": (claimed(1, 900), "image_elongated"),
        "promises more": (claimed(500, 500), "image_damaged"),
        "cut png": (images[0][: len(images[0]) // 2], "image_damaged"),
        "cut jpeg": (encoded(picture, "JPEG")[:-40], "image_damaged"),
        "cut header": (images[0][:20], "image_damaged"),
        "gif": (animated(images[:3], "GIF"), "image_animated"),
        "webp": (animated(images[:3], "WEBP"), "image_animated"),
        "apng": (animated(images[:3], "PNG"), "image_animated"),
        "cmyk": (encoded(picture.convert("CMYK"), "JPEG"), "image_mode"),
    }
