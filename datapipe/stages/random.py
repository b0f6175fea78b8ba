"""Random scores from the row ids alone.

Reads `ingest/rows`. Writes row_id, random (float32) and cluster (int32, all 0: nothing is clustered).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import ShardStage, StageOutput
from datapipe.stages.scoring import ScoreFamily

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from datapipe.pipeline import ShardFunction, Stage, Tick
    from datapipe.stages.scoring import ScoreInputs


@dataclass(frozen=True)
class ScoreRandom(ShardStage):
    """The place of every row in the seeded hash order.

    Attributes:
        seed: Another seed, another order.
    """

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1

    seed: int

    @property
    def config(self) -> dict[str, Any]:
        """The metric's name and the seed."""
        return {"metric": "random", "seed": self.seed}

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows, for their ids."""
        return ("ingest/rows",)

    def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
        """Nothing to load."""
        return self._score

    def _score(self, tables: Sequence[pa.Table], tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
        import numpy as np
        import pyarrow as pa

        from datapipe.metrics.random import random_scores
        from datapipe.storage.rowid import ids_from_arrow

        ids = tables[0]["row_id"]
        scores = random_scores(ids_from_arrow(ids), seed=self.seed)
        tick(len(scores))
        clusters = np.zeros(len(scores), np.int32)
        return pa.table({"row_id": ids, "random": pa.array(scores), "cluster": pa.array(clusters)}), {}


def _make(inputs: ScoreInputs) -> list[Stage]:
    return [ScoreRandom(seed=inputs.seed)]


FAMILY = ScoreFamily(stages=("score",), clusters=False, make=_make)
