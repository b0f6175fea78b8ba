"""`datapipe.select_recovery`: the rows of an instruction pool that heal a pruned model.

    pool, original, pruned models -> skills of the pool, damage of its rows -> budget by damage -> DIR/kept.parquet ...

Published as PASER (arXiv 2502.12594): instructions are clustered into skills, each skill gets a share of the budget by
how far the pruned model has moved away from the original on it, and inside a skill the most damaged rows for their cost
are taken. Every stage lies in the run folder under a name of what it depends on, so a killed run goes on where it
stopped, and another pruned model costs its own pass alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from datapipe.storage.digest import plain

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import polars as pl

    from datapipe.paser.wiring import RecoveryWiring
    from datapipe.pipeline import StageOutput, StageTiming
    from datapipe.progress import Progress
    from datapipe.storage.source import Source

__all__ = ["RecoveryResult", "select_recovery", "wired"]

SCRATCH = ".scratch"


@dataclass(frozen=True, kw_only=True, repr=False)
class RecoveryResult:
    """A finished selection for recovery.

    Attributes:
        out: The run folder: kept.parquet, train.parquet, selection.parquet, clusters.parquet, damage.parquet,
            dataset_info.json, report.html, manifest.json and, where rows were refused, rejected.parquet.
        manifest: What manifest.json says.
        timings: Seconds and rows a stage in this process; stages done before are marked.
    """

    out: Path
    manifest: Mapping[str, Any]
    timings: tuple[StageTiming, ...] = field(default=())

    @classmethod
    def open(cls, out: str | os.PathLike[str]) -> Self:
        """Open a finished selection again. Raises `SourceError` where there is none."""
        from datapipe.errors import SourceError
        from datapipe.storage.verify import read_run_manifest

        folder = Path(out)
        manifest = read_run_manifest(folder)
        if manifest.get("kind") != "paser":
            raise SourceError(f"{folder} holds a run of {manifest.get('kind')}, not a selection for recovery")
        return cls(out=folder, manifest=manifest)

    @property
    def counts(self) -> dict[str, int]:
        """Rows by what became of them (`kept`, `over_budget`, `rejected_...`); they add up to the rows read."""
        return dict(self.manifest["counts"])

    @property
    def warnings(self) -> list[str]:
        """What the user should know, in sentences."""
        return list(self.manifest["selection"]["warnings"])

    @property
    def skills(self) -> list[list[str]]:
        """Words of each skill, by its number."""
        return [list(words) for words in self.manifest["skills"]["names"]]

    @property
    def report(self) -> Path:
        """The run's page."""
        return self.out / "report.html"

    @cached_property
    def kept(self) -> pl.LazyFrame:
        """The rows to train on: row_id and the pool's own columns, sorted by row_id."""
        return self._scan("kept.parquet")

    @cached_property
    def selection(self) -> pl.LazyFrame:
        """Every accepted row: row_id, kept, reason, cluster, rank, tokens, jsd_mean, ies, conflict_with."""
        return self._scan("selection.parquet")

    @cached_property
    def clusters(self) -> pl.LazyFrame:
        """Every skill: what it lost, with an interval, its share of the budget, and what was taken."""
        return self._scan("clusters.parquet")

    @cached_property
    def damage(self) -> pl.LazyFrame:
        """The damage atlas: a row a pruned model and skill; cluster -1 is all rows together."""
        return self._scan("damage.parquet")

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, for `--json`."""
        return {
            "out": str(self.out),
            "counts": self.counts,
            "selection": plain(dict(self.manifest["selection"])),
            "skills": plain(dict(self.manifest["skills"])),
            "models": plain(dict(self.manifest["models"])),
            "outputs": plain(list(self.manifest["outputs"])),
            "timings": [plain(timing) for timing in self.timings],
        }

    def _scan(self, name: str) -> pl.LazyFrame:
        import polars as pl

        return pl.scan_parquet(self.out / name, glob=False)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={rows:,}" for name, rows in self.counts.items())
        return f"RecoveryResult(out={str(self.out)!r}, {counts})"

    def _repr_html_(self) -> str:
        from datapipe.report.table import to_html

        return to_html(self.out)


def select_recovery(
    pool: str | os.PathLike[str] | Sequence[str],
    *,
    original: str | os.PathLike[str],
    pruned: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    progress: Progress | None = None,
    **options: Any,
) -> RecoveryResult:
    """Choose the rows of an instruction pool that heal a pruned model; the same as `datapipe paser`.

    A run begun in `out` is resumed: what is done is not done again. The same pool, models and options give the same
    bytes, however the pool is cut and ordered and however often the run was interrupted.

    Args:
        pool: Instructions with responses, or chats: Parquet, JSON Lines, JSON, CSV or Arrow; a folder, glob or list.
        original: The model before it was pruned: a folder or a cached hub id.
        pruned: What was made of it, by whatever method, with the same tokenizer; or several such models. The first
            decides which rows are kept; all stand in the damage atlas.
        out: The run folder.
        progress: Is told how far the run is; see `datapipe.progress`.
        **options: `keep`, `keep_rows` or `keep_tokens`, `method`, `mode`, `clusters`, `survey` and the others; see
            `datapipe.paser.options.RecoveryConfig`.

    Returns:
        The finished run; `result.kept` is a LazyFrame.

    Raises:
        ConfigError: An option is unknown or out of range.
        BudgetError: Several budgets are given, or one keeps nothing.
        ColumnError: The pool has no instructions and responses, and no conversations.
        SourceError: The pool cannot be read, or holds no row that can be used.
        ModelError: A model cannot be loaded or holds numbers that are not finite, or two have different tokenizers.
        LockedError: Another process is writing to the run folder.
        OutputError: The disk is full or cannot be written; what is finished stays.
    """
    from datapipe.paser.publication import publish_selection
    from datapipe.runs import record_seconds
    from datapipe.storage.lock import exclusive

    folder = Path(out)
    wiring = wired(pool, original=original, pruned=pruned, options=options)
    try:
        _ = wiring.models  # which are checked before a folder is made
        with exclusive(folder):
            digests = _digests(wiring.source, folder)
            outputs, timings = _made(wiring, digests, folder, progress)
            manifest = publish_selection(wiring, digests, folder, outputs)
            record_seconds(folder, stages=timings)
    finally:
        wiring.close()
    return RecoveryResult(out=folder, manifest=manifest, timings=tuple(timings))


def wired(
    pool: str | os.PathLike[str] | Sequence[str],
    *,
    original: str | os.PathLike[str],
    pruned: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: Mapping[str, Any],
) -> RecoveryWiring:
    """Check options and columns, and open the pool; raises as `select_recovery`. The caller closes what comes back."""
    from datapipe.paser.options import RecoveryConfig
    from datapipe.paser.wiring import RecoveryWiring
    from datapipe.settings import Settings
    from datapipe.storage.source import open_source

    config, machine = RecoveryConfig.from_mapping(options), Settings()
    several = [pruned] if isinstance(pruned, (str, Path)) else list(pruned)  # type: ignore[arg-type]
    source = open_source(pool, limits=machine.limits.as_limits())
    return RecoveryWiring(
        config, source, original=str(original), pruned=[str(each) for each in several], settings=machine
    )


def _digests(source: Source, folder: Path) -> tuple[str, ...]:
    """Digests of the pool's files; those of unchanged files are remembered in the run folder."""
    from datapipe.runs import known_digests, remember_digests

    known = known_digests(folder)
    digests = source.digests(known)
    remember_digests(folder, known)
    return digests


def _made(
    wiring: RecoveryWiring, digests: Sequence[str], folder: Path, progress: Progress | None
) -> tuple[dict[str, StageOutput], list[StageTiming]]:
    """Run the stages that are missing; returns the outputs of all, and how long they took."""
    from datapipe.executors.local import LocalExecutor
    from datapipe.pipeline import Pipeline
    from datapipe.storage.atomic import scratch_folder
    from datapipe.storage.stage import StageStore

    pipeline = Pipeline(wiring.stages(digests))
    with scratch_folder(folder, SCRATCH) as scratch:
        outputs = pipeline.run(
            StageStore(folder / "stages"), LocalExecutor(wiring.workers), scratch=scratch, progress=progress
        )
    return outputs, pipeline.timings
