"""Memorization scores: heads learn random halves and their complements.

`score` reads vectors and labels, and writes row_id and memorization (float32; NaN for a row without a label).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.stages.proxy import HeadStage, RowInputs, read_rows, write_aligned
from datapipe.stages.scoring import ScoreFamily

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.pipeline import Context, Stage, StageOutput
    from datapipe.stages.scoring import ScoreInputs
    from datapipe.storage.stage import StageDir

PAIRS = 10


@dataclass(frozen=True, kw_only=True)
class MemorizationConfig:
    """What the heads depend on.

    Attributes:
        metric: Its name.
        pairs: Random halves; each and its complement are learnt by one head.
        hidden: Width of the hidden layer.
        epochs: Passes over a half.
        seed: Of the halves and the heads.
        screened: Whether rows may be excluded; those are not learnt from.
    """

    metric: str = "memorization"
    pairs: int = PAIRS
    hidden: int = 256
    epochs: int = 20
    seed: int = 0
    screened: bool = False


@dataclass(frozen=True)
class ScoreMemorization(HeadStage):
    """Heads on halves."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1

    settings: MemorizationConfig

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Train and compare."""
        from datapipe.metrics.memorization import halves_of
        from datapipe.proxies.heads import HeadConfig
        from datapipe.proxies.training import Place, default_batch, memorization_of_heads

        rows, settings = read_rows(self.rows, inputs, context), self.settings
        data = rows.data()
        batch = default_batch(len(data.trained) // 2)
        scores = memorization_of_heads(
            data,
            HeadConfig(hidden=settings.hidden, epochs=settings.epochs, batch_rows=batch),
            halves=halves_of(rows.ids, pairs=settings.pairs, seed=settings.seed),
            seed=settings.seed,
            place=Place(scratch=context.scratch, device=self.device, threads=context.workers),
        )
        names = write_aligned(inputs["ingest"], "rows", out, prefix="scores", columns={"memorization": scores})
        return names, {"rows": len(scores), "trained": len(data.trained), "heads": 2 * settings.pairs}


def _make(inputs: ScoreInputs) -> list[Stage]:
    rows = RowInputs(vectors=str(inputs.vectors), labelled=True, screened=inputs.screened)
    settings = MemorizationConfig(seed=inputs.seed, screened=inputs.screened)
    return [ScoreMemorization(settings=settings, rows=rows, device=inputs.device, bits=inputs.bits)]


FAMILY = ScoreFamily(stages=("score",), clusters=False, make=_make)
