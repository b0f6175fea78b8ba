"""Prototype scores in two steps: fit centroids on a sample, score every row against them.

`fit` reads the vectors of a hash-order sample of the rows that screening left, and writes `centroids.npy` (float32,
unit rows). `score` reads vectors, one shard at a time, and writes row_id, prototypes (float32) and cluster (int32, the
nearest centroid).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import Context, ShardStage, StageOutput
from datapipe.stages.device import DeviceStage
from datapipe.stages.scoring import ScoreFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from datapipe.metrics.assign import Assigner
    from datapipe.pipeline import ShardFunction, Stage, Tick
    from datapipe.stages.scoring import ScoreInputs
    from datapipe.storage.arrays import Float32, Ids
    from datapipe.storage.stage import StageDir

CENTROIDS = "centroids.npy"
SAMPLE_BYTES = 256 << 20
POINTS_PER_CENTROID = 256


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What the centroids depend on.

    Attributes:
        prototypes: Centroids k; None takes the number of classes, else the root of the rows within 16 ... 50,000.
        labelled: Whether the default k is the number of classes.
        screened: Whether rows may be excluded; those are neither counted nor fit to, so that repeats weigh nothing.
        seed: Seeds the sample and the k-means start.
        iterations: Lloyd iterations at most.
        sample_bytes: Most bytes of float32 vectors in the sample.
    """

    prototypes: int | None = None
    labelled: bool = False
    screened: bool = False
    seed: int = 0
    iterations: int = 20
    sample_bytes: int = SAMPLE_BYTES


@dataclass(frozen=True)
class FitPrototypes(DeviceStage):
    """Spherical k-means on a sample in hash order.

    Attributes:
        settings: The frozen config.
        vectors: Where the vectors are: `embed`, or `ingest/rows` for vectors that the source brings.
        device: Where the arithmetic runs.
        bits: Platform facts.
    """

    name: ClassVar[str] = "fit"
    version: ClassVar[int] = 2

    settings: FitConfig
    vectors: str

    @property
    def needs(self) -> tuple[str, ...]:
        """The vectors; the rows where classes count, and the exclusions where there may be some."""
        rows = ("ingest/rows",) if self.settings.labelled and self.vectors != "ingest/rows" else ()
        excluded = ("screen/excluded",) if self.settings.screened else ()
        return (self.vectors, *rows, *excluded)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Draw the sample, fit, write the centroids."""
        import numpy as np

        from datapipe.metrics.prototypes import default_k, fit_prototypes
        from datapipe.storage.vectors import vector_info

        name, _, family = self.vectors.partition("/")
        source, family_ = inputs[name], family or None
        total = sum(shard.rows for shard in source.shards(family_))
        excluded = inputs["screen"] if self.settings.screened else None
        if excluded is not None and excluded.manifest.rows == total:
            excluded = None  # nothing is left to choose from, and the scores are of rows that all go out
        rows = total - (excluded.manifest.rows if excluded is not None else 0)
        dim = vector_info(next(source.tables(family_, columns=["vector"])).schema.field("vector")).dim
        classes = inputs["ingest"].facts["classes"] if self.settings.labelled else None
        k = min(self.settings.prototypes or default_k(rows, classes=classes), rows)
        size = min(rows, max(k, min(POINTS_PER_CENTROID * k, self.settings.sample_bytes // (4 * dim))))
        ids = _sample_ids(source, family_, excluded, size=size, seed=self.settings.seed)
        sample = _sample(source, family_, ids, dim=dim, tick=context.tick)
        centroids = fit_prototypes(
            sample, k=k, seed=self.settings.seed, iterations=self.settings.iterations, device=self.device
        )
        buffer = io.BytesIO()
        np.save(buffer, centroids, allow_pickle=False)
        out.write_bytes(CENTROIDS, buffer.getvalue())
        return [CENTROIDS], {"prototypes": k, "sample": size, "dim": dim, "rows": rows}


def _sample_ids(source: StageOutput, family: str | None, excluded: StageOutput | None, *, size: int, seed: int) -> Ids:
    """The `size` first rows that are not excluded, in a hash order of their own, uint64 (size, 2)."""
    import pyarrow.compute as pc

    from datapipe.storage.order import seed_for, smallest
    from datapipe.storage.rowid import ids_from_arrow

    def ids() -> Iterator[Ids]:
        out = excluded.tables("excluded", columns=["row_id"]) if excluded is not None else None
        for table in source.tables(family, columns=["row_id"]):
            column = table["row_id"]
            if out is not None:
                column = column.filter(pc.invert(pc.is_in(column, value_set=next(out)["row_id"].combine_chunks())))
            yield ids_from_arrow(column)

    return smallest(ids(), size, seed_for("fit", seed))


def _sample(source: StageOutput, family: str | None, chosen: Ids, *, dim: int, tick: Tick) -> Float32:
    """Vectors of the chosen rows in row_id order, float32 (rows, dim)."""
    import numpy as np

    from datapipe.storage.rowid import ids_from_arrow
    from datapipe.storage.vectors import decode

    size = len(chosen)
    member = set(map(tuple, chosen.tolist()))
    highs = np.sort(chosen[:, 0])
    sample, filled = np.empty((size, dim), np.float32), 0
    for table in source.tables(family, columns=["row_id", "vector"]):
        found = ids_from_arrow(table["row_id"])
        near = np.minimum(np.searchsorted(highs, found[:, 0]), size - 1)
        rows = np.flatnonzero(highs[near] == found[:, 0])
        rows = rows[[tuple(pair) in member for pair in found[rows].tolist()]]
        sample[filled : filled + len(rows)] = decode(table["vector"].take(rows))
        filled += len(rows)
        tick(table.num_rows)
    return sample


@dataclass(frozen=True)
class ScorePrototypes(ShardStage):
    """Distance to the nearest centroid.

    Attributes:
        vectors: Where the vectors are.
        device: Where the arithmetic runs.
        bits: Platform facts.
    """

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1

    vectors: str
    device: str
    bits: Mapping[str, str]

    @property
    def config(self) -> dict[str, str]:
        """The metric's name."""
        return {"metric": "prototypes"}

    @property
    def needs(self) -> tuple[str, ...]:
        """The vectors."""
        return (self.vectors,)

    @property
    def uses(self) -> tuple[str, ...]:
        """The centroids."""
        return ("fit",)

    @property
    def platform(self) -> Mapping[str, str]:
        """As the arithmetic's device states it."""
        return self.bits

    def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
        """Load the centroids. Raises `StageError` where this process would compute other bits than `bits` says."""
        import numpy as np

        from datapipe.metrics.assign import Assigner
        from datapipe.settings import Settings
        from datapipe.stages.embedder import arithmetic_bits, check_platform

        check_platform(self.bits, arithmetic_bits(self.device))
        centroids = np.load(io.BytesIO(artifacts["fit"].read_bytes(CENTROIDS)), allow_pickle=False)
        assigner = Assigner(centroids, device=self.device, threads=Settings().threads)

        def function(tables: Sequence[pa.Table], tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
            return _score(assigner, tables[0], tick)

        return function


def _score(assigner: Assigner, vectors: pa.Table, tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
    import pyarrow as pa

    from datapipe.metrics.prototypes import scores_of
    from datapipe.storage.vectors import codes

    cosines, clusters = assigner.assign_bfloat16(codes(vectors["vector"]))
    tick(vectors.num_rows)
    scores = pa.array(scores_of(cosines))
    columns = {"row_id": vectors["row_id"], "prototypes": scores, "cluster": pa.array(clusters)}
    return pa.table(columns), {}


def _make(inputs: ScoreInputs) -> list[Stage]:
    settings = FitConfig(
        prototypes=inputs.prototypes, labelled=inputs.labelled, screened=inputs.screened, seed=inputs.seed
    )
    vectors, device, bits = str(inputs.vectors), inputs.device, inputs.bits
    return [
        FitPrototypes(settings=settings, vectors=vectors, device=device, bits=bits),
        ScorePrototypes(vectors=vectors, device=device, bits=bits),
    ]


FAMILY = ScoreFamily(stages=("fit", "score"), clusters=True, make=_make)
