"""Training dynamics once, then any metric made of them.

`dynamics` trains heads on the vectors and the labels, or reads what the user's own loop recorded, and writes row_id and
el2n, grand, margin, entropy, forgetting, aum, dual, mean_probability (float32; NaN for a row without a label, or that
was not recorded). `score` picks the run's metric, so another metric of the same folder trains nothing; with dual comes
the mean probability by which it is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import MetricError
from datapipe.pipeline import Context, SetStage, ShardStage, StageOutput
from datapipe.stages.proxy import HeadStage, RowInputs, file_digest, read_rows, write_aligned
from datapipe.stages.scoring import ScoreFamily

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from datapipe.pipeline import ShardFunction, Stage, Tick
    from datapipe.stages.scoring import ScoreInputs
    from datapipe.storage.stage import StageDir

HEADS = 4


@dataclass(frozen=True, kw_only=True)
class DynamicsConfig:
    """What the heads depend on.

    Attributes:
        heads: Seeds whose metrics are averaged.
        hidden: Width of the hidden layer; 0 for linear heads.
        epochs: Passes over the rows.
        learning_rate: Of AdamW at the start.
        seed: Of the first head; the others take the seeds after it.
        screened: Whether rows may be excluded; those are not learnt from.
    """

    heads: int = HEADS
    hidden: int = 256
    epochs: int = 20
    learning_rate: float = 0.003
    seed: int = 0
    screened: bool = False


@dataclass(frozen=True)
class TrainHeads(HeadStage):
    """Heads on frozen vectors, watched while they learn."""

    name: ClassVar[str] = "dynamics"
    version: ClassVar[int] = 3

    settings: DynamicsConfig

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Train, and write all metrics."""
        from datapipe.metrics.dynamics import DYNAMICS
        from datapipe.proxies.heads import HeadConfig
        from datapipe.proxies.training import Place, default_batch, dynamics_of_heads

        rows, settings = read_rows(self.rows, inputs, context), self.settings
        data = rows.data()
        config = HeadConfig(
            hidden=settings.hidden,
            epochs=settings.epochs,
            batch_rows=default_batch(len(data.trained)),
            learning_rate=settings.learning_rate,
        )
        place = Place(scratch=context.scratch, device=self.device, threads=context.workers)
        found = dynamics_of_heads(data, config, heads=settings.heads, seed=settings.seed, place=place)
        columns = dict(zip(DYNAMICS, found, strict=True))
        names = write_aligned(inputs["ingest"], "rows", out, prefix="dynamics", columns=columns)
        facts = {"rows": len(rows.labels), "trained": len(data.trained), "classes": data.classes}
        return names, {**facts, "epochs": settings.epochs, "heads": settings.heads}


@dataclass(frozen=True)
class ReadDynamics(SetStage):
    """The user's own dynamics, from a file of `DynamicsRecorder`."""

    name: ClassVar[str] = "dynamics"
    version: ClassVar[int] = 3

    path: str
    sha256: str = field(default="")

    @property
    def config(self) -> dict[str, Any]:
        """The file's content."""
        return {"recorded": self.sha256}

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows, for their ids."""
        return ("ingest/rows",)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Join by row id."""
        import numpy as np

        from datapipe.metrics.imported import places_of, scores_at
        from datapipe.proxies.recorder import read_dynamics
        from datapipe.storage.rowid import ids_from_arrow

        known, metrics = read_dynamics(self.path)
        ids = np.concatenate([ids_from_arrow(t["row_id"]) for t in inputs["ingest"].tables("rows", columns=["row_id"])])
        places = places_of(ids, known)
        columns = {name: scores_at(places, values) for name, values in metrics.items()}
        found = int((places >= 0).sum())
        if not found:
            raise MetricError(
                f"none of the {len(known):,} row ids of {self.path} is a row of this run: name the id_column"
            )
        context.tick(len(ids))
        names = write_aligned(inputs["ingest"], "rows", out, prefix="dynamics", columns=columns)
        return names, {"rows": len(ids), "recorded": found, "unknown": len(known) - found}


@dataclass(frozen=True)
class PickMetric(ShardStage):
    """One of the metrics."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 2

    metric: str

    @property
    def config(self) -> dict[str, Any]:
        """The metric's name."""
        return {"metric": self.metric}

    @property
    def needs(self) -> tuple[str, ...]:
        """All metrics."""
        return ("dynamics",)

    def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
        """Nothing to load."""
        return self._pick

    def _pick(self, tables: Sequence[pa.Table], tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
        from datapipe.metrics.dynamics import MEAN_PROBABILITY

        tick(tables[0].num_rows)
        beside = [MEAN_PROBABILITY] if self.metric == "dual" else []
        return tables[0].select(["row_id", self.metric, *beside]), {}


def _make(inputs: ScoreInputs) -> list[Stage]:
    recorded = inputs.options.get("dynamics")
    if recorded is not None:
        if inputs.metric == "grand":
            raise MetricError(
                "grand needs the last layer's features, which no recorder sees: take el2n, or leave out dynamics"
            )
        return [ReadDynamics(recorded, file_digest(recorded)), PickMetric(inputs.metric)]
    rows = RowInputs(vectors=str(inputs.vectors), labelled=True, screened=inputs.screened)
    settings = DynamicsConfig(seed=inputs.seed, screened=inputs.screened)
    return [
        TrainHeads(settings=settings, rows=rows, device=inputs.device, bits=inputs.bits),
        PickMetric(inputs.metric),
    ]


FAMILY = ScoreFamily(stages=("dynamics", "score"), clusters=False, make=_make)
