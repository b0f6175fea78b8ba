"""Shards on the threads of this process.

At most `workers` shards are in memory at a time; numpy, Arrow, tokenizers and torch let go of the interpreter lock
where the time is spent.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from datapipe.errors import ConfigError, DatapipeError, StageError
from datapipe.pipeline import read_shard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.pipeline import ShardStage, ShardTask, StageOutput, Tick
    from datapipe.storage.stage import StageDir


class LocalExecutor:
    """Runs shards on a bounded pool of threads.

    Args:
        workers: Threads, 1 or more; None takes one a CPU core. The results do not depend on it.
    """

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"workers must be at least 1, got {workers}")
        self.workers = workers if workers is not None else len(os.sched_getaffinity(0))

    def map(
        self,
        stage: ShardStage,
        artifacts: Mapping[str, StageOutput],
        tasks: Sequence[ShardTask],
        out: StageDir,
        tick: Tick,
    ) -> None:
        """Make every task's shard in `out`.

        Raises:
            DatapipeError: As the stage raised it, with a note naming stage and shard.
            StageError: The stage raised anything else, which is its cause.
        """
        if not tasks:
            return
        function = stage.open(artifacts)
        stopping = threading.Event()

        def guarded(rows: int) -> None:
            if stopping.is_set():
                raise CancelledError
            tick(rows)

        def make(task: ShardTask) -> None:
            guarded(0)
            try:
                table, facts = function([read_shard(path) for path in task.inputs], guarded)
                out.write_table(task.output, table, facts=facts)
            except (CancelledError, DatapipeError) as error:
                stopping.set()
                error.add_note(f"in stage {stage.name}, shard {task.output}")
                raise
            except Exception as error:
                stopping.set()
                raise StageError(f"stage {stage.name} failed on shard {task.output}: {error}") from error

        with ThreadPoolExecutor(self.workers, thread_name_prefix=f"datapipe-{stage.name}") as pool:
            futures = [pool.submit(make, task) for task in tasks]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            except BaseException:
                stopping.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            failed = [error for future in done if (error := future.exception()) is not None]
            if failed:
                pool.shutdown(wait=True, cancel_futures=True)
                raise next((error for error in failed if not isinstance(error, CancelledError)), failed[0])
