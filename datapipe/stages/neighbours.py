"""Scores by the nearest neighbours of each row: `knn_density`, `typicality`.

    vectors -> [centroids of a sample -> lists] -> lists on scratch -> cosines to the k nearest -> scores-*.parquet

Up to `EXACT_ROWS` rows all pairs are compared; above, the rows of the nearest lists, and the facts say the recall on a
sample in hash order. Rows that screening took out are nobody's neighbour and have NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.scoring import ScoreFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from datapipe.pipeline import Stage
    from datapipe.stages.scoring import ScoreInputs
    from datapipe.storage.arrays import Bool, Float32
    from datapipe.storage.lists import VectorLists
    from datapipe.storage.stage import StageDir

SAMPLE_BYTES = 256 << 20
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
class ScoreNeighbours(SetStage):
    """Search, then score. Memory: 4 * k + 28 bytes a row, the sample of the centroids, and tiles."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1

    settings: NeighboursConfig
    device: str
    bits: Mapping[str, str]

    @property
    def config(self) -> NeighboursConfig:
        """The frozen config."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """The vectors, and the exclusions where there may be some."""
        return (self.settings.vectors, *(("screen/excluded",) if self.settings.screened else ()))

    @property
    def platform(self) -> Mapping[str, str]:
        """As the arithmetic's device states it."""
        return self.bits

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Build the lists, search them, write the scores."""
        import numpy as np

        from datapipe.metrics import density
        from datapipe.metrics.knn import measured_recall, nearest_cosines, neighbour_lists
        from datapipe.settings import Settings
        from datapipe.stages.proxy import write_aligned

        settings, threads = self.settings, Settings().threads
        source = VectorSource(inputs, settings.vectors, screened=settings.screened)
        left = source.left()
        rows = int(left.sum())
        lists, centroids = self._lists(source, left, context.scratch)
        near = neighbour_lists(centroids, settings.probes)
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

    def _lists(self, source: VectorSource, left: Bool, scratch: Path) -> tuple[VectorLists, Float32]:
        rows = int(left.sum())
        k = 1 if rows <= self.settings.exact_rows else max(round(rows**0.5), 1)
        return source.lists(left, k=k, seed=self.settings.seed, device=self.device, path=scratch / "lists.bf16")


class VectorSource:
    """The vectors of a run, shard by shard, without those of rows that screening took out."""

    def __init__(self, inputs: Mapping[str, StageOutput], vectors: str, *, screened: bool) -> None:
        name, _, family = vectors.partition("/")
        self._source, self._family = inputs[name], family or None
        self._screen = inputs["screen"] if screened else None

    def left(self) -> Bool:
        """Which rows screening left, bool (all rows,)."""
        import numpy as np

        screen = self._screen.tables("excluded", columns=["row_id"]) if self._screen is not None else None
        tables = self._source.tables(self._family, columns=["row_id"])
        return np.concatenate([np.zeros(0, np.bool_), *(left_after_screening(table, screen) for table in tables)])

    def codes(self, left: Bool) -> Iterator[NDArray[np.uint16]]:
        """bfloat16 bits of the rows that are left, uint16 (rows, dim) a shard."""
        from datapipe.storage.vectors import codes

        start = 0
        for table in self._source.tables(self._family, columns=["vector"]):
            here = left[start : start + table.num_rows]
            start += table.num_rows
            bits = codes(table["vector"])
            yield bits if here.all() else bits[here]

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        from datapipe.storage.vectors import vector_info

        return vector_info(next(self._source.tables(self._family, columns=["vector"])).schema.field("vector")).dim

    def lists(self, left: Bool, *, k: int, seed: int, device: str, path: Path) -> tuple[VectorLists, Float32]:
        """Sort the rows that are left into k lists around centroids of a sample; also the centroids, (k, dim)."""
        import numpy as np

        from datapipe.metrics.assign import Assigner
        from datapipe.storage.lists import build_lists

        rows, dim = int(left.sum()), self.dim
        if k <= 1:
            assigned, centroids = np.zeros(rows, np.int32), np.ones((1, dim), np.float32)
        else:
            centroids = self._centroids(left, k=k, seed=seed, device=device)
            with Assigner(centroids, device=device) as assigner:
                parts = [assigner.assign_bfloat16(bits)[1] for bits in self.codes(left)]
            assigned = np.concatenate(parts)
        return build_lists(self.codes(left), assigned, lists=len(centroids), dim=dim, path=path), centroids

    def _centroids(self, left: Bool, *, k: int, seed: int, device: str) -> Float32:
        import numpy as np

        from datapipe.metrics.kmeans import spherical_kmeans

        rows, dim = int(left.sum()), self.dim
        size = min(rows, max(k, min(64 * k, SAMPLE_BYTES // (4 * dim))))
        # Row ids are digests, so equal steps through their order are a random sample.
        wanted = np.unique(np.linspace(0, rows - 1, size).astype(np.int64))
        sample, start = [], 0
        for bits in self.codes(left):
            here = wanted[(wanted >= start) & (wanted < start + len(bits))] - start
            start += len(bits)
            wide = bits[here].astype("<u4")
            sample.append(np.left_shift(wide, 16, out=wide).view("<f4"))
        return spherical_kmeans(np.concatenate(sample), k=min(k, len(wanted)), seed=seed, iterations=10, device=device)


def left_after_screening(table: pa.Table, screen: Iterator[pa.Table] | None) -> Bool:
    """Which rows of a shard screening left, bool (rows,); takes the next table of `screen`."""
    import numpy as np
    import pyarrow.compute as pc

    if screen is None:
        return np.ones(table.num_rows, np.bool_)
    out = pc.is_in(table["row_id"], value_set=next(screen)["row_id"].combine_chunks())
    left: Bool = ~out.to_numpy().astype(np.bool_)
    return left


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
