"""New files of a source that has been ingested: their rows become a generation of their own.

Reads the files that came, and the ids of the rows that are there. Writes the shards of `ingest`, those of the run
before taken over as they are. Made again when a file, a column choice, the shard size or the run before changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.ingest import Ingest
from datapipe.storage.digest import plain
from datapipe.storage.stage import MANIFEST, Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from datapipe.stages.history import History
    from datapipe.storage.generations import Earlier
    from datapipe.storage.ingest import IngestSpec
    from datapipe.storage.stage import StageDir


@dataclass(frozen=True, kw_only=True)
class IngestMoreConfig:
    """What the shards depend on.

    Attributes:
        files: Name and sha256 of each source file, in order.
        spec: Columns by role, and the shard size.
        before: Name of the directory of the ingest that is added to.
        files_before: How many of the files that one read.
    """

    files: tuple[tuple[str, str], ...]
    spec: IngestSpec
    before: str
    files_before: int


@dataclass(frozen=True)
class IngestMore(SetStage):
    """Add the rows of new files to canonical shards.

    Attributes:
        settings: The frozen config.
        whole: The stage that would read everything.
        before: The ingest that is added to.
    """

    name: ClassVar[str] = "ingest"
    version: ClassVar[int] = Ingest.version

    settings: IngestMoreConfig
    whole: Ingest
    before: StageOutput

    @property
    def config(self) -> IngestMoreConfig:
        """The frozen config."""
        return self.settings

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Read the new files."""
        from datapipe.storage.generations import ingest_more

        names, facts = ingest_more(
            self.whole.source,
            out,
            earlier=_earlier(self.before, self.settings.files_before),
            spec=self.whole.spec,
            scratch=context.scratch,
            progress=context.tick,
            images=self.whole.images,
        )
        return names, {**facts, "rows": facts["accepted"]}


def ingest_of_update(whole: Ingest, history: History) -> Ingest | IngestMore:
    """The ingest of an update: of the files that came, where those before are unchanged and read alike; else of all."""
    base, files = history.base["ingest"], whole.config.files
    identity = base.manifest.identity
    alike = identity["version"] == whole.version and identity["config"]["spec"] == plain(whole.spec)
    if not alike or files[: len(history.files)] != history.files or not _same_schema(whole, history):
        return whole
    count = len(history.files)
    if len(files) == count:
        if "before" not in identity["config"]:
            return whole
        # Nothing came: the same ingest again, which is found done.
        count, base = identity["config"]["files_before"], _opened(base.path.parent / identity["config"]["before"])
    settings = IngestMoreConfig(files=files, spec=whole.spec, before=base.path.name, files_before=count)
    return IngestMore(settings, whole, base)


def _opened(path: Path) -> StageOutput:
    return StageOutput(name="ingest", path=path, manifest_name=MANIFEST, manifest=Manifest.read(path / MANIFEST))


def _same_schema(whole: Ingest, history: History) -> bool:
    """Whether the rows of the run before had the types that they have now, on which their ids hang."""
    import pyarrow.parquet as pq

    from datapipe.storage.export import kept_schema

    before = pq.read_schema(history.base["export"].path / "kept.parquet")
    return bool(before.remove_metadata().equals(kept_schema(whole.source.schema).remove_metadata()))


def _earlier(before: StageOutput, files: int) -> Earlier:
    from datapipe.storage.generations import Earlier

    each = before.generations
    families = {}
    for family in ("rows", "places"):
        parts = before.parts(family)
        families[family] = tuple(parts[start : start + each] for start in range(0, len(parts), each))
    return Earlier(
        folder=before.path,
        rows=tuple(tuple(part.name for part in parts) for parts in families["rows"]),
        places=tuple(tuple(part.name for part in parts) for parts in families["places"]),
        first_rows=sum(parts[0].rows for parts in families["rows"]),
        files=files,
        facts=before.facts,
    )
