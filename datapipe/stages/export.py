"""The rows kept, with their own columns, and all scores in one file.

Reads the source again, `ingest/places`, `score` and `select`. Writes `kept.parquet` (row_id and the source's columns)
and `scores.parquet` (row_id and the metric), both sorted by row_id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.select import read_selection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.storage.source import Source
    from datapipe.storage.stage import StageDir

KEPT = "kept.parquet"
SCORES = "scores.parquet"


@dataclass(frozen=True)
class Export(SetStage):
    """Write what the user came for.

    Attributes:
        source: Read again.
        digests: Its files' digests: the same rows in another format are exported with other types.
        metric: The score column.
    """

    name: ClassVar[str] = "export"
    version: ClassVar[int] = 1

    source: Source
    digests: tuple[str, ...]
    metric: str

    @property
    def config(self) -> dict[str, Any]:
        """The source and the score column."""
        return {"source": self.digests, "metric": self.metric}

    @property
    def needs(self) -> tuple[str, ...]:
        """Where rows came from, their scores, and the choice."""
        return ("ingest/places", "score", "select")

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Write both files."""
        from datapipe.storage.export import export

        if out.done(SCORES) is None:
            _write_scores(inputs["score"], self.metric, out)
        export(
            self.source,
            places=inputs["ingest"].tables("places"),
            kept=read_selection(inputs["select"], inputs["ingest"].shards("places")),
            out=out,
            scratch=context.scratch,
            name=KEPT,
        )
        info = out.done(KEPT)
        return [KEPT, SCORES], {"rows": info.rows if info is not None else 0}


def _write_scores(score: StageOutput, metric: str, out: StageDir) -> None:
    import pyarrow as pa

    schema = pa.schema([pa.field("row_id", pa.binary(16), nullable=False), pa.field(metric, pa.float32())])
    with out.writer(SCORES, schema) as writer:
        for table in score.tables(columns=["row_id", metric]):
            writer.write(table.cast(schema))
