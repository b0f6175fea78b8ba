"""Image files to pictures: RGB, upright, and of a size that was agreed to before anything was decoded.

    bytes -> inspect (format, size) -> Pillow -> orientation -> RGB

What is no image, is damaged or too large becomes an `ItemError` with the item's index. Transparent pixels keep the
colour that is stored under them; colour profiles are not applied; of an animation the first frame counts. 16 bits a
channel become 8 by dropping the lower ones.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ItemError, MissingExtraError
from datapipe.workers.encoders.containers import ContainerError, inspect

if TYPE_CHECKING:
    from PIL.Image import Image

    from datapipe.workers.encoders.containers import Container

__all__ = ["MAX_PIXELS", "decode", "need_pillow"]

MAX_PIXELS = 1 << 26
"""Pixels of a picture: 8192 x 8192. A decoded one holds up to four bytes for each."""


def need_pillow(purpose: str) -> None:
    """Raise `MissingExtraError` unless Pillow is installed."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise MissingExtraError.of("pillow", extra="images", purpose=purpose) from error


def decode(data: bytes, *, index: int, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode one image file.

    Args:
        data: Its bytes.
        index: Place of the item in its request, for the error.
        max_pixels: Larger ones are refused by what their header says.

    Returns:
        A picture in mode RGB, turned the way its EXIF orientation says.

    Raises:
        ItemError: It is no image of a known format, has no pixels or too many, or is damaged; says which.
    """
    try:
        container = inspect(data)
    except ContainerError as error:
        raise ItemError(f"image {index} cannot be read: {error}", index=index) from error
    _check_size(container.width, container.height, index=index, max_pixels=max_pixels)
    try:
        return _pixels(container, index=index, max_pixels=max_pixels)
    except (ItemError, MemoryError):
        raise
    except Exception as error:  # a decoder meets damage with whatever it stumbles over
        message = f"image {index} is a damaged {container.format} file ({_reason(error)})"
        raise ItemError(message, index=index) from error


def _pixels(container: Container, *, index: int, max_pixels: int) -> Image:
    from PIL import Image

    with Image.open(io.BytesIO(container.data), formats=[container.format]) as opened:
        # A file may state two sizes; the decoder goes by its own.
        _check_size(*opened.size, index=index, max_pixels=max_pixels)
        opened.load()
        picture = _upright(opened, container.orientation)
        return _rgb(picture)


def _check_size(width: int, height: int, *, index: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ItemError(f"image {index} has no pixels: {width} x {height}", index=index)
    if width * height > max_pixels:
        raise ItemError(
            f"image {index} is {width} x {height}, which is more than {max_pixels} pixels; scale it down first",
            index=index,
        )


def _upright(picture: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Image) -> Image:
    from PIL import Image

    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif "transparency" in picture.info:  # straight to RGB, Pillow warns of the transparency that it loses
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    return "no decoder knows it" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
