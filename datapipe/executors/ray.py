"""Shards on the actors of a Ray cluster, or of a Ray that is started for the run.

    tasks -> Ray Data, one row a shard -> ShardActor: read, run, write -> a row back -> tick

An actor opens the stage once, so it loads a model once. Through Ray go names and errors only; the shards themselves go
through the run folder, which every node must see at the same path. So a run may be killed, resumed, or continued by
another executor, and its bytes are those of the local one. No result depends on the order in which shards come back.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from datapipe.errors import ConfigError, OutputError, StageError
from datapipe.executors.actor import Plan, ShardActor, canary_in
from datapipe.executors.blame import Left
from datapipe.storage.stage import StageDir
from datapipe.workers.faults import from_plain
from datapipe.workers.ray.cluster import Cluster, check_room, room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from datapipe.pipeline import ShardStage, ShardTask, StageOutput, Tick

__all__ = ["RayExecutor"]

VISIBLE_SECONDS = 60.0
"""How long a file of one node may stay unseen by another: network file systems remember what was not there."""


class RayExecutor:
    """Runs shards on Ray actors; a context manager, since a Ray that it started ends with it.

    When the first shard is to be made it takes the Ray that this process is connected to, else the cluster at
    `address`, else it starts one on this machine, without dashboard and usage report.

    Args:
        num_actors: Actors of a stage at most; None takes as many as the cluster has room for.
        num_cpus: CPUs of an actor, and so the threads that it computes with.
        num_gpus: GPUs of an actor of a stage that computes on GPUs; with a fraction, several share one. Stages that
            compute on the CPU take none.
        address: As `ray.init` takes it; None takes `RAY_ADDRESS`, and where that is not set, starts a Ray.

    Attributes:
        workers: Threads of this process, for stages that read everything at once.

    Raises:
        ConfigError: A number is out of range.
        MissingExtraError: Ray is not installed.
    """

    def __init__(
        self,
        num_actors: int | None = None,
        *,
        num_cpus: float = 1.0,
        num_gpus: float = 1.0,
        address: str | None = None,
    ) -> None:
        if num_actors is not None and num_actors < 1:
            raise ConfigError(f"num_actors must be at least 1, got {num_actors}")
        for name, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be above 0, got {value}")
        self.workers = len(os.sched_getaffinity(0))
        self._num_actors, self._num_cpus, self._num_gpus = num_actors, num_cpus, num_gpus
        self._cluster = Cluster(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the Ray that was started here, or leave the cluster that was joined here; else do nothing."""
        self._cluster.close()

    def map(
        self,
        stage: ShardStage,
        artifacts: Mapping[str, StageOutput],
        tasks: Sequence[ShardTask],
        out: StageDir,
        tick: Tick,
    ) -> None:
        """Make every task's shard in `out`; `tick` hears of whole shards. A shard whose actor died is made by another.

        Raises:
            DatapipeError: As the stage raised it, with a note naming stage and shard.
            StageError: The stage raised anything else, cannot be pickled, or its actors die again and again.
            OutputError: A node does not see the run folder, or this one does not see what a node wrote.
            ConfigError: No node is large enough for an actor.
        """
        if not tasks:
            return
        home = StageDir(out.path.absolute(), out.identity)
        left = Left(stage.name, tasks)

        def made(output: str) -> None:
            _await(home, output)
            tick(left.made(output))

        self._cluster.open()
        gpus = self._num_gpus if stage.platform.get("device", "cpu") != "cpu" else 0.0
        check_room(f"an actor of stage {stage.name}", self._num_cpus, gpus)
        with canary_in(home.path) as canary:
            plan = Plan(
                stage=stage,
                artifacts={name: replace(each, path=each.path.absolute()) for name, each in artifacts.items()},
                out=home,
                canary=canary,
                folder=str(Path.cwd()),
                threads=max(1, int(self._num_cpus)),
            )
            pickled = _pickled(plan)

            def stream(some: Sequence[ShardTask], *, places: int) -> Exception | None:
                died = _stream(_batches(pickled, some, actors=places, cpus=self._num_cpus, gpus=gpus), made, stage.name)
                for output in [output for output in left.outputs if home.done(output) is not None]:
                    made(output)  # written, but the word of it was lost with its actor
                return died

            left.make_all(stream, places=self._num_actors or room(self._num_cpus, gpus))


def _stream(batches: Any, made: Callable[[str], None], stage: str) -> Exception | None:
    """Hear of shards until one has failed, which is raised, or an actor has died, which is returned."""
    import ray.exceptions

    rows = iter(batches)
    try:
        with _quiet():
            for batch in rows:
                for row in batch.to_pylist():
                    if row["fault"] is not None:
                        raise from_plain(json.loads(row["fault"]))
                    made(row["output"])
    except ray.exceptions.RayActorError as error:
        return cast("Exception", error)
    except ray.exceptions.RayError as error:
        raise StageError(f"stage {stage} failed in Ray: {error}") from error
    finally:
        rows.close()
    return None


def _pickled(plan: Plan) -> bytes:
    import ray.cloudpickle

    try:
        pickled: bytes = ray.cloudpickle.dumps(plan)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise StageError(f"stage {plan.stage.name} cannot be sent to another process: {error}") from error
    return pickled


def _batches(plan: bytes, tasks: Sequence[ShardTask], *, actors: int, cpus: float, gpus: float) -> Any:
    """Tables of rows that come back as shards are made."""
    import ray.data

    rows = [{"output": task.output, "inputs": [str(path.absolute()) for path in task.inputs]} for task in tasks]
    with warnings.catch_warnings():
        # Ray Data warns of itself: of its own defaults, and of max_restarts, which nothing replaces.
        warnings.simplefilter("ignore", DeprecationWarning)
        # One block a shard: blocks are what Ray hands out, and what comes back.
        shards = ray.data.from_items(rows, override_num_blocks=len(rows))
        shards.context.enable_progress_bars = False
        shards.context.execution_no_progress_timeout_s = -1  # a shard may take longer than Ray Data's half an hour
        made = shards.map_batches(
            ShardActor,
            fn_constructor_args=(plan,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=actors, initial_size=actors, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=cpus,
            num_gpus=gpus,
            # Ray Data would start an actor that crashes again and again, for ever.
            max_restarts=0,
            max_task_retries=0,
        )
    return made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _await(out: StageDir, name: str) -> None:
    """Wait until this node sees a shard that another has written."""
    until = time.monotonic() + VISIBLE_SECONDS
    while out.done(name) is None:
        if time.monotonic() > until:
            raise OutputError(
                f"another node wrote {out.path / name}, but this one does not see it: is the folder shared?"
            )
        time.sleep(0.2)
        list(out.path.iterdir())  # makes a network file system ask again


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data's own words off the terminal: an error is raised, and Ray's log files hold the rest."""
    import ray.data  # noqa: F401 - sets up its logger

    handlers = [each for each in logging.getLogger("ray.data").handlers if isinstance(each, logging.StreamHandler)]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
