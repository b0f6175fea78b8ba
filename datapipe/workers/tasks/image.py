"""Images to vectors, and to the logits of classes.

ImageItem -> prepare (decode, resize, crop) -> Pixels -> forward -> one row an image -> finish

The results are ImageEmbedding and ImageClassification. Pixels travel as uint8, a quarter of what the model computes on;
scale and mean are applied on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from datapipe.errors import ConfigError, ItemError
from datapipe.workers.encoders.picture import decode, need_pillow

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32
    from datapipe.workers.encoders.vision import VisionModel
    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.protocol import Item
    from datapipe.workers.spec import ModelSpec

__all__ = ["ClassifyImageTask", "EmbedImageTask", "ImageClassification", "ImageEmbedding", "ImageItem", "Pixels"]

_TOKEN_PIXELS = 16 * 16
"""Pixels of the model's input that count as one token: a patch of the usual vision transformer."""


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An image.

    Attributes:
        image: A JPEG, PNG, WebP, GIF or BMP file.
    """

    image: bytes


@dataclass(frozen=True, slots=True)
class ImageEmbedding:
    """The vector of an image.

    Attributes:
        vector: float32 (dim,), of unit length.
        width: Pixels of the image, upright.
        height: Pixels of the image, upright.
    """

    vector: Float32
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ImageClassification:
    """What a classifier says of an image.

    Attributes:
        logits: float32 (classes,), in the order of the task's `labels`.
        width: Pixels of the image, upright.
        height: Pixels of the image, upright.
    """

    logits: Float32
    width: int
    height: int


class Pixels(NamedTuple):
    """An image ready for the model.

    Attributes:
        values: uint8 (height, width, 3) of the model's input.
        width: Pixels of the image, upright.
        height: Pixels of the image, upright.
    """

    values: NDArray[np.uint8]
    width: int
    height: int

    @property
    def length(self) -> int:
        """Patches of 16 x 16 in the model's input, the same for every image of a model: 196 at 224 x 224."""
        height, width, _ = self.values.shape
        return max(1, int(height * width) // _TOKEN_PIXELS)


class _ImageTask:
    """What both tasks share: images of one size through one vision model."""

    item_type: ClassVar[type] = ImageItem
    padded = False
    window_items: ClassVar[int] = 512  # at 224 px 77 MB of pixels

    def __init__(self, model: VisionModel, device: torch.device) -> None:
        self._model, self._device = model, device
        self.dim, self.nbytes = model.dim, model.nbytes

    @classmethod
    def item_schema(cls) -> pa.Schema:
        """One column of image files."""
        import pyarrow as pa

        return pa.schema([pa.field("image", pa.binary(), nullable=False)])

    def prepare(self, item: ImageItem) -> Pixels:
        """Decode one image; see `prepare_many`."""
        return self.prepare_many([item])[0]

    def prepare_many(self, items: Sequence[Item], *, first: int = 0) -> list[Pixels]:
        """Decode, resize and crop.

        Raises:
            ItemError: An item is no image, is damaged or too large; its index is counted from `first`.
        """
        prepared = []
        for index, item in enumerate(items, first):
            if not isinstance(item, ImageItem) or not isinstance(item.image, bytes):
                found = type(item.image if isinstance(item, ImageItem) else item).__name__
                raise ItemError(f"item {index} must be an ImageItem of bytes. Got {found}", index=index)
            picture = decode(item.image, index=index)
            values = self._model.preprocessing.pixels(picture, index=index)
            prepared.append(Pixels(values, picture.width, picture.height))
        return prepared

    def _outputs(self, batch: Sequence[Pixels], *, normalised: bool) -> Float32:
        import numpy as np
        import torch

        from datapipe.workers.encoders.transfer import to_device, to_host

        with torch.inference_mode():
            outputs = self._model.outputs(to_device(np.stack([pixels.values for pixels in batch]), self._device))
            rows: Float32 = to_host(torch.nn.functional.normalize(outputs, dim=1) if normalised else outputs)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise FloatingPointError(f"the output of image {int(finite.argmin())} of the batch is not finite")
        return rows


class EmbedImageTask(_ImageTask):
    """Embed images with one vision model.

    Args:
        model: On its device.
        device: That device.
    """

    name: ClassVar[str] = "embed_image"
    result_type: ClassVar[type] = ImageEmbedding

    @classmethod
    def result_schema(cls) -> pa.Schema:
        """Vector, and the size of the image."""
        return _schema("vector")

    @classmethod
    def open(cls, folder: ModelFolder, *, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a vision model.

        Raises:
            MissingExtraError: Pillow is not installed.
            ConfigError: The spec has a max_length, which is for texts.
            ModelError: The folder holds no vision model, or one that we would compute wrongly.
        """
        return cls(_open(folder, spec, device=device, dtype=dtype, classes=False), device)

    def forward(self, batch: Sequence[Pixels]) -> Float32:
        """Unit vectors, float32 (images, dim), on the host. One copy to the device, one back.

        Raises:
            FloatingPointError: A vector is not finite; names the image's place in the batch.
        """
        return self._outputs(batch, normalised=True)

    def finish(self, raw: Float32, prepared: Pixels) -> ImageEmbedding:
        """Put a row of `forward` beside the size of its image."""
        return ImageEmbedding(raw, prepared.width, prepared.height)


class ClassifyImageTask(_ImageTask):
    """Classify images with one vision model.

    Args:
        model: On its device, giving logits.
        device: That device.
    """

    name: ClassVar[str] = "classify_image"
    result_type: ClassVar[type] = ImageClassification

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits; their numbers where the model names none."""
        return self._model.labels

    @classmethod
    def result_schema(cls) -> pa.Schema:
        """Logits, and the size of the image."""
        return _schema("logits")

    @classmethod
    def open(cls, folder: ModelFolder, *, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Self:
        """Load an image classifier.

        Raises:
            MissingExtraError: Pillow is not installed.
            ConfigError: The spec has a max_length, which is for texts.
            ModelError: The folder holds no image classifier, or one that we would compute wrongly.
        """
        return cls(_open(folder, spec, device=device, dtype=dtype, classes=True), device)

    def forward(self, batch: Sequence[Pixels]) -> Float32:
        """Logits, float32 (images, classes), on the host. One copy to the device, one back.

        Raises:
            FloatingPointError: A logit is not finite; names the image's place in the batch.
        """
        return self._outputs(batch, normalised=False)

    def finish(self, raw: Float32, prepared: Pixels) -> ImageClassification:
        """Put a row of `forward` beside the size of its image."""
        return ImageClassification(raw, prepared.width, prepared.height)


def _open(
    folder: ModelFolder, spec: ModelSpec, *, device: torch.device, dtype: torch.dtype, classes: bool
) -> VisionModel:
    from datapipe.workers.encoders.vision import open_vision

    need_pillow(f"model {folder.name}")
    if spec.max_length is not None:
        raise ConfigError(f"model {spec.name} takes images, and max_length is for texts. Got {spec.max_length}")
    return open_vision(folder, device=device, dtype=dtype, classes=classes)


def _schema(numbers: str) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field(numbers, pa.list_(pa.float32()), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
        ]
    )
