"""Image files are checked before they are decoded, embedded in their order, and shown small."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datapipe.embedding.image import MAX_RATIO, REASONS, check_image, embed_images, thumbnail
from datapipe.errors import ItemError, VectorError
from datapipe.workers.spec import ModelSpec
from datapipe.workers.worker import LocalWorker
from tests.conftest import DATA
from tests.pictures import encoded, hostile, opened, shipped
from tests.workers.tiny import vision_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = shipped(DATA)
HOSTILE = hostile(IMAGES)
KINDS = [encoded(opened(IMAGES[0]), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalWorker]:
    folder = tmp_path_factory.mktemp("vit")
    vision_folder(folder, "vit")
    spec = ModelSpec("m", str(folder), task="embed_image", dtype="float32")
    with LocalWorker([spec], device="cpu", token_budget=1 << 30, max_items=8) as worker:
        yield worker


def test_the_shipped_images_and_the_usual_kinds_can_be_used() -> None:
    assert [check_image(image) for image in [*IMAGES, *KINDS]] == [None] * 65


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_the_modes_that_have_known_colours_can_be_used(mode: str) -> None:
    grey = np.arange(400, dtype=np.uint16).reshape(20, 20) * 150
    picture = Image.fromarray(grey) if mode == "I;16" else opened(IMAGES[0]).convert(mode)
    assert check_image(encoded(picture, "PNG")) is None


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - {"null"}))
def test_an_image_that_cannot_be_used_is_refused_with_its_reason(name: str) -> None:
    image, reason = HOSTILE[name]
    assert image is not None
    found = check_image(image)
    assert found is not None
    assert found[0] == reason
    assert found[0] in REASONS


def test_a_bomb_is_refused_by_its_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    bomb = HOSTILE["bomb"][0]
    assert bomb is not None
    told = "60000 x 60000 is more than 67,108,864 pixels; scale it down"
    assert check_image(bomb) == ("image_too_large", told)


def test_sides_may_differ_so_much_and_no_more() -> None:
    assert check_image(encoded(Image.new("L", (2, 2 * MAX_RATIO)), "PNG")) is None
    found = check_image(encoded(Image.new("L", (2, 2 * MAX_RATIO + 1)), "PNG"))
    assert found is not None
    assert found[0] == "image_elongated"


@settings(max_examples=150)
@given(
    kind=st.sampled_from(KINDS),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    end=st.integers(0, 3000),
)
def test_whatever_the_bytes_are_an_image_is_refused_or_can_be_shown(
    kind: bytes, changes: list[tuple[int, int]], end: int
) -> None:
    spoiled = bytearray(kind[:end])
    for place, value in changes:
        if place < len(spoiled):
            spoiled[place] = value
    found = check_image(bytes(spoiled))
    if found is None:
        assert max(Image.open(io.BytesIO(thumbnail(bytes(spoiled)))).size) <= 112
    else:
        assert found[0] in REASONS


def test_vectors_are_of_unit_length_and_do_not_depend_on_what_is_embedded_beside(worker: LocalWorker) -> None:
    vectors = embed_images(worker, IMAGES[:21], model="m", batch=8)
    assert vectors.shape == (21, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    order = np.random.default_rng(0).permutation(21)
    turned = embed_images(worker, [IMAGES[i] for i in order], model="m", batch=8)
    assert np.array_equal(turned, vectors[order])
    assert np.array_equal(embed_images(worker, IMAGES[3:5], model="m", batch=8), vectors[3:5])


def test_what_cannot_be_embedded_is_told(worker: LocalWorker) -> None:
    with pytest.raises(VectorError, match="there are no images to embed"):
        embed_images(worker, [], model="m")
    with pytest.raises(ItemError, match="image 1 cannot be read: it is no JPEG") as caught:
        embed_images(worker, [IMAGES[0], b"nothing"], model="m", batch=8)
    assert caught.value.index == 1


def test_a_thumbnail_keeps_the_proportions_and_never_grows() -> None:
    wide = thumbnail(encoded(opened(IMAGES[0]).resize((400, 200)), "PNG"))
    assert Image.open(io.BytesIO(wide)).size == (112, 56)
    assert Image.open(io.BytesIO(thumbnail(IMAGES[0]))).size == (28, 28)
    assert thumbnail(IMAGES[0]) == thumbnail(IMAGES[0])
    with pytest.raises(ItemError, match="cannot be read"):
        thumbnail(b"nothing")
