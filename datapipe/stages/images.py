"""What a run over images needs besides its stages: the reader of its image column, and the images to protect.

A run whose images have to be embedded names a vision model; one whose source brings vectors, or whose metric needs
none, does not. Raises `ConfigError` and `MissingExtraError` before anything is read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from datapipe.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from datapipe.settings import Settings
    from datapipe.stages.embedder import Embedder
    from datapipe.stages.screen import EvaluationSet
    from datapipe.storage.images import ImageFiles
    from datapipe.storage.source import Source

CHECKERS = 8
"""Images decoded at a time: each may take four bytes a pixel, of as many pixels as an image may have."""

__all__ = ["check_image_model", "image_files", "load_evaluation_images"]


def check_image_model(model: str, *, column: str, embeds: bool) -> None:
    """Raise unless images of this column can be handled with this model.

    Raises:
        ConfigError: The model is the default one, which embeds texts, and images have to be embedded.
        MissingExtraError: Pillow is not installed.
    """
    from datapipe.embedding.image import need_pillow

    need_pillow(f"image_column {column!r}")
    if embeds and model == "default":
        raise ConfigError(
            f"image_column {column!r} needs a vision model, and the default one embeds texts: pass model (--model), a "
            "folder with config.json and safetensors of EfficientNet-Lite0 or of a ViT, DINOv2, CLIP, SigLIP, ResNet, "
            "ConvNeXt, Swin or BEiT, or a cached hub id; or bring vectors with embedding_column"
        )


def image_files(source: Source, column: str, *, settings: Settings) -> ImageFiles:
    """The reader of an image column, which checks what it reads on the cores there are, `CHECKERS` of them at most."""
    from datapipe.embedding.image import check_image
    from datapipe.storage.images import ImageFiles

    most = settings.limits.max_cell_bytes
    return ImageFiles(source, column, most=most, check=check_image, threads=min(CHECKERS, len(os.sched_getaffinity(0))))


def load_evaluation_images(files: ImageFiles, embedder: Embedder | None) -> EvaluationSet:
    """Read the images of an evaluation set, and embed them where there is an embedder.

    Raises:
        SourceError: One cannot be used, so that it would protect nothing; names its row.
    """
    import numpy as np

    from datapipe.embedding.image import embed_images
    from datapipe.stages.screen import EvaluationSet

    keys: list[bytes] = []
    vectors = []
    for batch in files.source.batches([files.column]):
        column = batch.table[files.column]
        for row, key in zip(batch.rows.tolist(), files.keys(column, file=batch.file), strict=True):
            if not isinstance(key, bytes):
                uri = files.source.files[batch.file].uri
                raise SourceError(f"{uri} row {row + 1}: {key[1]}; leave it out, it would protect nothing")
            keys.append(key)
        if embedder is not None:
            images = [files.read(value, file=batch.file) for value in column.to_pylist()]
            vectors.append(embed_images(embedder.worker(), images, model=embedder.name, batch=embedder.batch))
    found = np.frombuffer(b"".join(keys), ">u8").astype(np.uint64).reshape(-1, 2)
    return EvaluationSet(texts=None, vectors=np.concatenate(vectors) if vectors else None, keys=found)
