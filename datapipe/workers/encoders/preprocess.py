"""Pictures to the pixels that a vision model expects, as its folder says.

    picture -> resize -> central crop -> uint8 (host) -> scale, mean, deviation (device)

Read from preprocessor_config.json (or the `image_processor` of a processor_config.json). The arithmetic is that of
transformers' processors on Pillow, which resample in 8 bits. Settings that we do not compute are refused, never
skipped: a vector that silently differs from the model's own is worse than none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from datapipe.errors import ItemError, ModelError, ModelNotFoundError
from datapipe.workers.encoders.picture import MAX_PIXELS

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

    from datapipe.workers.folder import ModelFolder

__all__ = ["Preprocessing"]


@dataclass(frozen=True)
class _Kind:
    """A processor of transformers that we compute.

    Attributes:
        sides: What a size given as one number means.
        crops: Whether the centre is cropped where the settings do not say.
    """

    sides: Literal["square", "shortest", "convnext"]
    crops: bool


_KINDS = {
    "Beit": _Kind("square", crops=False),
    "Bit": _Kind("shortest", crops=True),
    "CLIP": _Kind("shortest", crops=True),
    "ConvNext": _Kind("convnext", crops=False),
    "DeiT": _Kind("square", crops=True),
    "MobileNetV1": _Kind("shortest", crops=True),
    "MobileNetV2": _Kind("shortest", crops=True),
    "Siglip": _Kind("square", crops=False),
    "ViT": _Kind("square", crops=False),
}
_SUFFIXES = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
_READ = frozenset(
    {
        "crop_pct",
        "crop_size",
        "do_center_crop",
        "do_normalize",
        "do_rescale",
        "do_resize",
        "feature_extractor_type",
        "image_mean",
        "image_processor_type",
        "image_std",
        "resample",
        "rescale_factor",
        "size",
    }
)
_WITHOUT_EFFECT = frozenset(
    {
        "_valid_processor_keys",
        "auto_map",
        "data_format",
        "device",
        "disable_grouping",
        "do_convert_rgb",  # pictures come as RGB
        "do_reduce_labels",
        "input_data_format",
        "processor_class",
        "return_tensors",
    }
)
_CONVNEXT_WARPS_FROM = 384
_CHANNELS = 3
_FILTERS = range(6)
"""Pillow's resampling filters by number: nearest, Lanczos, bilinear, bicubic, box, Hamming."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the input of a vision model.

    Attributes:
        resize: Height and width that every picture is stretched to, or the length of its shorter side.
        crop: Height and width of the centre that is kept; None keeps all, which only a stretched picture can.
        resample: Number of Pillow's filter.
        scale: What a value of 0 to 255 is multiplied by.
        mean: Subtracted after that, one a channel.
        std: Divided by after that, one a channel.
    """

    resize: tuple[int, int] | int
    crop: tuple[int, int] | None
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, folder: ModelFolder) -> Preprocessing:
        """Read the settings of `folder`.

        Raises:
            ModelNotFoundError: There are none.
            ModelError: A setting is missing, impossible, or one that we do not compute; names it.
        """
        settings = folder.json("preprocessor_config.json")
        if settings is None:
            settings = (folder.json("processor_config.json") or {}).get("image_processor")
        if settings is None:
            raise ModelNotFoundError(f"model {folder.name}: {folder.root} has no preprocessor_config.json")
        return _Reader(folder, settings).read()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        if self.crop is not None:
            return self.crop
        return self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)

    def pixels(self, picture: Image, *, index: int) -> NDArray[np.uint8]:
        """Resize and crop, uint8 (height, width, 3).

        Args:
            picture: In mode RGB.
            index: Place of the item in its request, for the error.

        Raises:
            ItemError: The picture is so elongated that it would be too large once its shorter side fits.
        """
        height, width = self._resized(picture.width, picture.height)
        if height * width > MAX_PIXELS:
            message = (
                f"image {index} is too elongated: {picture.width} x {picture.height} would become {width} x {height}"
            )
            raise ItemError(message, index=index)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), resample=self.resample)
        kept_height, kept_width = self.size
        if (kept_width, kept_height) != picture.size:
            top, left = (height - kept_height) // 2, (width - kept_width) // 2
            picture = picture.crop((left, top, left + kept_width, top + kept_height))
        return np.asarray(picture)

    def normalised(self, pixels: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
        """Scale and shift on the device, (pictures, 3, height, width) with channels last in memory.

        Args:
            pixels: uint8 (pictures, height, width, 3).
            dtype: Of the result; computed in float32.
        """
        import torch

        mean, std = (torch.tensor(values, device=pixels.device) for values in (self.mean, self.std))
        return pixels.float().mul_(self.scale).sub_(mean).div_(std).permute(0, 3, 1, 2).to(dtype)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize
        if width <= height:
            return self.resize * height // width, self.resize
        return self.resize, self.resize * width // height


@dataclass(frozen=True)
class _Reader:
    folder: ModelFolder
    settings: dict[str, Any]

    def read(self) -> Preprocessing:
        if not isinstance(self.settings, dict):
            raise self._refusal("its settings are no JSON object")
        kind = self._kind()
        for key, value in self.settings.items():
            if key not in _READ | _WITHOUT_EFFECT and value not in (None, False, [], {}):
                raise self._refusal(f"the setting {key!r} is not supported. Got {value!r}")
        if not self._switch("do_resize", default=True):
            raise self._refusal("'do_resize' is off, but the pictures of a batch need one size")
        resize, crop = self._geometry(kind)
        resample = self.settings.get("resample")
        if not isinstance(resample, int) or resample not in _FILTERS:
            raise self._refusal(f"'resample' must be the number of a Pillow filter, 0 to 5. Got {resample!r}")
        rescaled, shifted = (self._switch(key, default=True) for key in ("do_rescale", "do_normalize"))
        return Preprocessing(
            resize=resize,
            crop=crop,
            resample=int(resample),
            scale=self._number(self.settings.get("rescale_factor", 1 / 255), "rescale_factor") if rescaled else 1.0,
            mean=self._channels("image_mean") if shifted else (0.0,) * _CHANNELS,
            std=self._channels("image_std") if shifted else (1.0,) * _CHANNELS,
        )

    def _kind(self) -> _Kind:
        named = str(self.settings.get("image_processor_type") or self.settings.get("feature_extractor_type"))
        for suffix in _SUFFIXES:
            if named.endswith(suffix) and named.removesuffix(suffix) in _KINDS:
                return _KINDS[named.removesuffix(suffix)]
        known = ", ".join(f"{kind}ImageProcessor" for kind in _KINDS)
        raise self._refusal(f"the processor {named} is not supported; supported are {known}")

    def _geometry(self, kind: _Kind) -> tuple[tuple[int, int] | int, tuple[int, int] | None]:
        resize = self._size("size", square=kind.sides == "square")
        crop: tuple[int, int] | None = None
        if kind.sides == "convnext":
            if isinstance(resize, tuple):
                raise self._refusal("the 'size' of a ConvNextImageProcessor must have a 'shortest_edge'")
            side = resize
            shorter = int(side / self._number(self.settings.get("crop_pct", 224 / 256), "crop_pct"))
            resize, crop = ((side, side), None) if side >= _CONVNEXT_WARPS_FROM else (shorter, (side, side))
        elif self.settings.get("crop_pct") is not None:
            raise self._refusal("the setting 'crop_pct' is not supported with this processor")
        if self._switch("do_center_crop", default=kind.crops):
            centre = self._size("crop_size", square=True)
            if crop is not None or not isinstance(centre, tuple):
                raise self._refusal("'crop_size' must have a 'height' and a 'width', and be the only crop")
            crop = centre
        if crop is None and not isinstance(resize, tuple):
            raise self._refusal("'size' has a 'shortest_edge' and nothing is cropped, but a batch needs one size")
        room = resize if isinstance(resize, tuple) else (resize, resize)
        if crop is not None and (crop[0] > room[0] or crop[1] > room[1]):
            raise self._refusal(f"pictures of {room[0]} x {room[1]} cannot be cropped to {crop[0]} x {crop[1]}")
        return resize, crop

    def _size(self, key: str, *, square: bool) -> tuple[int, int] | int:
        value = self.settings.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            value = {"height": value, "width": value} if square else {"shortest_edge": value}
        if isinstance(value, dict):
            given = {name: side for name, side in value.items() if side is not None}
            if all(isinstance(side, int) and 0 < side <= math.isqrt(MAX_PIXELS) for side in given.values()):
                if given.keys() == {"height", "width"}:
                    return given["height"], given["width"]
                if given.keys() == {"shortest_edge"}:
                    return int(given["shortest_edge"])
        message = f"{key!r} must be a number of pixels, or have 'height' and 'width', or 'shortest_edge'. Got {value!r}"
        raise self._refusal(message)

    def _switch(self, key: str, *, default: bool) -> bool:
        value = self.settings.get(key)
        return default if value is None else bool(value)

    def _channels(self, key: str) -> tuple[float, ...]:
        value = self.settings.get(key)
        values = value if isinstance(value, list) else [value] * _CHANNELS
        if len(values) != _CHANNELS:
            raise self._refusal(f"{key!r} must hold three numbers. Got {value!r}")
        return tuple(self._number(each, key, zero=key == "image_mean") for each in values)

    def _number(self, value: Any, key: str, *, zero: bool = False) -> float:
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not usable or (value <= 0 and not zero):
            raise self._refusal(f"{key!r} must be a{'' if zero else ' positive'} number. Got {value!r}")
        return float(value)

    def _refusal(self, message: str) -> ModelError:
        return ModelError(f"model {self.folder.name}: preprocessor_config.json: {message}")
