"""Vectors of test rows by the model that embedded the rows of a run, a few thousand at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError, SourceError

if TYPE_CHECKING:
    from datapipe.runs import CurateResult
    from datapipe.storage.arrays import Float32

_AT_ONCE = 4096


def embed_texts_with(result: CurateResult, texts: list[str], device: str) -> Float32:
    """Vectors of texts, float32 (texts, dim), of unit length."""
    from datapipe.embedding.text import embed_texts
    from datapipe.stages.embedder import Embedder

    embedder = Embedder(result.manifest["config"]["model"], device=device)
    parts = [
        embed_texts(embedder.worker(), texts[at : at + _AT_ONCE], model=embedder.name).vectors
        for at in range(0, len(texts), _AT_ONCE)
    ]
    return np.concatenate(parts)


def embed_images_of(
    result: CurateResult, test: str, column: str, label: str, device: str
) -> tuple[list[bytes], list[str | None], Float32]:
    """Content keys, labels and vectors of the rows of a test file with image and label.

    Raises:
        MetricError: There are none.
        SourceError: An image cannot be used; names its row.
    """
    import pyarrow.compute as pc

    from datapipe.embedding.image import embed_images
    from datapipe.settings import Settings
    from datapipe.stages.embedder import Embedder
    from datapipe.stages.images import image_files
    from datapipe.storage.source import open_source

    settings = Settings()
    source = open_source(test, limits=settings.limits.as_limits(), text_columns=(column,))
    files = image_files(source, column, settings=settings)
    embedder = Embedder(result.manifest["config"]["model"], device=device, task="embed_image")
    keys: list[bytes] = []
    labels: list[str | None] = []
    vectors: list[Float32] = []
    for batch in source.batches([column, label]):
        whole = pc.and_(pc.is_valid(batch.table[column]), pc.is_valid(batch.table[label]))
        table, rows = batch.table.filter(whole), batch.rows[whole.to_numpy()]
        for row, key in zip(rows.tolist(), files.keys(table[column], file=batch.file), strict=True):
            if not isinstance(key, bytes):
                raise SourceError(f"{source.files[batch.file].uri} row {row + 1}: {key[1]}; leave it out of the test")
            keys.append(key)
        labels += [str(each) for each in table[label].to_pylist()]
        images = [files.read(value, file=batch.file) for value in table[column].to_pylist()]
        for at in range(0, len(images), _AT_ONCE):
            part = images[at : at + _AT_ONCE]
            vectors.append(embed_images(embedder.worker(), part, model=embedder.name, batch=embedder.batch))
    if not vectors:
        raise MetricError(f"the test file {test} has no row with image and label")
    return keys, labels, np.concatenate(vectors)
