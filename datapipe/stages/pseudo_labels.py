"""Pseudo-label AUM: k-means clusters as labels, heads that learn them, and how contested each row was.

`score` reads vectors, and writes row_id, pseudo_label_aum (float32) and cluster (int32, of the first clustering).
Clusters are fitted to a sample in hash order, of the rows that screening left; then every row takes its nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import MetricError
from datapipe.stages.proxy import HeadStage, RowInputs, Rows, read_rows, write_aligned
from datapipe.stages.scoring import ScoreFamily

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.pipeline import Context, Stage, StageOutput
    from datapipe.stages.scoring import ScoreInputs
    from datapipe.storage.arrays import Float32, Int32
    from datapipe.storage.stage import StageDir

SAMPLE_ROWS = 131_072
_DECODE_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """What the scores depend on.

    Attributes:
        metric: Its name.
        prototypes: Clusters; None for a number from the rows.
        hidden: Width of the hidden layer.
        epochs: Passes over the rows.
        sample_rows: Most rows that clusters are fitted to.
        seed: Of clusterings and heads.
        screened: Whether rows may be excluded; those are not learnt from.
    """

    metric: str = "pseudo_label_aum"
    prototypes: int | None = None
    hidden: int = 256
    epochs: int = 20
    sample_rows: int = SAMPLE_ROWS
    seed: int = 0
    screened: bool = False


@dataclass(frozen=True)
class ScorePseudoLabels(HeadStage):
    """Cluster, learn the clusters, score."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 2

    settings: PseudoLabelConfig

    @property
    def needs(self) -> tuple[str, ...]:
        """Vectors, the rows and exclusions."""
        rows = () if self.rows.vectors == "ingest/rows" else ("ingest/rows",)
        return (*self.rows.needs, *rows)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """One head a clustering."""
        import numpy as np

        from datapipe.metrics.pseudo_labels import cluster_sizes
        from datapipe.proxies.heads import HeadConfig, HeadData
        from datapipe.proxies.training import Place, aum_of_heads, default_batch

        rows, settings = read_rows(self.rows, inputs, context), self.settings
        trained = np.flatnonzero(rows.left)
        if len(trained) < 2:  # noqa: PLR2004 - two clusters need two rows
            raise MetricError(f"pseudo labels need at least two rows to cluster, there are {len(trained)}")
        sizes = cluster_sizes(len(trained), prototypes=settings.prototypes)
        labels = [self._clusters(rows, k, settings.seed + i, context.workers) for i, k in enumerate(sizes)]
        if any(len(np.unique(own[trained])) < 2 for own in labels):  # noqa: PLR2004 - one label is learnt at once
            raise MetricError(
                f"the vectors of {len(trained)} rows make up one cluster, so there are no pseudo labels to learn: they "
                "are all alike; look at the vectors, or take the metric random"
            )
        scores = aum_of_heads(
            [HeadData(rows.codes, own, trained, k) for own, k in zip(labels, sizes, strict=True)],
            HeadConfig(hidden=settings.hidden, epochs=settings.epochs, batch_rows=default_batch(len(trained))),
            seed=settings.seed,
            place=Place(scratch=context.scratch, device=self.device, threads=context.workers),
        )
        columns = {"pseudo_label_aum": scores, "cluster": labels[0]}
        names = write_aligned(inputs["ingest"], "rows", out, prefix="scores", columns=columns)
        return names, {"rows": len(scores), "clusters": sizes}

    def _clusters(self, rows: Rows, k: int, seed: int, threads: int) -> Int32:
        """The cluster of every row, int32 (rows,)."""
        import numpy as np

        from datapipe.metrics.assign import Assigner
        from datapipe.metrics.kmeans import spherical_kmeans

        centroids = spherical_kmeans(self._sample(rows, seed), k=k, seed=seed, device=self.device, threads=threads)
        with Assigner(centroids, device=self.device, threads=threads) as assigner:
            starts = range(0, len(rows.codes), _DECODE_ROWS)
            parts = [
                assigner.assign_bfloat16(np.array(rows.codes[start : start + _DECODE_ROWS]))[1] for start in starts
            ]
        return np.concatenate(parts)

    def _sample(self, rows: Rows, seed: int) -> Float32:
        import numpy as np

        from datapipe.storage.order import hash_order, seed_for

        left = np.flatnonzero(rows.left)
        if len(left) > self.settings.sample_rows:
            keys = hash_order(rows.ids[left], seed=seed_for("pseudo labels", seed))
            left = np.sort(left[np.argsort(keys, kind="stable")[: self.settings.sample_rows]])
        bits = rows.codes[left].astype(np.uint32) << 16
        sample: Float32 = bits.view(np.float32)
        return sample


def _make(inputs: ScoreInputs) -> list[Stage]:
    rows = RowInputs(vectors=str(inputs.vectors), labelled=False, screened=inputs.screened)
    settings = PseudoLabelConfig(prototypes=inputs.prototypes, seed=inputs.seed, screened=inputs.screened)
    return [ScorePseudoLabels(settings=settings, rows=rows, device=inputs.device, bits=inputs.bits)]


FAMILY = ScoreFamily(stages=("score",), clusters=True, make=_make)
