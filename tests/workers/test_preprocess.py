"""Preprocessing against transformers' own processors, and settings that we do not compute."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis.strategies import integers, sampled_from
from PIL import Image

from datapipe.errors import ItemError, ModelError, ModelNotFoundError
from datapipe.workers.encoders.preprocess import Preprocessing
from datapipe.workers.folder import ModelFolder
from tests.workers.tiny import PROCESSOR

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS: dict[str, dict[str, Any]] = {
    "Beit": {"size": {"height": 24, "width": 30}, "resample": 3},
    "Bit": {"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 22}, "resample": 3},
    "CLIP": {"size": {"shortest_edge": 20}, "crop_size": 20, "resample": 3, "do_center_crop": True},
    "ConvNext": {"size": {"shortest_edge": 21}, "crop_pct": 0.875, "resample": 2},
    "DeiT": {"size": {"height": 25, "width": 25}, "crop_size": {"height": 21, "width": 20}, "resample": 3},
    "MobileNetV2": {"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 20}, "resample": 2},
    "Siglip": {"size": {"height": 16, "width": 24}, "resample": 3},
    "ViT": {"size": {"height": 20, "width": 20}, "resample": 2},
}


def read(folder: Path, settings: dict[str, Any], *, file: str = "preprocessor_config.json") -> Preprocessing:
    (folder / file).write_text(json.dumps(settings))
    return Preprocessing.of(ModelFolder("m", folder))


def input_of(preprocessing: Preprocessing, picture: Image.Image) -> np.ndarray:
    pixels = torch.from_numpy(preprocessing.pixels(picture, index=0).copy())[None]
    return preprocessing.normalised(pixels, dtype=torch.float32)[0].numpy()


@pytest.mark.parametrize("kind", SETTINGS)
@given(width=integers(1, 90), height=integers(1, 90), seed=integers(0, 3))
def test_inputs_are_those_of_the_processor(
    kind: str, width: int, height: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = PROCESSOR | SETTINGS[kind] | {"image_processor_type": f"{kind}ImageProcessor"}
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    expected = processor(Image.fromarray(noise), return_tensors="np", input_data_format="channels_last")["pixel_values"]
    ours = read(tmp_path_factory.getbasetemp(), settings)
    assert ours.size == expected.shape[2:]
    np.testing.assert_allclose(input_of(ours, Image.fromarray(noise)), expected[0], rtol=0, atol=1e-5)


@given(switch=sampled_from(["do_rescale", "do_normalize"]))
def test_a_switch_that_is_off_is_obeyed(switch: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    picture = Image.new("RGB", (32, 32), (10, 20, 30))
    off = input_of(read(tmp_path_factory.getbasetemp(), PROCESSOR | {switch: False}), picture)[:, 0, 0]
    values = np.array([10, 20, 30], np.float32)
    expected = values / 255 if switch == "do_normalize" else (values - [0.5, 0.4, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(off, expected, rtol=1e-5)


def test_old_and_new_spellings_mean_the_same(tmp_path: Path) -> None:
    new = read(tmp_path, PROCESSOR)
    old = PROCESSOR | {"feature_extractor_type": "ViTFeatureExtractor", "image_processor_type": None, "size": 32}
    assert read(tmp_path, old) == new
    assert read(tmp_path, PROCESSOR | {"image_processor_type": "ViTImageProcessorFast"}) == new
    (tmp_path / "preprocessor_config.json").unlink()
    assert read(tmp_path, {"image_processor": PROCESSOR}, file="processor_config.json") == new


def test_a_convnext_of_384_and_more_stretches(tmp_path: Path) -> None:
    settings = PROCESSOR | {"image_processor_type": "ConvNextImageProcessor", "size": 384}
    assert (read(tmp_path, settings).resize, read(tmp_path, settings).crop) == ((384, 384), None)
    assert (read(tmp_path, settings | {"size": 224}).resize, read(tmp_path, settings | {"size": 224}).size) == (
        256,
        (224, 224),
    )


def test_an_elongated_picture_is_refused_before_it_is_stretched(tmp_path: Path) -> None:
    ours = read(tmp_path, PROCESSOR | SETTINGS["CLIP"] | {"image_processor_type": "CLIPImageProcessor"})
    with pytest.raises(ItemError, match="image 4 is too elongated: 1 x 400000 would become 20 x 8000000") as caught:
        ours.pixels(Image.new("RGB", (1, 400_000)), index=4)
    assert caught.value.index == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_processor_type": "SamImageProcessor"}, "the processor SamImageProcessor is not supported; supported"),
        ({"image_processor_type": None}, "the processor None is not supported"),
        ({"do_pad": True}, "the setting 'do_pad' is not supported. Got True"),
        ({"rescale_offset": True}, "the setting 'rescale_offset' is not supported"),
        ({"do_resize": False}, "'do_resize' is off, but the pictures of a batch need one size"),
        ({"size": {"longest_edge": 9}}, "'size' must be a number of pixels, or have 'height' and 'width'"),
        ({"size": {"height": 9, "width": -1}}, "'size' must be a number of pixels"),
        ({"size": True}, "'size' must be a number of pixels"),
        ({"size": {"shortest_edge": 9}}, "'size' has a 'shortest_edge' and nothing is cropped"),
        ({"do_center_crop": True}, "'crop_size' must be a number of pixels"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "'crop_size' must have a 'height' and a 'width'"),
        ({"do_center_crop": True, "crop_size": 40}, "pictures of 32 x 32 cannot be cropped to 40 x 40"),
        ({"crop_pct": 0.9}, "the setting 'crop_pct' is not supported with this processor"),
        ({"resample": 9}, "'resample' must be the number of a Pillow filter, 0 to 5. Got 9"),
        ({"resample": None}, "'resample' must be the number of a Pillow filter"),
        ({"image_mean": [0.5, 0.5]}, "'image_mean' must hold three numbers"),
        ({"image_mean": None}, "'image_mean' must be a number. Got None"),
        ({"image_std": [1, 0, 1]}, "'image_std' must be a positive number. Got 0"),
        ({"rescale_factor": "255"}, "'rescale_factor' must be a positive number. Got '255'"),
    ],
)
def test_a_setting_that_we_do_not_compute_is_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=f"model m: preprocessor_config.json: {message}"):
        read(tmp_path, PROCESSOR | changed)


def test_a_folder_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"has no preprocessor_config\.json"):
        Preprocessing.of(ModelFolder("m", tmp_path))
    with pytest.raises(ModelError, match="its settings are no JSON object"):
        read(tmp_path, [1])  # type: ignore[arg-type]
