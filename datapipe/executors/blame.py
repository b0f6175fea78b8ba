"""Which shards are left to make, and which of them processes die of.

A process that dies (killed, out of memory) takes the pool with it, and nobody says over which shard. What had begun
is among the first that are left; made one after the other, the next process dies of the first that is left then. That
one goes to the end of the line, so the others are made before it is tried again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Protocol

from datapipe.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.pipeline import ShardTask

__all__ = ["BARREN", "DEATHS", "Left"]

DEATHS = 3
"""Times that a process may die of one shard; then the stage has failed."""

BARREN = 6
"""Deaths in a row without one shard made between them; then the stage has failed, whatever the shards."""


class Stream(Protocol):
    """Makes shards in their order, `places` at a time; returns what a process died of, None where none did."""

    def __call__(self, tasks: Sequence[ShardTask], /, *, places: int) -> Exception | None:
        """Make the shards, telling `Left.made` of each."""


class Left:
    """The shards of a stage that are not made yet, in the order in which they are to be made.

    Args:
        stage: Name of the stage.
        tasks: The shards.
    """

    def __init__(self, stage: str, tasks: Sequence[ShardTask]) -> None:
        self._stage = stage
        self._tasks = {task.output: task for task in tasks}
        self._deaths: Counter[str] = Counter()
        self._barren = 0

    @property
    def outputs(self) -> list[str]:
        """Names of the shards that are left."""
        return list(self._tasks)

    def made(self, output: str) -> int:
        """Strike a shard off; returns its rows."""
        self._barren = 0
        return self._tasks.pop(output).rows

    def make_all(self, stream: Stream, *, places: int) -> None:
        """Make every shard, over the death of processes.

        Raises:
            StageError: Processes die again and again; names the shard, if it is one.
        """
        while self._tasks:
            before = len(self._tasks)
            died = stream(list(self._tasks.values()), places=min(places, before))
            if died is None and len(self._tasks) == before:
                raise StageError(f"stage {self._stage}: {before} shards were given away and none came back")
            begun = list(self._tasks.values())[:places]
            if died is not None and len(begun) > 1:
                died = stream(begun, places=1)
                begun = [task for task in begun if task.output in self._tasks]
            if died is not None and begun:
                self._blame(begun[0].output, died)

    def _blame(self, output: str, died: Exception) -> None:
        self._deaths[output] += 1
        self._barren += 1
        self._tasks[output] = self._tasks.pop(output)
        if self._deaths[output] >= DEATHS:
            what = f"{DEATHS} processes died of shard {output}"
        elif self._barren >= BARREN:
            what = f"{BARREN} processes died one after the other, the last of shard {output}"
        else:
            return
        message = f"stage {self._stage}: {what}, {len(self._tasks)} shards are left; is there enough memory?"
        raise StageError(f"{message} ({died})") from died
