"""What a proof reads: the rows of a finished run with labels and fate, and labelled test rows from outside of it.

run folder -> labels, kept, pool -> vectors, or texts          test file -> rows not in the run -> the same of them
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from datapipe.errors import ColumnError, ConfigError, MetricError
from datapipe.proof.embedded import embed_images_of, embed_texts_with
from datapipe.selection.result import REASONS

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from datapipe.pipeline import StageOutput
    from datapipe.runs import CurateResult
    from datapipe.storage.arrays import Bool, Float32

VECTOR = "vector"


Content = TypeVar("Content")
"""What is learnt from: vectors, float32 (rows, dim) of unit length; texts; or pixels, uint8."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunRows(Generic[Content]):
    """The accepted rows of a run, in the order of their ids.

    Attributes:
        content: Vectors or texts.
        labels: Class of each row, None for none.
        kept: Whether the run kept it.
        pool: Whether it could have: not excluded as a repeat, a match or unscored.
    """

    content: Content
    labels: list[str | None]
    kept: Bool
    pool: Bool


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldRows(Generic[Content]):
    """Labelled rows from outside the run: vectors or texts, labels, and what is odd about them, in sentences."""

    content: Content
    labels: list[str | None]
    warnings: tuple[str, ...]


def read_rows(result: CurateResult) -> RunRows[Float32]:
    """Read the rows of a run with their vectors, which take 4 bytes a dimension and row of memory.

    Raises:
        ColumnError: The run was made without a label column, or has no vectors.
    """
    from datapipe.storage.vectors import to_matrix

    labels, kept, pool = fates(result)
    vectors = np.concatenate([to_matrix(table[VECTOR]) for table in _vectors_of(result)])
    return RunRows(content=vectors, labels=labels, kept=kept, pool=pool)


def read_texts(result: CurateResult) -> RunRows[list[str]]:
    """Read the rows of a run with their texts; a row without text counts as one that could not have been kept.

    Raises:
        ColumnError: The run was made without a label column, or without texts.
    """
    if result.manifest["columns"]["text"] is None:
        raise ColumnError(
            f"the run {result.out} has no texts to fine-tune on: make it with --text-column, or take --trainer head"
        )
    labels, kept, pool = fates(result)
    found = [
        text for table in stage_output(result, "ingest").tables("rows", columns=["text"]) for text in _texts(table)
    ]
    there = np.array([text is not None for text in found], np.bool_)
    texts = [text if text is not None else "" for text in found]
    return RunRows(content=texts, labels=labels, kept=kept & there, pool=pool & there)


def _texts(table: pa.Table) -> list[str | None]:
    values: list[str | None] = table["text"].to_pylist()
    return values


def fates(result: CurateResult) -> tuple[list[str | None], Bool, Bool]:
    """Label of each row, whether it was kept, and whether it could have been."""
    import pyarrow.parquet as pq

    if result.manifest["columns"]["label"] is None:
        raise ColumnError(f"the run {result.out} knows no labels: make it with --label-column")
    rows = stage_output(result, "ingest").tables("rows", columns=["label"])
    labels = [label for table in rows for label in table["label"].to_pylist()]
    selection = pq.read_table(result.out / "selection.parquet", columns=["kept", "reason"])
    kept = selection["kept"].to_numpy().astype(np.bool_)
    return labels, kept, np.isin(np.array(selection["reason"].to_pylist()), REASONS)


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
) -> HeldRows[Float32]:
    """Read a test file, and embed it with the model of the run where that embedded its rows.

    Raises:
        ColumnError: It has no such columns.
        ConfigError: A column is named that the run did not embed.
        MetricError: It has no rows, or none from outside the run.
        SourceError: It cannot be read, or an image of it cannot be used; names the row.
    """
    from datapipe.storage.vectors import to_matrix

    kind, column = content.of(result.manifest["columns"])
    if kind == "image":
        label = _checked(result, test, kind=kind, column=column, label_column=label_column)
        keys, labels, vectors = embed_images_of(result, str(test), column, label, device)
        outside, warnings = outside_of(result, kind, keys)
    else:
        values, labels = _read(result, test, kind=kind, column=column, label_column=label_column)
        if kind == "vector":
            return HeldRows(content=to_matrix(values), labels=labels, warnings=())
        texts = values.to_pylist()
        outside, warnings = outside_of(result, kind, texts)
        vectors = embed_texts_with(result, texts, device)
    return HeldRows(content=vectors[outside], labels=some(labels, outside), warnings=warnings)


def read_test_texts(
    result: CurateResult,
    test: str | os.PathLike[str],
    *,
    label_column: str | None,
    text_column: str | None,
) -> HeldRows[list[str]]:
    """Read the texts of a test file.

    Raises:
        ColumnError: It has no such columns.
        MetricError: It has no rows, or none from outside the run.
        SourceError: It cannot be read.
    """
    column = text_column or str(result.manifest["columns"]["text"])
    values, labels = _read(result, test, kind="text", column=column, label_column=label_column)
    texts = values.to_pylist()
    outside, warnings = outside_of(result, "text", texts)
    return HeldRows(content=some(texts, outside), labels=some(labels, outside), warnings=warnings)


def image_column_of(
    result: CurateResult, test: str | os.PathLike[str], *, label_column: str | None, image_column: str | None
) -> tuple[str, str]:
    """Columns of images and labels of a test file. Raises `ColumnError` where it lacks one."""
    column = image_column or str(result.manifest["columns"]["image"])
    return column, _checked(result, test, kind="image", column=column, label_column=label_column)


def _checked(
    result: CurateResult, test: str | os.PathLike[str], *, kind: str, column: str, label_column: str | None
) -> str:
    """The label column, once it and that of the content are known to be there."""
    from datapipe.storage.source import scan

    present = scan(str(test)).collect_schema().names()
    label = str(label_column or result.manifest["columns"]["label"])
    for name, option in ((label, "--label-column"), (column, f"--{kind}-column")):
        if name not in present:
            raise ColumnError(f"the test file {test} has no column {name!r} ({option}); it has {', '.join(present)}")
    return label


def _read(
    result: CurateResult, test: str | os.PathLike[str], *, kind: str, column: str, label_column: str | None
) -> tuple[pa.ChunkedArray, list[str | None]]:
    """Content and labels of the rows that have both."""
    from datapipe.storage.source import scan

    label = _checked(result, test, kind=kind, column=column, label_column=label_column)
    table = scan(str(test)).select(column, label).drop_nulls().collect().to_arrow()
    if not table.num_rows:
        raise MetricError(f"the test file {test} has no row with {kind} and label")
    return table[column], [str(each) for each in table[label].to_pylist()]


def outside_of(result: CurateResult, kind: str, keys: Sequence[str | bytes]) -> tuple[Bool, tuple[str, ...]]:
    """Which test rows are not in the run too, for those are known by heart; and a warning where some are.

    Args:
        result: The run.
        kind: `text` or `image`.
        keys: What each test row is known by: its text, or the key of its image's content.

    Raises:
        MetricError: All of them are in the run.
    """
    tables = stage_output(result, "ingest").tables("rows", columns=[kind])
    known = {key for table in tables for key in table[kind].to_pylist()}
    outside = np.array([key not in known for key in keys], np.bool_)
    if outside.all():
        return outside, ()
    if not outside.any():
        raise MetricError(f"all {len(keys)} test {kind}s are also in the run: a proof needs rows from outside of it")
    return outside, (f"{int((~outside).sum())} of {len(keys)} test {kind}s are also in the run, and are left out.",)


Value = TypeVar("Value")


def some(values: list[Value], wanted: Bool) -> list[Value]:
    """The values that are wanted."""
    return [value for value, chosen in zip(values, wanted, strict=True) if chosen]


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
