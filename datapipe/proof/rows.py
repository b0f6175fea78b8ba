"""What a proof reads: the rows of a finished run with vectors, labels and fate, and labelled test rows from outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import ColumnError, ConfigError, MetricError
from datapipe.selection.result import REASONS

if TYPE_CHECKING:
    import os

    import pyarrow as pa

    from datapipe.pipeline import StageOutput
    from datapipe.runs import CurateResult
    from datapipe.storage.arrays import Bool, Float32

VECTOR = "vector"


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


def read_test(
    result: CurateResult,
    test: str | os.PathLike[str],
    *,
    label_column: str | None,
    text_column: str | None,
    device: str | None,
) -> HeldRows:
    """Read and embed a test file with the model of the run.

    Raises:
        ColumnError: It has no such columns.
        ConfigError: The run's vectors came with its source, so that no model can embed the test texts.
        MetricError: It has no rows.
        SourceError: It cannot be read.
    """
    from datapipe.storage.source import scan
    from datapipe.storage.vectors import to_matrix

    frame = scan(str(test))
    present = frame.collect_schema().names()
    columns = result.manifest["columns"]
    label = label_column or columns["label"]
    content = text_column or columns["vector"] or columns["text"]
    for name, option in ((label, "--label-column"), (content, "--text-column")):
        if name not in present:
            raise ColumnError(f"the test file {test} has no column {name!r} ({option}); it has {', '.join(present)}")
    table = frame.select(content, label).drop_nulls().collect().to_arrow()
    if not table.num_rows:
        raise MetricError(f"the test file {test} has no row with text and label")
    labels: list[str | None] = [str(each) for each in table[label].to_pylist()]
    if columns["vector"] is not None and text_column is None:
        return HeldRows(vectors=to_matrix(table[content]), labels=labels, warnings=())
    if columns["vector"] is not None:
        raise ConfigError("the run's vectors came with its source: the test file needs vectors too, not --text-column")
    texts = table[content].to_pylist()
    known = _texts_of(result)
    shared = sum(text in known for text in texts)
    warnings = (f"{shared} of {len(texts)} test texts are also in the run.",) if shared else ()
    return HeldRows(vectors=_embed(result, texts, device), labels=labels, warnings=warnings)


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


def _texts_of(result: CurateResult) -> set[str]:
    tables = stage_output(result, "ingest").tables("rows", columns=["text"])
    return {text for table in tables for text in table["text"].to_pylist()}


def _embed(result: CurateResult, texts: list[str], device: str | None) -> Float32:
    from datapipe.embedding.text import embed_texts
    from datapipe.stages.embedder import Embedder

    embedder = Embedder(result.manifest["config"]["model"], device=device or "auto")
    parts = [
        embed_texts(embedder.worker(), texts[at : at + 4096], model=embedder.name).vectors
        for at in range(0, len(texts), 4096)
    ]
    return np.concatenate(parts)
