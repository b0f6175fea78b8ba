"""Source to canonical shards.

Reads the source. Writes `rows-*.parquet` (row_id and the columns that the run uses, sorted by row_id),
`places-*.parquet` (row_id, file, row) and, where rows were refused, `rejected.parquet`. Made again when a source file,
a column choice or the shard size changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import Context, SetStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.storage.images import ImageFiles
    from datapipe.storage.ingest import IngestSpec
    from datapipe.storage.source import Source
    from datapipe.storage.stage import StageDir


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """What ingest depends on.

    Attributes:
        files: Name and sha256 of each source file, in order.
        spec: Columns by role, and the shard size.
    """

    files: tuple[tuple[str, str], ...]
    spec: IngestSpec


@dataclass(frozen=True)
class Ingest(SetStage):
    """Give each row its id and write it where its id says.

    Attributes:
        source: What is read.
        digests: sha256 of each of its files.
        spec: Columns by role, and limits.
        images: Reads and checks the image column; None where the spec names none.
    """

    name: ClassVar[str] = "ingest"
    version: ClassVar[int] = 2

    source: Source
    digests: tuple[str, ...]
    spec: IngestSpec
    images: ImageFiles | None = None

    @property
    def config(self) -> IngestConfig:
        """Files by digest, and the spec."""
        names = (file.uri for file in self.source.files)
        return IngestConfig(files=tuple(zip(names, self.digests, strict=True)), spec=self.spec)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Sort the source by row id, out of core."""
        from datapipe.storage.generations import shard_names
        from datapipe.storage.ingest import ingest

        facts = ingest(
            self.source, out, spec=self.spec, scratch=context.scratch, progress=context.tick, images=self.images
        )
        return shard_names(out, facts["shards"]), {**facts, "rows": facts["accepted"]}
