"""Scores by the nearest neighbours of each row: `knn_density`, `typicality`.

    vectors -> [centroids of a sample -> lists] -> lists on scratch -> cosines to the k nearest -> scores-*.parquet

Up to `EXACT_ROWS` rows all pairs are compared; above, the rows of the nearest lists, and the facts say the recall on a
sample in hash order. Rows that screening took out are nobody's neighbour and have NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.stages.device import DeviceStage
from datapipe.stages.scoring import ScoreFamily

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from datapipe.pipeline import Context, Stage, StageOutput
    from datapipe.stages.scoring import ScoreInputs
    from datapipe.stages.vectors import VectorSource
    from datapipe.storage.arrays import Bool, Float32
    from datapipe.storage.lists import VectorLists
    from datapipe.storage.stage import StageDir

RECALL_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """What the scores depend on.

    Attributes:
        metric: `knn_density` or `typicality`.
        vectors: Where the vectors are.
        screened: Whether rows may be excluded.
        neighbours: k, >= 1.
        exact_rows: Rows up to which all pairs are compared.
        probes: Lists that each list is compared with above that, >= 1.
        seed: Seeds the sample and the centroids of the lists.
    """

    metric: str
    vectors: str
    screened: bool
    neighbours: int
    exact_rows: int
    probes: int = 32
    seed: int = 0


@dataclass(frozen=True)
class ScoreNeighbours(DeviceStage):
    """Search, then score. Memory: 8 * k + 28 bytes a row, the sample of the centroids, and tiles."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 3

    settings: NeighboursConfig

    @property
    def needs(self) -> tuple[str, ...]:
        """The vectors, and the exclusions where there may be some."""
        return (self.settings.vectors, *(("screen/excluded",) if self.settings.screened else ()))

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Build the lists, search them, write the scores."""
        import numpy as np

        from datapipe.metrics import density
        from datapipe.metrics.knn import measured_recall, nearest_cosines, neighbour_lists
        from datapipe.stages.proxy import write_aligned
        from datapipe.stages.vectors import VectorSource

        settings, threads = self.settings, context.workers
        source = VectorSource(inputs, settings.vectors, screened=settings.screened)
        left = source.left()
        rows = int(left.sum())
        lists, centroids = self._lists(source, left, context)
        near = neighbour_lists(centroids, settings.probes, threads=threads)
        found = nearest_cosines(
            lists, near, k=settings.neighbours, device=self.device, threads=threads, tick=context.tick
        )
        facts: dict[str, Any] = {"rows": rows, "lists": len(lists), "neighbours": settings.neighbours, "recall": 1.0}
        if len(lists) > 1:
            sample = np.linspace(0, rows - 1, min(RECALL_ROWS, rows)).astype(np.int64)
            facts["recall"] = round(measured_recall(found[sample], _exact(lists, sample, settings.neighbours)), 4)
        scores = np.full(len(left), np.nan, np.float32)
        scores[left] = getattr(density, settings.metric)(found)
        name, _, family = settings.vectors.partition("/")
        columns = {settings.metric: scores}
        return write_aligned(inputs[name], family or None, out, prefix="scores", columns=columns), facts

    def _lists(self, source: VectorSource, left: Bool, context: Context) -> tuple[VectorLists, Float32]:
        rows = int(left.sum())
        k = 1 if rows <= self.settings.exact_rows else max(round(rows**0.5), 1)
        path = context.scratch / "lists.bf16"
        return source.lists(left, k=k, seed=self.settings.seed, device=self.device, threads=context.workers, path=path)


def _exact(lists: VectorLists, sample: NDArray[np.int64], k: int) -> Float32:
    """The k greatest cosines of some rows among all others, float32 (sample, k)."""
    import numpy as np

    place = np.empty(len(lists.rows), np.int64)
    place[lists.rows] = np.arange(len(lists.rows))
    queries = np.concatenate([lists.unit(slice(at, at + 1)) for at in place[sample].tolist()])
    best = np.full((len(sample), k), -np.inf, np.float32)
    for start in range(0, len(place), 16_384):
        tile = slice(start, min(start + 16_384, len(place)))
        cosines = queries @ lists.unit(tile).T
        own = np.flatnonzero((place[sample] >= tile.start) & (place[sample] < tile.stop))
        cosines[own, place[sample][own] - tile.start] = -np.inf
        both = np.concatenate([best, cosines], axis=1)
        best = -np.sort(-np.partition(both, both.shape[1] - k, axis=1)[:, -k:], axis=1)
    return np.where(np.isfinite(best), best, np.float32(np.nan))


def _make(inputs: ScoreInputs) -> list[Stage]:
    from datapipe.metrics.density import DENSITY_NEIGHBOURS, TYPICALITY_NEIGHBOURS
    from datapipe.metrics.knn import EXACT_ROWS

    neighbours = DENSITY_NEIGHBOURS if inputs.metric == "knn_density" else TYPICALITY_NEIGHBOURS
    settings = NeighboursConfig(
        metric=inputs.metric,
        vectors=str(inputs.vectors),
        screened=inputs.screened,
        neighbours=neighbours,
        exact_rows=EXACT_ROWS,
        seed=inputs.seed,
    )
    return [ScoreNeighbours(settings=settings, device=inputs.device, bits=inputs.bits)]


FAMILY = ScoreFamily(stages=("score",), clusters=False, make=_make)
