"""Coverage of the embedding space by every row.

    vectors -> one file of columns on scratch (bfloat16, dim by dim) -> planes -> scores-*.parquet: row_id, coverage

Rows that screening took out cover nothing and have NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.scoring import ScoreFamily

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.pipeline import Stage
    from datapipe.stages.scoring import ScoreInputs
    from datapipe.storage.stage import StageDir


@dataclass(frozen=True, kw_only=True)
class CoverageConfig:
    """What the scores depend on.

    Attributes:
        vectors: Where the vectors are.
        screened: Whether rows may be excluded.
        seed: Of the draws.
        draws: Points drawn.
        planes: Pairs of dims in which they are drawn.
        metric: The metric's name.
    """

    vectors: str
    screened: bool
    seed: int
    draws: int
    planes: int
    metric: str = "coverage"


@dataclass(frozen=True)
class ScoreCoverage(SetStage):
    """Turn the vectors into columns, then draw. Disk: 2 * dim bytes a row."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 2

    settings: CoverageConfig

    @property
    def config(self) -> CoverageConfig:
        """The frozen config."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """The vectors, and the exclusions where there may be some."""
        return (self.settings.vectors, *(("screen/excluded",) if self.settings.screened else ()))

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Score all rows that are left. Raises `MetricError` for vectors of one dim."""
        import numpy as np

        from datapipe.metrics.coverage import coverage
        from datapipe.stages.proxy import write_aligned
        from datapipe.stages.vectors import VectorSource

        settings = self.settings
        source = VectorSource(inputs, settings.vectors, screened=settings.screened)
        left = source.left()
        rows = int(left.sum())
        scores = np.full(len(left), np.nan, np.float32)
        if rows:
            columns = np.memmap(context.scratch / "columns.bf16", np.uint16, "w+", shape=(source.dim, rows))
            start = 0
            for bits in source.codes(left):
                columns[:, start : start + len(bits)] = bits.T
                start += len(bits)
                context.tick(len(bits))
            scores[left] = coverage(
                columns,
                seed=settings.seed,
                draws=settings.draws,
                planes=settings.planes,
                tick=lambda _: context.tick(0),
            )
        name, _, family = settings.vectors.partition("/")
        names = write_aligned(inputs[name], family or None, out, prefix="scores", columns={settings.metric: scores})
        return names, {"rows": rows, "draws": settings.draws, "planes": settings.planes}


def _make(inputs: ScoreInputs) -> list[Stage]:
    from datapipe.metrics.coverage import DRAWS, PLANES

    vectors = str(inputs.vectors)
    settings = CoverageConfig(vectors=vectors, screened=inputs.screened, seed=inputs.seed, draws=DRAWS, planes=PLANES)
    return [ScoreCoverage(settings=settings)]


FAMILY = ScoreFamily(stages=("score",), clusters=False, make=_make)
