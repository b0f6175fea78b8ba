"""Pixels of a run's rows and of its test file, for a network that learns from them.

    the run's source files, read again -> content key -> row of the run         test file -> rows not in the run

All images of a run are held decoded, so this is for small ones. Raises `SourceError` where images are not where they
were, `MetricError` where they differ in size.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from datapipe.errors import ColumnError, MetricError, SourceError
from datapipe.proof.rows import HeldRows, RunRows, fates, image_column_of, outside_of, some, stage_output

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from datapipe.proof.images import ImageRecipe
    from datapipe.runs import CurateResult
    from datapipe.storage.arrays import Int64

Pixels: TypeAlias = NDArray[np.uint8]
"""Images, uint8 (rows, height, width, 3)."""


def read_images(result: CurateResult) -> RunRows[Pixels]:
    """Read the rows of a run with their images, from where the run read them.

    Raises:
        ColumnError: The run was made without a label column, or without images.
        MetricError: The images differ in size.
        SourceError: The images came with a frame, or are no longer in the run's source.
    """
    column = result.manifest["columns"]["image"]
    if column is None:
        raise ColumnError(f"the run {result.out} has no images to train on: make it with --image-column")
    source = result.manifest["source"]
    if source["format"] == "frame":
        raise SourceError(f"the images of {result.out} came with a frame, which is gone: make the run from files")
    labels, kept, pool = fates(result)
    rows: dict[bytes, list[int]] = defaultdict(list)
    tables = stage_output(result, "ingest").tables("rows", columns=["image"])
    for row, key in enumerate(key for table in tables for key in table["image"].to_pylist()):
        rows[key].append(row)
    found: list[bytes] = [b""] * len(labels)
    for key, data, _ in _images([file["name"] for file in source["files"]], column):
        for row in rows.pop(key, ()):
            found[row] = data
        if not rows:
            break
    if rows:
        raise SourceError(
            f"{len(rows):,} images of the run {result.out} are no longer in its source, {source['files'][0]['name']}: "
            "it has changed or moved since"
        )
    return RunRows(content=_decoded(found), labels=labels, kept=kept, pool=pool)


def read_test_images(
    result: CurateResult, test: str | os.PathLike[str], *, label_column: str | None, image_column: str | None
) -> HeldRows[Pixels]:
    """Read the images of a test file.

    Raises:
        ColumnError: It has no such columns.
        MetricError: It has no rows, none from outside the run, or images that differ in size.
        SourceError: It cannot be read.
    """
    column, label = image_column_of(result, test, label_column=label_column, image_column=image_column)
    rows = [(key, data, told) for key, data, told in _images([str(test)], column, label) if told is not None]
    if not rows:
        raise MetricError(f"the test file {test} has no row with image and label")
    keys, data, labels = (list(each) for each in zip(*rows, strict=True))
    outside, warnings = outside_of(result, "image", keys)
    return HeldRows(content=_decoded(some(data, outside)), labels=some(labels, outside), warnings=warnings)


class NetworkTrainer:
    """Images, those of the test rows, and networks of one recipe on parts of them; see `datapipe.proof.images`.

    Args:
        images: uint8 (rows, height, width, 3).
        test: uint8 (test rows, height, width, 3).
        recipe: How.
        device: Where.
    """

    def __init__(self, images: Pixels, test: Pixels, *, recipe: ImageRecipe, device: str) -> None:
        self.recipe, self._images, self._test, self._device = recipe, images, test, device

    def train_many(self, labels: Int64, arms: Sequence[Int64], seeds: Sequence[int], *, classes: int) -> Int64:
        """Train a network an arm, two at a time on a GPU, and predict every test image, int64 (arms, test images).

        Raises:
            MetricError: An arm has fewer than two classes, or the images do not fit each other.
        """
        from datapipe.proof.images import ImageTrainer

        trainer = ImageTrainer(
            self._images,
            np.maximum(labels, 0),
            self._test,
            classes=classes,
            recipe=self.recipe,
            device=self._device,
            lanes=2,
        )
        return trainer.train_many(arms, seeds)


def _images(files: list[str], column: str, label: str | None = None) -> Iterator[tuple[bytes, bytes, str | None]]:
    """Content key, image file and label of every row with an image that can be read."""
    from datapipe.settings import Settings
    from datapipe.stages.images import image_files
    from datapipe.storage.images import UnreadableImageError, content_key
    from datapipe.storage.source import open_source

    settings = Settings()
    source = open_source(files, limits=settings.limits.as_limits(), text_columns=(column,))
    reader = image_files(source, column, settings=settings)
    wanted = [column] if label is None else [column, label]
    for batch in source.batches(wanted, rejected=lambda _: None):
        labels: list[Any] = batch.table[label].to_pylist() if label is not None else [None] * batch.table.num_rows
        for value, told in zip(batch.table[column].to_pylist(), labels, strict=True):
            try:
                data = reader.read(value, file=batch.file)
            except UnreadableImageError:
                continue
            yield content_key(data), data, str(told) if told is not None else None


def _decoded(encoded: list[bytes]) -> Pixels:
    from datapipe.errors import ItemError
    from datapipe.proof.pictures import decode_images

    try:
        return decode_images(encoded)
    except ItemError as error:
        raise SourceError(f"an image cannot be used: {error}; leave it out") from error
