"""Scores of a file, joined by id: Parquet, CSV, JSON Lines, or whatever a source may be.

`score` reads `ingest/rows` and the file, and writes row_id and imported (float32; NaN for a row that the file lacks).
The file's ids are the values of the run's id column, or row ids in a column `row_id` of 16 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import ColumnError, ConfigError, MetricError, RowIdError
from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.proxy import file_digest, write_aligned
from datapipe.stages.scoring import ScoreFamily

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from datapipe.metrics.imported import Higher
    from datapipe.pipeline import Stage
    from datapipe.stages.scoring import ScoreInputs
    from datapipe.storage.arrays import Float32, Ids
    from datapipe.storage.stage import StageDir

ROW_ID = "row_id"


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What the scores depend on.

    Attributes:
        sha256: Of the file.
        column: Its scores.
        id_column: Its ids.
        higher: What its high scores mean.
        metric: The metric's name.
    """

    sha256: str
    column: str
    id_column: str
    higher: Higher
    metric: str = "imported"


@dataclass(frozen=True)
class ScoreImported(SetStage):
    """Read the file, turn its scores, join them. Memory: 28 bytes a row of the file, and of the run."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1

    settings: ImportConfig
    path: str

    @property
    def config(self) -> ImportConfig:
        """The frozen config."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows, for their ids."""
        return ("ingest/rows",)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Join; refuse a file of which no id is a row's."""
        import numpy as np

        from datapipe.metrics.imported import oriented, places_of, scores_at
        from datapipe.storage.rowid import ids_from_arrow

        known, values = self._read()
        tables = inputs["ingest"].tables("rows", columns=[ROW_ID])
        ids = np.concatenate([ids_from_arrow(table[ROW_ID]) for table in tables])
        places = places_of(ids, known)
        found = int((places >= 0).sum())
        if not found:
            raise MetricError(
                f"none of the {len(known):,} ids in column {self.settings.id_column!r} of {self.path} is a row of this "
                "run: name the same column of the source with id_column, or bring row ids in a column row_id"
            )
        scores = scores_at(places, oriented(values.astype(np.float64), higher=self.settings.higher))
        context.tick(len(ids))
        names = write_aligned(inputs["ingest"], "rows", out, prefix="scores", columns={"imported": scores})
        facts = {"rows": len(ids), "scored": int(np.isfinite(scores).sum()), "unknown_ids": len(known) - found}
        return names, {**facts, "higher": self.settings.higher}

    def _read(self) -> tuple[Ids, Float32]:
        """Ids and scores of the file. Raises `RowIdError` for ids that collide: file, row and id."""
        import numpy as np

        from datapipe.metrics.imported import first_repeat
        from datapipe.storage.source import open_source

        source = open_source(self.path)
        for name in (self.settings.column, self.settings.id_column):
            if name not in source.schema.names:
                raise ColumnError(
                    f"{self.path} has no column {name!r}; its columns are {', '.join(source.schema.names)}"
                )
        ids, scores, shown = [], [], []
        for batch in source.batches([self.settings.id_column, self.settings.column]):
            column = batch.table[self.settings.id_column]
            ids.append(_ids(column))
            scores.append(_numbers(batch.table[self.settings.column], self.path, self.settings.column))
            shown.append(column)
        whole = np.concatenate(ids)
        repeat = first_repeat(whole)
        if repeat is not None:
            value = _value(shown, repeat[0])
            raise RowIdError(
                f"the id {value!r} stands twice in column {self.settings.id_column!r} of {self.path}, in rows "
                f"{repeat[0] + 1:,} and {repeat[1] + 1:,}: each row has one score"
            )
        return whole, np.concatenate(scores)


def _ids(column: pa.ChunkedArray) -> Ids:
    import pyarrow as pa

    from datapipe.storage.rowid import ID_TYPE, ids_from_arrow, value_digests

    if pa.types.is_binary(column.type) or pa.types.is_fixed_size_binary(column.type):
        return ids_from_arrow(column.cast(ID_TYPE))
    return value_digests(column)


def _numbers(column: pa.ChunkedArray, path: str, name: str) -> Float32:
    import numpy as np
    import pyarrow as pa

    try:
        values = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ColumnError(f"column {name!r} of {path} holds no numbers: {error}") from error
    narrow: Float32 = values.astype(np.float32)
    return narrow


def _value(columns: list[pa.ChunkedArray], row: int) -> object:
    for column in columns:
        if row < len(column):
            return column[row].as_py()
        row -= len(column)
    raise IndexError(row)


def _make(inputs: ScoreInputs) -> list[Stage]:
    from datapipe.metrics.imported import DEFAULT_HIGHER

    path = inputs.options.get("scores")
    if path is None:
        raise ConfigError("the metric imported reads a file of scores: name it with scores")
    settings = ImportConfig(
        sha256=file_digest(path),
        column=inputs.options.get("scores_column") or "score",
        id_column=inputs.options.get("scores_id") or ROW_ID,
        higher=inputs.options.get("scores_higher") or DEFAULT_HIGHER,
    )
    return [ScoreImported(settings=settings, path=path)]


FAMILY = ScoreFamily(stages=("score",), clusters=False, make=_make)
