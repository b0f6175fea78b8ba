"""What runs in a process of its own: opens a stage once, then makes one shard after the other.

    Plan -> ShardActor -> read shard, run function, write shard -> name of the shard, or the error as JSON

Knows nothing of Ray, which starts it, hands it rows and takes rows back. Shards travel through the run folder, which
every node sees at the same path.
"""

from __future__ import annotations

import json
import os
import pickle
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datapipe.errors import DatapipeError, OutputError, StageError
from datapipe.pipeline import read_shard
from datapipe.storage.atomic import TEMPORARY_SUFFIX, write_atomically
from datapipe.workers.faults import to_plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from datapipe.pipeline import ShardFunction, ShardStage, StageOutput
    from datapipe.storage.stage import StageDir

__all__ = ["Canary", "Plan", "ShardActor", "canary_in"]

THREADS = "DATAPIPE_THREADS"


@dataclass(frozen=True)
class Canary:
    """A file that proves that a node sees the run folder.

    Attributes:
        path: Where it lies.
        content: What it holds, different for each.
    """

    path: Path
    content: bytes

    def look(self) -> None:
        """Raise `OutputError` where this node does not see it."""
        try:
            found = self.path.read_bytes()
        except OSError as error:
            found = repr(error).encode()
        if found != self.content:
            raise OutputError(
                f"node {os.uname().nodename} does not see the run folder {self.path.parent.parent.parent}: executor "
                "ray needs a folder that every node mounts at the same path. Choose one, or executor local"
            )


@contextmanager
def canary_in(folder: Path) -> Iterator[Canary]:
    """Keep a canary in a stage's folder; one that a killed run leaves goes with its half-written shards."""
    canary = Canary(folder / f".canary.{os.urandom(4).hex()}{TEMPORARY_SUFFIX}", os.urandom(16))
    write_atomically(canary.path, canary.content)
    try:
        yield canary
    finally:
        canary.path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an actor needs besides its shards.

    Attributes:
        stage: What to run.
        artifacts: The set stages that it reads whole, by absolute path.
        out: Where the shards go, by absolute path.
        canary: Seen before the stage is opened.
        folder: Working directory of the driver, so that a model's relative path means the same.
        threads: Threads to compute with; no result depends on them.
    """

    stage: ShardStage
    artifacts: Mapping[str, StageOutput]
    out: StageDir
    canary: Canary
    folder: str
    threads: int


class ShardActor:
    """Makes shards. An error goes back as a value, since Ray would wrap it and lose what it holds.

    Args:
        plan: A pickled `Plan`.
    """

    def __init__(self, plan: bytes) -> None:
        self._fault: DatapipeError | None = None
        try:
            self._open(pickle.loads(plan))  # noqa: S301 - pickled by the driver of this very run
        except DatapipeError as error:
            self._fault = error
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the driver
            self._fault = StageError(f"a stage cannot be opened on node {os.uname().nodename}: {error!r}")
            self._fault.__cause__ = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Make the shards of a batch: `output` and `inputs` in, `output` and `fault` (JSON, null where made) out."""
        import pyarrow as pa

        rows = batch.to_pylist()
        faults = [self._made(row["output"], row["inputs"]) for row in rows]
        return pa.table({"output": batch["output"], "fault": pa.array(faults, pa.string())})

    def _open(self, plan: Plan) -> None:
        plan.canary.look()
        if Path(plan.folder).is_dir():
            os.chdir(plan.folder)
        os.environ[THREADS] = str(plan.threads)
        self._stage, self._out = plan.stage, plan.out
        self._function: ShardFunction = plan.stage.open(plan.artifacts)

    def _made(self, output: str, inputs: Sequence[str]) -> str | None:
        try:
            if self._fault is not None:
                raise self._fault
            self._make(output, inputs)
        except DatapipeError as error:
            return json.dumps(to_plain(error))
        return None

    def _make(self, output: str, inputs: Sequence[str]) -> None:
        try:
            table, facts = self._function([read_shard(Path(path)) for path in inputs], lambda _: None)
            self._out.write_table(output, table, facts=facts)
        except DatapipeError as error:
            error.add_note(f"in stage {self._stage.name}, shard {output}")
            raise
        except Exception as error:
            raise StageError(f"stage {self._stage.name} failed on shard {output}: {error}") from error
