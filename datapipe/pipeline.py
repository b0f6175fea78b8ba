"""What a step is and in which order steps run.

A `ShardStage` maps shards to shards, one by one, anywhere: its output shards are named by their inputs' digests, so a
shard that has not changed is never made again. A `SetStage` reads everything before it (sort, fit, select). Both are
pure functions of their inputs and their frozen config; `Pipeline` gives each its directory, skips what is done, and
leaves the machines to an executor.

    Pipeline([Ingest(...), Embed(...), Fit(...), Score(...)]).run(store, executor) -> {"ingest": StageOutput, ...}
"""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from datapipe.errors import StageError
from datapipe.outputs import StageOutput, read_shard
from datapipe.progress import Progress, Silent
from datapipe.storage.atomic import make_folder
from datapipe.storage.digest import digest_of
from datapipe.storage.stage import MANIFEST, ShardInfo, StageDir, StageIdentity, StageStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    Tick: TypeAlias = Callable[[int], None]
    """Called with the rows just done; raises where the run is being stopped."""
    ShardFunction: TypeAlias = Callable[[Sequence[pa.Table], Tick], tuple[pa.Table, dict[str, Any]]]
    """One table an input in, one table and its facts out; rows keep their order."""

__all__ = [
    "Context",
    "Executor",
    "Pipeline",
    "SetStage",
    "ShardStage",
    "ShardTask",
    "Stage",
    "StageOutput",
    "StageTiming",
    "read_shard",
]


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to make: which files to read and what to call the result."""

    inputs: tuple[Path, ...]
    output: str
    rows: int


@dataclass(frozen=True)
class Context:
    """What a set stage may use besides its inputs.

    Attributes:
        scratch: An empty folder of its own, removed when the stage ends.
        tick: To be called with the rows just done; raises where the run is being stopped.
        workers: Threads that it may use.
    """

    scratch: Path
    tick: Tick
    workers: int


class Stage(ABC):
    """A named step. `version` is raised whenever the code changes what it writes.

    Attributes:
        version: Part of the stage's identity.
    """

    version: ClassVar[int]

    @property
    @abstractmethod
    def name(self) -> str:
        """Unique in a pipeline; also the prefix of its directory. Most classes have one name for all their stages."""

    @property
    @abstractmethod
    def config(self) -> Any:
        """The frozen config; every field of it changes the stage's directory, so no field may be without effect."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Stages whose shards come in, as `stage` or `stage/family`."""
        return ()

    @property
    def models(self) -> tuple[str, ...]:
        """Digests of the models that the stage runs."""
        return ()

    @property
    def platform(self) -> Mapping[str, str]:
        """What changes its bits from one machine to the next."""
        return {}

    def identity(self, inputs: Sequence[str]) -> StageIdentity:
        """The stage's identity, given the digests of what it reads whole."""
        return StageIdentity(
            name=self.name,
            version=self.version,
            config=self.config,
            inputs=tuple(inputs),
            models=self.models,
            platform=dict(self.platform),
        )


class ShardStage(Stage):
    """Maps aligned shards to shards."""

    @property
    def uses(self) -> tuple[str, ...]:
        """Set stages that are read whole (centroids, say)."""
        return ()

    @abstractmethod
    def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
        """Load what all shards share and return the function; called once in each process that runs the stage."""


class SetStage(Stage):
    """Reads all shards of the stages before it."""

    @abstractmethod
    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Fill `out`; return the names of its shards, in order, and the stage's facts."""


class Executor(Protocol):
    """Runs a shard stage over many shards; where, is its business."""

    workers: int

    def map(
        self,
        stage: ShardStage,
        artifacts: Mapping[str, StageOutput],
        tasks: Sequence[ShardTask],
        out: StageDir,
        tick: Tick,
    ) -> None:
        """Make every task's shard in `out`. The first error stops the rest and is raised."""


@dataclass
class StageTiming:
    """How long a stage took in this process.

    Attributes:
        stage: Its name.
        rows: Rows that it put out.
        seconds: Wall seconds; near zero where the stage had been done before.
        reused: Whether it had been done before.
    """

    stage: str
    rows: int
    seconds: float
    reused: bool


@dataclass
class Pipeline:
    """Stages in order; each may need those before it.

    Attributes:
        stages: In the order in which they run.
        given: Outputs of a finished run by name, which the stages may need too.
        timings: Of the last run.

    Raises:
        StageError: Two stages have one name, or a stage needs what does not come before it.
    """

    stages: Sequence[Stage]
    given: Mapping[str, StageOutput] = field(default_factory=dict)
    timings: list[StageTiming] = field(default_factory=list)

    def __post_init__(self) -> None:
        seen: set[str] = set(self.given)
        for stage in self.stages:
            for need in (*stage.needs, *(stage.uses if isinstance(stage, ShardStage) else ())):
                if need.split("/")[0] not in seen:
                    raise StageError(
                        f"stage {stage.name} needs {need}, which does not come before it; order: "
                        + " -> ".join(each.name for each in self.stages)
                    )
            if stage.name in seen:
                raise StageError(f"two stages are called {stage.name}")
            seen.add(stage.name)

    def run(
        self,
        store: StageStore,
        executor: Executor,
        *,
        scratch: Path,
        progress: Progress | None = None,
        until: str | None = None,
        check: Callable[[StageOutput], None] | None = None,
    ) -> dict[str, StageOutput]:
        """Run every stage that is not done yet, up to and including `until`; return all outputs by name.

        `check` sees each output, made now or before, and stops the run by raising.
        """
        shown = progress if progress is not None else Silent()
        outputs: dict[str, StageOutput] = dict(self.given)
        self.timings = []
        for stage in self.stages:
            outputs[stage.name] = self._run_one(stage, outputs, store, executor, scratch, shown)
            if check is not None:
                check(outputs[stage.name])
            if stage.name == until:
                break
        return outputs

    def _run_one(
        self,
        stage: Stage,
        outputs: Mapping[str, StageOutput],
        store: StageStore,
        executor: Executor,
        scratch: Path,
        progress: Progress,
    ) -> StageOutput:
        begun = time.perf_counter()
        if isinstance(stage, ShardStage):
            output, reused = _run_shards(stage, outputs, store, executor, progress)
        elif isinstance(stage, SetStage):
            output, reused = _run_set(stage, outputs, store, executor.workers, scratch / stage.name, progress)
        else:
            raise StageError(f"stage {stage.name} is neither a ShardStage nor a SetStage")
        seconds, rows = time.perf_counter() - begun, _rows_of(output)
        progress.finish(stage.name, rows=rows, seconds=seconds, reused=reused)
        self.timings.append(StageTiming(stage.name, rows, seconds, reused))
        return output


def _rows_of(output: StageOutput) -> int:
    return int(output.facts.get("rows", output.manifest.rows))


def _family(outputs: Mapping[str, StageOutput], need: str) -> tuple[Path, tuple[ShardInfo, ...]]:
    name, _, family = need.partition("/")
    return outputs[name].path, outputs[name].parts(family or None)


def _run_shards(
    stage: ShardStage, outputs: Mapping[str, StageOutput], store: StageStore, executor: Executor, progress: Progress
) -> tuple[StageOutput, bool]:
    artifacts = {name: outputs[name] for name in stage.uses}
    out = store.open(stage.identity([artifacts[name].digest for name in stage.uses]))
    tasks = _tasks(stage, outputs)
    manifest_name = f"manifest-{digest_of([task.output for task in tasks])[:16]}.json"
    manifest = out.manifest(manifest_name)
    reused = manifest is not None
    progress.start(stage.name, total=sum(task.rows for task in tasks))
    if manifest is None:
        missing = list({task.output: task for task in tasks if out.done(task.output) is None}.values())
        progress.advance(sum(task.rows for task in tasks) - sum(task.rows for task in missing))
        executor.map(stage, artifacts, missing, out, progress.advance)
        facts = _summed(out, tasks)
        parts = max(outputs[need.split("/")[0]].generations for need in stage.needs)
        if parts > 1:
            facts["generations"] = parts
        manifest = out.finish([task.output for task in tasks], facts=facts, manifest=manifest_name)
    return StageOutput(name=stage.name, path=out.path, manifest_name=manifest_name, manifest=manifest), reused


def _tasks(stage: ShardStage, outputs: Mapping[str, StageOutput]) -> list[ShardTask]:
    families = [_family(outputs, need) for need in stage.needs]
    counts = {len(shards) for _, shards in families}
    if len(counts) != 1:
        raise StageError(f"stage {stage.name}: its inputs {', '.join(stage.needs)} have different numbers of shards")
    tasks = []
    for aligned in zip(*(shards for _, shards in families), strict=True):
        if len({shard.rows for shard in aligned}) != 1:
            raise StageError(f"stage {stage.name}: shards {', '.join(s.name for s in aligned)} differ in rows")
        digest = aligned[0].sha256 if len(aligned) == 1 else digest_of([shard.sha256 for shard in aligned])
        paths = tuple(path / shard.name for (path, _), shard in zip(families, aligned, strict=True))
        tasks.append(ShardTask(inputs=paths, output=f"{digest[:24]}.parquet", rows=aligned[0].rows))
    return tasks


def _summed(out: StageDir, tasks: Sequence[ShardTask]) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for task in tasks:
        info = out.done(task.output)
        if info is not None:
            total.update({key: value for key, value in info.facts.items() if isinstance(value, int)})
    return dict(total)


def _run_set(
    stage: SetStage,
    outputs: Mapping[str, StageOutput],
    store: StageStore,
    workers: int,
    scratch: Path,
    progress: Progress,
) -> tuple[StageOutput, bool]:
    digests = [digest_of([shard.sha256 for shard in _family(outputs, need)[1]]) for need in stage.needs]
    out = store.open(stage.identity(digests))
    manifest = out.manifest()
    reused = manifest is not None
    rows = sum(shard.rows for need in stage.needs[:1] for shard in _family(outputs, need)[1])
    progress.start(stage.name, total=rows or None)
    if manifest is None:
        shutil.rmtree(scratch, ignore_errors=True)
        make_folder(scratch)
        try:
            inputs = {need.split("/")[0]: outputs[need.split("/")[0]] for need in stage.needs}
            names, facts = stage.run(inputs, out, Context(scratch, progress.advance, workers))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        manifest = out.finish(names, facts=facts)
    return StageOutput(name=stage.name, path=out.path, manifest_name=MANIFEST, manifest=manifest), reused
