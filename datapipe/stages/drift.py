"""Prototypes of an update: the centroids of the run before, unless its new rows have drifted away from them.

Reads the vectors, the scores of the rows that the centroids were fitted to, and those centroids. Writes
`centroids.npy`: the same bytes as before, so that no shard is scored again, or new ones where the assignment error of
the rows that came since has risen by more than the threshold (`metrics/drift.py`). The facts hold the figures.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import IntegrityError
from datapipe.metrics.drift import THRESHOLD, ErrorSums, Pulls, drift_of
from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.prototypes import CENTROIDS, FitPrototypes
from datapipe.storage.digest import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pyarrow as pa

    from datapipe.pipeline import Stage
    from datapipe.stages.history import History
    from datapipe.stages.prototypes import FitConfig
    from datapipe.storage.arrays import Float32, Int32
    from datapipe.storage.stage import StageDir


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """What the centroids of an update depend on.

    Attributes:
        fit: How they are fitted where they are.
        centroids: Digest of those of the run before.
        fitted: Digests of the rows, scores and exclusions of the run that they were fitted in.
        threshold: Rise of the mean assignment error from which they are fitted again.
    """

    fit: FitConfig
    centroids: str
    fitted: tuple[str, ...]
    threshold: float = THRESHOLD


@dataclass(frozen=True)
class UpdatePrototypes(SetStage):
    """Keep the centroids, or fit them to all rows there are now.

    Attributes:
        settings: The frozen config.
        fit: Fits them.
        history: The run before.
    """

    name: ClassVar[str] = "fit"
    version: ClassVar[int] = 1

    settings: UpdateConfig
    fit: FitPrototypes
    history: History

    @classmethod
    def of(cls, fit: FitPrototypes, history: History) -> UpdatePrototypes:
        """The stage that stands in for `fit` in an update."""
        settings = UpdateConfig(
            fit=fit.settings,
            centroids=history.base["fit"].digest,
            fitted=tuple(output.digest for output in history.fitted.values()),
        )
        return cls(settings, fit, history)

    @property
    def config(self) -> UpdateConfig:
        """The frozen config."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """Those of the fit, and the row ids."""
        return self.fit.needs

    @property
    def platform(self) -> Mapping[str, str]:
        """As the arithmetic's device states it."""
        return self.fit.bits

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Measure the drift, then keep or fit."""
        import numpy as np

        content = self._centroids()
        centroids = np.load(io.BytesIO(content), allow_pickle=False)
        drift = drift_of(self._fitted(), self._new(centroids, inputs), threshold=self.settings.threshold)
        facts = {"drift": plain(drift), "refit": drift.refit}
        if drift.refit:
            names, fitted = self.fit.run(inputs, out, context)
            return names, {**fitted, **facts}
        out.write_bytes(CENTROIDS, content)
        before = self.history.base["fit"].facts
        return [CENTROIDS], {**{name: before[name] for name in ("prototypes", "sample", "dim", "rows")}, **facts}

    def _centroids(self) -> bytes:
        fit = self.history.base["fit"]
        content = fit.read_bytes(CENTROIDS)
        if hashlib.sha256(content).hexdigest() != fit.shards()[0].sha256:
            raise IntegrityError(f"{fit.path / CENTROIDS} is not what its manifest says; run without update")
        return content

    def _fitted(self) -> ErrorSums:
        """Errors of the rows of the run that the centroids were fitted in, each against a centroid without it."""
        sums, pulls = ErrorSums(), Pulls()
        for errors, clusters in self._scored():
            pulls.add(errors, clusters)
        for errors, clusters in self._scored():
            sums = sums.plus(pulls.without_self(errors, clusters))
        return sums

    def _scored(self) -> Iterator[tuple[Float32, Int32]]:
        fitted = self.history.fitted
        excluded = fitted["screen"].tables("excluded", columns=["row_id"]) if "screen" in fitted else None
        for table in fitted["score"].tables(columns=["row_id", "prototypes", "cluster"]):
            left = _left(table, excluded)
            yield left["prototypes"].to_numpy(), left["cluster"].to_numpy()

    def _new(self, centroids: Any, inputs: Mapping[str, StageOutput]) -> ErrorSums:
        """Errors of the rows that were not in that run."""
        from datapipe.metrics.assign import Assigner
        from datapipe.metrics.prototypes import scores_of
        from datapipe.settings import Settings
        from datapipe.storage.vectors import codes

        name, _, family = self.fit.vectors.partition("/")
        excluded = inputs["screen"].tables("excluded", columns=["row_id"]) if self.fit.settings.screened else None
        known = self.history.fitted["ingest"].tables("rows", columns=["row_id"])
        sums = ErrorSums()
        tables = inputs[name].tables(family or None, columns=["row_id", "vector"])
        with Assigner(centroids, device=self.fit.device, threads=Settings().threads) as assigner:
            for table in absent(tables, known):
                left = _left(table, excluded)
                if left.num_rows:
                    sums = sums.plus(scores_of(assigner.assign_bfloat16(codes(left["vector"]))[0]))
        return sums


def continued(stage: Stage, history: History) -> Stage:
    """The stage that an update has in the place of `stage`: another one for the fit of prototypes."""
    return UpdatePrototypes.of(stage, history) if isinstance(stage, FitPrototypes) else stage


def absent(tables: Iterable[pa.Table], known: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield each of `tables` without the rows whose row_id stands in `known`; both are sorted by row_id."""
    import pyarrow as pa
    import pyarrow.compute as pc

    held: list[pa.ChunkedArray] = []
    for table in tables:
        if not table.num_rows:
            yield table
            continue
        last = table["row_id"][-1].as_py()
        while not held or held[-1][-1].as_py() < last:
            more = next(known, None)
            if more is None:
                break
            held += [more["row_id"]] if more.num_rows else []
        if held:
            there = pc.is_in(table["row_id"], value_set=pa.chunked_array([c for ids in held for c in ids.chunks]))
            held = [ids for ids in held if ids[-1].as_py() > last]
            yield table.filter(pc.invert(there))
        else:
            yield table


def _left(table: pa.Table, excluded: Iterator[pa.Table] | None) -> pa.Table:
    """The rows that the next table of `excluded` does not name."""
    import pyarrow.compute as pc

    if excluded is None:
        return table
    out = next(excluded)["row_id"].combine_chunks()
    return table.filter(pc.invert(pc.is_in(table["row_id"], value_set=out)))
