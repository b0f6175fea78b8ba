"""Image files of every kind, whole, damaged and hostile: upright RGB comes out, or an error that names the item."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import warnings
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis.strategies import binary, integers, sampled_from
from PIL import Image, ImageOps

from datapipe.errors import ItemError, MissingExtraError
from datapipe.workers.encoders.containers import inspect
from datapipe.workers.encoders.picture import decode, need_pillow

if TYPE_CHECKING:
    from pathlib import Path

MODES = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["RGB", "L", "P", "1", "RGBA", "LA"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["RGB", "L", "P"],
    "BMP": ["RGB", "L", "P", "1"],
}
FORMATS = list(MODES)
NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def file_of(kind: str, *, mode: str = "RGB", exif: bytes = b"") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(sink, kind, **({"exif": exif} if exif else {}))
    return sink.getvalue()


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description before the orientation"
    exif[0x0112] = orientation
    return exif.tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, pixels: bytes = b"", *, before: bytes = b"", grey_bits: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, grey_bits, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + header + before + data + chunk(b"IEND", b"")


def test_a_real_image_becomes_an_upright_rgb_picture(data: Path) -> None:
    (image,) = pq.read_table(data / "fashion_mnist_60.parquet")["image"].slice(0, 1).to_pylist()
    picture = decode(image, index=0)
    assert (picture.mode, picture.size) == ("RGB", (28, 28))
    assert np.array_equal(np.asarray(picture)[..., 0], np.asarray(Image.open(io.BytesIO(image))))


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind in FORMATS for mode in MODES[kind]])
def test_every_format_and_mode_gives_the_pixels_of_pillow(kind: str, mode: str) -> None:
    data = file_of(kind, mode=mode)
    expected = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(decode(data, index=0)), np.asarray(expected.convert("RGB")))
    assert inspect(data).format == kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_the_way_their_exif_says(kind: str, orientation: int) -> None:
    data = file_of(kind, exif=exif_of(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(data, index=0)), np.asarray(expected))
    assert decode(data, index=0).size == ((37, 53) if orientation > 4 else (53, 37))


def test_sixteen_bits_become_eight() -> None:
    values = np.array([[0, 255, 256, 65_535]], dtype=np.uint16)
    data = png_of(4, 1, b"\0" + values.astype(">u2").tobytes(), grey_bits=16)
    assert np.asarray(decode(data, index=0))[0, :, 0].tolist() == [0, 0, 1, 255]


@given(kind=sampled_from(FORMATS), place=integers(0, 10_000), put=binary(max_size=4), cut=integers(0, 4))
def test_damage_anywhere_gives_a_picture_or_an_item_error_and_no_warning(
    kind: str, place: int, put: bytes, cut: int
) -> None:
    whole = file_of(kind, exif=exif_of(6) if kind in {"JPEG", "PNG", "WEBP"} else b"")
    place %= len(whole)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with suppress(ItemError):
            assert decode(whole[:place] + put + whole[place + cut :], index=3).mode == "RGB"
    assert not warned


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_is_cut_off_is_refused(kind: str) -> None:
    data = file_of(kind)
    with pytest.raises(ItemError, match=rf"image 5 is a damaged {kind} file \("):
        decode(data[: len(data) // 2], index=5)
    with pytest.raises(ItemError, match=r"image 5 cannot be read: its header is (cut off|damaged)"):
        decode(data[:12], index=5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "image 0 cannot be read: it is no JPEG, PNG, WebP, GIF or BMP image"),
        (b"%PDF-1.7", "image 0 cannot be read: it is no JPEG, PNG, WebP, GIF or BMP image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is no JPEG, PNG, WebP, GIF or BMP image"),
        (b"RIFF\0\0\0\0WEBPXXXX" + bytes(20), "image 0 cannot be read: its header is damaged"),
        (b"\xff\xd8\xff\xda", "image 0 cannot be read: its header states no size"),
        (png_of(0, 7), "image 0 has no pixels: 0 x 7"),
        (png_of(8, 8, bytes(72))[:40] + bytes(30), "image 0 is a damaged PNG file"),
    ],
    ids=["empty", "pdf", "svg", "webp", "jpeg", "no pixels", "png"],
)
def test_what_is_no_image_is_refused_by_its_reason(data: bytes, message: str) -> None:
    with pytest.raises(ItemError, match=message):
        decode(data, index=0)


def test_tiff_is_not_on_the_list() -> None:
    with pytest.raises(ItemError, match="it is no JPEG, PNG, WebP, GIF or BMP image"):
        decode(file_of("TIFF"), index=0)


@pytest.mark.parametrize(
    "bomb",
    [
        png_of(60_000, 60_000),
        png_of(12_000, 8_000),  # Pillow would warn of this one, and refuse the one above
        b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, 60_000, 60_000, 3) + bytes(9) + b"\xff\xda",
        b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0),
        b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0),
        b"BM" + bytes(12) + struct.pack("<Iii", 40, 60_000, -60_000) + bytes(30),
        b"RIFF" + bytes(4) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\x00\xff\xff\x00",
        b"RIFF" + bytes(4) + b"WEBPVP8L" + bytes(4) + b"\x2f" + struct.pack("<I", 0x0FFFFFFF),
    ],
    ids=["png", "smaller png", "jpeg", "gif", "gif with a larger image", "bmp", "webp", "lossless webp"],
)
def test_a_decompression_bomb_is_refused_before_anything_is_decoded(bomb: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ItemError, match=r"image 2 is \d+ x \d+, which is more than 67108864 pixels") as caught:
        decode(bomb, index=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.index == 2
    assert peak < 1 << 20


def test_a_second_size_that_only_the_decoder_sees_is_checked_too() -> None:
    small, large = (png_of(size, size)[8:33] for size in (8, 9_000))
    with pytest.raises(ItemError, match="image 0 is 9000 x 9000, which is more than"):
        decode(b"\x89PNG\r\n\x1a\n" + small + large + png_of(8, 8, bytes(72))[33:], index=0)


def test_damaged_metadata_neither_warns_nor_fails() -> None:
    broken = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHII", 0x011A, 5, 1, 9_999)
    jpeg = file_of("JPEG", exif=broken)
    animation = png_of(8, 8, bytes(72), before=chunk(b"acTL", struct.pack(">II", 0, 0)))
    text = png_of(8, 8, bytes(72), before=chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1 << 22))))
    sink = io.BytesIO()
    Image.fromarray(NOISE).quantize(16).save(sink, "PNG", transparency=bytes(range(16)))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for data in (jpeg, animation, text, sink.getvalue()):
            decode(data, index=0)
    assert not warned


def test_without_pillow_the_pip_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"model m needs pillow.*pip install 'secateur\[images\]'"):
        need_pillow("model m")
