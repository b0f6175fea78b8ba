"""What a proof reads: the rows of a finished run with vectors, labels and fate, and labelled test rows from outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import ColumnError, ConfigError, MetricError, SourceError
from datapipe.selection.result import REASONS

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from datapipe.pipeline import StageOutput
    from datapipe.runs import CurateResult
    from datapipe.storage.arrays import Bool, Float32

VECTOR = "vector"
_AT_ONCE = 4096  # rows embedded in one call


@dataclass(frozen=True, kw_only=True, eq=False)
class RunRows:
    """The accepted rows of a run, in the order of their ids.

    Attributes:
        vectors: Float32 (rows, dim), of unit length.
        labels: Class of each row, None for none.
        kept: Whether the run kept it.
        pool: Whether it could have: not excluded as a repeat, a match or unscored.
    """

    vectors: Float32
    labels: list[str | None]
    kept: Bool
    pool: Bool


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldRows:
    """Labelled rows from outside the run: vectors, labels, and what is odd about them, in sentences."""

    vectors: Float32
    labels: list[str | None]
    warnings: tuple[str, ...]


def read_rows(result: CurateResult) -> RunRows:
    """Read the rows of a run; holds its vectors in memory, 4 bytes a dimension and row.

    Raises:
        ColumnError: The run was made without a label column, or has no vectors.
    """
    from datapipe.storage.vectors import to_matrix

    if result.manifest["columns"]["label"] is None:
        raise ColumnError(f"the run {result.out} knows no labels: make it with --label-column")
    rows = stage_output(result, "ingest")
    embedded = _vectors_of(result)
    import pyarrow.parquet as pq

    labels = [label for table in rows.tables("rows", columns=["label"]) for label in table["label"].to_pylist()]
    vectors = np.concatenate([to_matrix(table[VECTOR]) for table in embedded])
    selection = pq.read_table(result.out / "selection.parquet", columns=["kept", "reason"])
    kept = selection["kept"].to_numpy().astype(np.bool_)
    pool = np.isin(np.array(selection["reason"].to_pylist()), REASONS)
    return RunRows(vectors=vectors, labels=labels, kept=kept, pool=pool)


@dataclass(frozen=True, kw_only=True)
class ContentColumn:
    """What the test file calls the column that the run embedded; None for the run's own name.

    Attributes:
        text: Of a run over texts.
        image: Of a run over images.
    """

    text: str | None = None
    image: str | None = None

    def of(self, columns: Mapping[str, str | None]) -> tuple[str, str]:
        """The kind (`vector`, `image` or `text`) of the run and the column of the test file.

        Args:
            columns: The run's columns by role.

        Raises:
            ConfigError: A column is named that this run did not embed.
        """
        kind = next(kind for kind in ("vector", "image", "text") if columns.get(kind) is not None)
        for other, name in (("text", self.text), ("image", self.image)):
            if name is not None and other != kind:
                told = f"came with its source in {columns['vector']!r}" if kind == "vector" else f"are of its {kind}s"
                raise ConfigError(
                    f"--{other}-column does not fit: the run's vectors {told}, so the test file needs those"
                )
        return kind, str({"text": self.text, "image": self.image}.get(kind) or columns[kind])


def read_test(
    result: CurateResult,
    test: str | os.PathLike[str],
    *,
    label_column: str | None,
    content: ContentColumn,
    device: str,
) -> HeldRows:
    """Read a test file, and embed it with the model of the run where that embedded its rows.

    Raises:
        ColumnError: It has no such columns.
        ConfigError: A column is named that the run did not embed.
        MetricError: It has no rows, or none from outside the run.
        SourceError: It cannot be read, or an image of it cannot be used; names the row.
    """
    from datapipe.storage.source import scan
    from datapipe.storage.vectors import to_matrix

    frame = scan(str(test))
    present = frame.collect_schema().names()
    columns = result.manifest["columns"]
    label = label_column or columns["label"]
    kind, column = content.of(columns)
    for name, option in ((label, "--label-column"), (column, f"--{kind}-column")):
        if name not in present:
            raise ColumnError(f"the test file {test} has no column {name!r} ({option}); it has {', '.join(present)}")
    if kind == "image":
        keys, labels, vectors = _embed_images(result, str(test), column, label, device)
        return _without_shared(result, kind, keys, HeldRows(vectors=vectors, labels=labels, warnings=()))
    table = frame.select(column, label).drop_nulls().collect().to_arrow()
    if not table.num_rows:
        raise MetricError(f"the test file {test} has no row with {kind} and label")
    told: list[str | None] = [str(each) for each in table[label].to_pylist()]
    if kind == "vector":
        return HeldRows(vectors=to_matrix(table[column]), labels=told, warnings=())
    texts = table[column].to_pylist()
    vectors = _embed_texts(result, texts, device)
    return _without_shared(result, kind, texts, HeldRows(vectors=vectors, labels=told, warnings=()))


def _without_shared(result: CurateResult, kind: str, keys: Sequence[str | bytes], held: HeldRows) -> HeldRows:
    """The test rows that are not in the run too, for a head knows those by heart; with a warning where some are.

    Args:
        result: The run.
        kind: `text` or `image`.
        keys: What each test row is known by: its text, or the key of its image's content.
        held: The test rows.

    Raises:
        MetricError: All of them are in the run.
    """
    tables = stage_output(result, "ingest").tables("rows", columns=[kind])
    known = {key for table in tables for key in table[kind].to_pylist()}
    outside = np.array([key not in known for key in keys], np.bool_)
    if outside.all():
        return held
    if not outside.any():
        raise MetricError(f"all {len(keys)} test {kind}s are also in the run: a proof needs rows from outside of it")
    return HeldRows(
        vectors=held.vectors[outside],
        labels=[label for label, fair in zip(held.labels, outside, strict=True) if fair],
        warnings=(f"{int((~outside).sum())} of {len(keys)} test {kind}s are also in the run, and are left out.",),
    )


def stage_output(result: CurateResult, name: str) -> StageOutput:
    """Open a stage of a finished run. Raises `ColumnError` where the run has none of that name."""
    from datapipe.pipeline import StageOutput
    from datapipe.storage.stage import Manifest

    entry: dict[str, Any] | None = next((each for each in result.manifest["stages"] if each["name"] == name), None)
    if entry is None:
        raise ColumnError(f"the run {result.out} has no stage {name!r}")
    folder = Path(result.out) / "stages" / entry["key"]
    return StageOutput(
        name=name, path=folder, manifest_name=entry["manifest"], manifest=Manifest.read(folder / entry["manifest"])
    )


def _vectors_of(result: CurateResult) -> list[pa.Table]:
    stages = {stage["name"] for stage in result.manifest["stages"]}
    if "embed" in stages:
        return list(stage_output(result, "embed").tables(columns=[VECTOR]))
    if result.manifest["columns"]["vector"] is not None:
        return list(stage_output(result, "ingest").tables("rows", columns=[VECTOR]))
    raise ColumnError(f"the run {result.out} has no vectors: make it with a metric that embeds, such as prototypes")


def _embed_texts(result: CurateResult, texts: list[str], device: str) -> Float32:
    from datapipe.embedding.text import embed_texts
    from datapipe.stages.embedder import Embedder

    embedder = Embedder(result.manifest["config"]["model"], device=device)
    parts = [
        embed_texts(embedder.worker(), texts[at : at + _AT_ONCE], model=embedder.name).vectors
        for at in range(0, len(texts), _AT_ONCE)
    ]
    return np.concatenate(parts)


def _embed_images(
    result: CurateResult, test: str, column: str, label: str, device: str
) -> tuple[list[bytes], list[str | None], Float32]:
    """Content keys, labels and vectors of the rows with image and label."""
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
