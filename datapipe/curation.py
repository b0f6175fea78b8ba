"""A curation run: options and a source in, a run folder out.

    source -> ingest -> embed -> [screen] -> fit -> score -> select -> export -> report -> DIR/kept.parquet ...

`curate` is the Python face; the command line and the flow use the same `Curation`, so all three write the same bytes.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from datapipe.config import CurateConfig, CurateOptions, budget_of
from datapipe.errors import ConfigError, RejectedError
from datapipe.executors.choose import make_executor
from datapipe.pipeline import Pipeline
from datapipe.progress import Only
from datapipe.publication import files_of, publish_run
from datapipe.runs import CurateResult, known_digests, record_seconds, remember_digests, run_manifest
from datapipe.settings import Settings
from datapipe.stages.build import Wiring
from datapipe.stages.columns import text_columns
from datapipe.storage.atomic import scratch_folder
from datapipe.storage.lock import exclusive
from datapipe.storage.stage import StageStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    import polars as pl

    from datapipe.config import ExecutorName
    from datapipe.pipeline import Executor, StageOutput, StageTiming
    from datapipe.progress import Progress
    from datapipe.stages.estimate import Estimate
    from datapipe.stages.history import History
    from datapipe.storage.source import Source

SCRATCH = ".scratch"


class Curation:
    """One run over one source, not yet begun.

    Args:
        source: A path, glob, folder or list of paths; a Polars frame.
        out: The run folder.
        workers: Threads of the local executor, by default one a core, or actors of the Ray executor, by default as many
            as the cluster has room for; `DATAPIPE_WORKERS` and `DATAPIPE_RAY__ACTORS` set other defaults.
        executor: Runs the stages that work shard by shard: `local` (the threads of this process), `ray` (the cluster at
            `RAY_ADDRESS`, else a Ray that is started for the run), or an executor. The result does not depend on it.
        update: Add the source to the finished run in `out`; see `curate`.
        **options: See `CurateConfig`.

    Raises:
        ConfigError: An option is unknown or out of range.
        SourceError: The source cannot be read.
        ColumnError: A column that the run needs is not there.
        ModelError: The model cannot be loaded.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | list[str] | pl.DataFrame | pl.LazyFrame,
        *,
        out: str | os.PathLike[str],
        workers: int | None = None,
        executor: Executor | ExecutorName = "local",
        update: bool = False,
        **options: Unpack[CurateOptions],
    ) -> None:
        self.config = CurateConfig.from_mapping(dict(options))
        self.out = Path(out)
        self._update = update
        self._settings = Settings()
        self._asked = source
        self._executor, self._end = self._find_executor(executor, workers)
        self._timings: list[StageTiming] = []

    def _find_executor(
        self, executor: Executor | ExecutorName, workers: int | None
    ) -> tuple[Executor, Callable[[], None]]:
        if isinstance(executor, str):
            device = self.config.device or self._settings.device
            return make_executor(executor, workers=workers, settings=self._settings, device=device)
        if workers is not None:
            raise ConfigError("workers is for an executor given by name; leave it out where an executor is given")
        return executor, lambda: None

    @cached_property
    def source(self) -> Source:
        """The opened source."""
        from datapipe.storage.source import open_source

        limits = self._settings.limits.as_limits()
        asked = self._with_files_before() if self._update else self._asked
        return open_source(asked, limits=limits, text_columns=text_columns(self.config))

    def _with_files_before(self) -> list[str]:
        """The files of the run before, and after them those that are asked for now."""
        from datapipe.stages.history import files_before
        from datapipe.storage.source import more_files

        before = files_before(self.out)
        if not isinstance(self._asked, (str, list, os.PathLike)):
            raise ConfigError("an update adds files to a run, not a Polars frame: write the new rows to a file")
        return more_files(before, self._asked)

    @cached_property
    def history(self) -> History | None:
        """The run that an update continues."""
        from datapipe.stages.history import read_history

        if not self._update:
            return None
        digests = self.source.digests(self._known_digests)
        files = [(file.uri, digest) for file, digest in zip(self.source.files, digests, strict=True)]
        return read_history(self.out, config=self.config, files=files)

    @cached_property
    def wiring(self) -> Wiring:
        """Columns, model and stages."""
        from datapipe.stages.history import check_continues

        wiring = Wiring(self.config, self.source, settings=self._settings, history=self.history)
        if self.history is not None:
            check_continues(self.history, wiring)
        return wiring

    @property
    def stage_names(self) -> list[str]:
        """The stages, in order."""
        return self.wiring.stage_names

    def run(self, *, progress: Progress | None = None) -> CurateResult:
        """Make every stage that is missing and publish the result.

        Raises:
            LockedError: Another process is writing to the run folder.
            RejectedError: More rows were rejected than `max_rejected` allows.
            OutputError: The disk is full or cannot be written; what is finished stays.
        """
        with self._writing():
            outputs = self._make(progress=progress, until=None)
            return self._publish(outputs)

    def run_stage(self, stage: str, *, progress: Progress | None = None) -> dict[str, Any]:
        """Bring `stage` and all before it up to date; returns its rows, seconds and whether it had been done before.

        Raises:
            ConfigError: The run has no such stage.
        """
        if stage not in self.stage_names:
            raise ConfigError(f"this run has no stage {stage!r}; its stages are {', '.join(self.stage_names)}")
        with self._writing():
            self._make(progress=Only(stage, progress) if progress is not None else None, until=stage)
        own = self._timings[-1]
        return {"stage": stage, "rows": own.rows, "seconds": round(own.seconds, 3), "reused": own.reused}

    def outputs(self, *, until: str, progress: Progress | None = None) -> dict[str, StageOutput]:
        """Bring `until` and all before it up to date, and return what those stages put out."""
        with self._writing():
            return self._make(progress=progress, until=until)

    def publish(self) -> CurateResult:
        """Make the finished stages the result of the run; makes what is missing first."""
        return self.run()

    def estimate(self) -> Estimate:
        """Say what the run would read, write and take, and write nothing."""
        from datapipe.stages.estimate import estimate

        return estimate(self.wiring)

    def _writing(self) -> AbstractContextManager[None]:
        """The run folder's lock, once source and columns are known to be there: a mistyped name leaves no folder."""
        _ = self.wiring
        return exclusive(self.out)

    def _make(self, *, progress: Progress | None, until: str | None) -> dict[str, StageOutput]:
        with scratch_folder(self.out, SCRATCH) as scratch:
            try:
                pipeline = Pipeline(self.wiring.stages(self._source_digests()))
                outputs = pipeline.run(
                    StageStore(self.out / "stages"),
                    self._executor,
                    scratch=scratch,
                    progress=progress,
                    until=until,
                    check=lambda output: self._check(output, pipeline.timings[-1]),
                )
                self._timings = pipeline.timings
            finally:
                self._end()
        return outputs

    @cached_property
    def _known_digests(self) -> dict[str, str]:
        """Digests of files that have been read before, as the run folder remembers them."""
        return known_digests(self.out)

    def _source_digests(self) -> tuple[str, ...]:
        """Digests of the source files; those of unchanged files are remembered in the run folder."""
        digests = self.source.digests(self._known_digests)
        remember_digests(self.out, self._known_digests)
        return digests

    def _check(self, output: StageOutput, timing: StageTiming) -> None:
        self._check_ingest(output)
        if not timing.reused:
            record_seconds(self.out, made={f"{output.path.name}/{output.manifest_name}": timing.seconds})

    def _check_ingest(self, output: StageOutput) -> None:
        """Refuse, before anything dear is done, what cannot end well."""
        if output.name != "ingest":
            return
        if self.config.keep_rows is not None:
            budget_of(self.config).rows_of(int(output.facts["accepted"]))
        most = self.config.max_rejected
        if most is None:
            return
        rejected: dict[str, int] = dict(output.facts["rejected"])
        if sum(rejected.values()) > most:
            by_reason = ", ".join(f"{rows:,} {reason}" for reason, rows in sorted(rejected.items()))
            raise RejectedError(
                f"{sum(rejected.values()):,} rows were rejected ({by_reason}), max_rejected is {most:,}; "
                f"see {output.path / 'rejected.parquet'}"
            )

    def _publish(self, outputs: Mapping[str, StageOutput]) -> CurateResult:
        files = files_of(outputs)
        update = None
        if self.history is not None:
            from datapipe.stages.history import update_facts

            update = update_facts(self.history, outputs)
        manifest = run_manifest(
            self.config, self.source, self.wiring, outputs=outputs, names=sorted(files), update=update
        )
        manifest = publish_run(self.out, files, manifest)
        record_seconds(self.out, stages=self._timings)
        return CurateResult(out=self.out, manifest=manifest, timings=tuple(self._timings))


def curate(
    source: str | os.PathLike[str] | list[str] | pl.DataFrame | pl.LazyFrame,
    *,
    out: str | os.PathLike[str],
    workers: int | None = None,
    executor: Executor | ExecutorName = "local",
    update: bool = False,
    progress: Progress | None = None,
    **options: Unpack[CurateOptions],
) -> CurateResult:
    """Score a data set and write the rows worth training on; the same run as `datapipe curate SOURCE --out OUT`.

    A run begun in `out` is resumed: what is done is not done again. The same source and options give the same bytes,
    however the source is cut and ordered and however often the run was interrupted.

    Args:
        source: Parquet, CSV, JSON Lines or Arrow IPC; a folder, glob or list of them; a Hugging Face `save_to_disk`
            folder; an `s3://`, `gs://` or `hf://` address; a Polars frame.
        out: The run folder.
        workers: Threads, or actors of Ray; see `Curation`. The result does not depend on it.
        executor: Where the stages run that work shard by shard: `local`, `ray`, or an executor. The result does not
            depend on it.
        update: Add the source to the finished run in `out`: the files of that run stay part of it, those named now
            come after them. New rows are scored against its prototypes; these are fitted again only where the new rows
            lie further from them by more than chance and `metrics.drift.THRESHOLD`. `changes.parquet` says which rows
            came into the kept set or left it. The same files in the same order of updates give the same bytes.
        progress: Is told how far the run is; see `datapipe.progress`.
        **options: `keep`, `metric`, `strategy` and the others; see `CurateConfig`.

    Returns:
        The finished run; `result.kept` is a LazyFrame.

    Raises:
        DatapipeError: Each mistake has its own class; see `datapipe.errors`.
    """
    curation = Curation(source, out=out, workers=workers, executor=executor, update=update, **options)
    return curation.run(progress=progress)


__all__ = ["Curation", "curate"]
