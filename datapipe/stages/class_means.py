"""Distance of every row to the mean of its own class, in two passes over the shards.

    vectors, labels -> sums of each class (float64, row order) -> means
    -> scores-*.parquet: row_id, prototypes_supervised

Rows that screening took out do not pull on a mean. A row without a label has NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import MetricError
from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.scoring import ScoreFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from datapipe.pipeline import Stage
    from datapipe.stages.scoring import ScoreInputs
    from datapipe.storage.arrays import Bool
    from datapipe.storage.stage import StageDir


@dataclass(frozen=True, kw_only=True)
class ClassMeansConfig:
    """What the scores depend on.

    Attributes:
        vectors: Where the vectors are.
        screened: Whether rows may be excluded; those are not part of a mean.
        metric: The metric's name.
    """

    vectors: str
    screened: bool = False
    metric: str = "prototypes_supervised"


@dataclass(frozen=True)
class ScoreClassMeans(SetStage):
    """Means, then distances. Memory: 8 bytes * classes * dim, and a shard."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1

    settings: ClassMeansConfig

    @property
    def config(self) -> ClassMeansConfig:
        """The frozen config."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """Rows for their labels, vectors, and the exclusions where there may be some."""
        vectors = () if self.settings.vectors == "ingest/rows" else (self.settings.vectors,)
        return ("ingest/rows", *vectors, *(("screen/excluded",) if self.settings.screened else ()))

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Sum up, then score shard by shard. Raises `MetricError` where no row has a label."""
        import pyarrow as pa

        from datapipe.metrics.class_means import ClassSums, class_distance
        from datapipe.stages.proxy import class_names, class_numbers
        from datapipe.storage.vectors import decode, vector_info

        classes, names = class_names(inputs["ingest"]), []
        if not classes:
            raise MetricError("no row has a label, and prototypes_supervised needs the mean of each class")
        sums: ClassSums | None = None
        for table, vectors, left in self._tables(inputs):
            info = vector_info(vectors.schema.field("vector"))
            sums = sums or ClassSums(len(classes), info.dim)
            numbers = class_numbers(table["label"], classes)
            numbers[~left] = -1
            sums.add(decode(vectors["vector"]), numbers)
            context.tick(table.num_rows)
        if sums is None:
            raise MetricError("there are no rows to score")
        means = sums.means()
        for i, (table, vectors, _) in enumerate(self._tables(inputs)):
            scores = class_distance(decode(vectors["vector"]), class_numbers(table["label"], classes), means)
            names.append(f"scores-{i:05d}.parquet")
            out.write_table(names[-1], pa.table({"row_id": table["row_id"], self.settings.metric: pa.array(scores)}))
            context.tick(table.num_rows)
        return names, {"classes": len(classes), "single": int((sums.rows == 1).sum()), "rows": int(sums.rows.sum())}

    def _tables(self, inputs: Mapping[str, StageOutput]) -> Iterator[tuple[pa.Table, pa.Table, Bool]]:
        from datapipe.stages.vectors import left_after_screening

        name, _, family = self.settings.vectors.partition("/")
        rows = inputs["ingest"].tables("rows", columns=["row_id", "label"])
        beside = inputs[name].tables(family or None, columns=["vector"])
        screen = inputs["screen"].tables("excluded", columns=["row_id"]) if self.settings.screened else None
        for table, vectors in zip(rows, beside, strict=True):
            yield table, vectors, left_after_screening(table, screen)


def _make(inputs: ScoreInputs) -> list[Stage]:
    return [ScoreClassMeans(settings=ClassMeansConfig(vectors=str(inputs.vectors), screened=inputs.screened))]


FAMILY = ScoreFamily(stages=("score",), clusters=False, make=_make)
