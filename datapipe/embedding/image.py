"""Image files: whether they can be used, their unit vectors, and small pictures of them for a page.

    bytes -> check_image -> (reason, detail) | None        bytes -> embed_images -> float32 (images, dim)
    bytes -> thumbnail -> a small JPEG

A file is refused by what its header says before anything is decoded, and by what its decoder finds. Runs anywhere that
Pillow is installed.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ItemError, VectorError
from datapipe.workers.encoders.containers import ContainerError, inspect
from datapipe.workers.encoders.picture import MAX_PIXELS, decode, need_pillow
from datapipe.workers.tasks.image import ImageItem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Float32
    from datapipe.workers.encoders.containers import Container
    from datapipe.workers.protocol import Worker

__all__ = ["MAX_RATIO", "REASONS", "THUMBNAIL_PIXELS", "check_image", "embed_images", "need_pillow", "thumbnail"]

MAX_RATIO = 100
"""Times that one side of an image may be as long as the other: models make the shorter side as long as their input."""

THUMBNAIL_PIXELS = 112
"""Longest side of a thumbnail."""

REASONS = (
    *("not_an_image", "image_too_large", "image_elongated", "image_damaged", "image_animated", "image_mode"),
    *("null_image", "image_missing", "image_outside", "too_large"),
)
"""Why an image is refused: what `check_image` finds, then what keeps it from being read."""

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I", "I;16", "I;16B", "I;16L"})
_WEBP_ANIMATED = 0x02
_QUALITY = 82
_TINY = np.float32(1e-12)


def check_image(data: bytes) -> tuple[str, str] | None:
    """Return why an image file cannot be used, as reason and detail, else None. Decodes it; safe from any thread.

    `not_an_image`: no JPEG, PNG, WebP, GIF or BMP. `image_too_large`: more than `MAX_PIXELS` pixels by its header, as a
    decompression bomb says too; nothing was decoded. `image_elongated`: sides beyond `MAX_RATIO`. `image_damaged`: cut
    off, without pixels, or its decoder fails. `image_animated`: several frames, of which none stands for all.
    `image_mode`: colours that only a profile explains (CMYK).
    """
    try:
        container = inspect(data)
    except ContainerError as error:
        known = data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
        return ("image_damaged" if known else "not_an_image"), f"{error} ({len(data):,} bytes)"
    width, height = container.width, container.height
    if width * height > MAX_PIXELS:
        told = f"{width} x {height} is more than {MAX_PIXELS:,} pixels; scale it down"
        return "image_too_large", told
    if width > MAX_RATIO * height or height > MAX_RATIO * width:
        told = f"{width} x {height}: one side is more than {MAX_RATIO} times the other; crop or cut it"
        return ("image_elongated", told) if width and height else ("image_damaged", f"{width} x {height} has no pixels")
    if _is_animated(container, data):
        return "image_animated", f"an animated {container.format}; take the frame that counts"
    try:
        decode(data, index=0)
    except ItemError as error:
        return "image_damaged", f"the image {str(error).removeprefix('image 0 ')}"
    mode = _mode(container)
    if mode not in _MODES:
        return "image_mode", f"its pixels are {mode}, whose colours are not known here; convert it to RGB"
    return None


def embed_images(worker: Worker, images: Sequence[bytes], *, model: str, batch: int = 1) -> Float32:
    """Embed image files with a vision model of the worker.

    Args:
        worker: Where the model runs.
        images: At least one image file.
        model: Its name at the worker.
        batch: The call is filled up to a multiple of so many images by repeating the last one, so that a worker whose
            batches hold that many computes every image in a batch of one size: its bits then depend on nothing else.

    Returns:
        Unit vectors, float32 (images, dim), in the order of the images.

    Raises:
        ItemError: An image cannot be used; holds its index.
        ModelError: The model is unknown, no vision model, or cannot be loaded.
        WorkerError: The device failed.
        VectorError: There are no images, or an image's vector has no direction; names its place.
    """
    if not images:
        raise VectorError("there are no images to embed, so the width of the vectors is unknown")
    items = [ImageItem(image) for image in images]
    items += [items[-1]] * (-len(items) % batch)
    results = worker.run("embed_image", items, model=model)[: len(images)]
    vectors = np.stack([result.vector for result in results])
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float32))
    if not (lengths > _TINY).all():
        raise VectorError(f"the vector of image {int((lengths > _TINY).argmin())} by model {model} has length 0")
    return vectors


def thumbnail(data: bytes, *, side: int = THUMBNAIL_PIXELS) -> bytes:
    """Return a small JPEG of an image file: at most `side` pixels long, never larger than the image.

    Raises:
        ItemError: It is no image that can be decoded.
    """
    from PIL.Image import Resampling

    picture = decode(data, index=0)
    picture.thumbnail((side, side), resample=Resampling.BOX, reducing_gap=None)
    found = io.BytesIO()
    picture.save(found, format="JPEG", quality=_QUALITY, subsampling=0)
    return found.getvalue()


def _mode(container: Container) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(container.data), formats=[container.format]) as opened:
        return str(opened.mode)


def _is_animated(container: Container, data: bytes) -> bool:
    """Whether a file says that it has several frames."""
    if container.format == "WEBP":
        return data[12:16] == b"VP8X" and len(data) > 20 and bool(data[20] & _WEBP_ANIMATED)  # noqa: PLR2004
    if container.format == "PNG":
        return _has_chunk(data, b"acTL")
    return container.format == "GIF" and _gif_frames(data) > 1


def _has_chunk(png: bytes, wanted: bytes) -> bool:
    """Whether a PNG has such a chunk before its pixels."""
    at = 8
    while at + 8 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind = png[at + 4 : at + 8]
        if kind == wanted:
            return True
        if kind == b"IDAT":
            return False
        at += 12 + length
    return False


def _gif_frames(data: bytes) -> int:
    """Images of a GIF, counted up to two; damage ends the count and is left to the decoder."""
    at, frames = 13, 0
    if data[10] & 0x80:
        at += 3 << (data[10] & 7) + 1
    try:
        while frames < 2:  # noqa: PLR2004 - two are an animation
            block = data[at]
            if block == ord("!"):
                at = _after_blocks(data, at + 2)
            elif block == ord(","):
                frames += 1
                at += 10 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
                at = _after_blocks(data, at + 1)
            else:
                return frames
    except IndexError:
        return frames
    return frames


def _after_blocks(data: bytes, at: int) -> int:
    """Where the sub-blocks that begin at `at` end."""
    while data[at]:
        at += 1 + data[at]
    return at + 1
