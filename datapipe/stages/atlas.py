"""What each pruned model lost of each skill: the damage atlas.

Reads `skills` and the damage of every variant, `damage_LABEL` or the survey of the first. Writes `damage.parquet`, a
row a variant and skill: variant, cluster, name, rows, measured, cds, low, high (nats), and means over the measured rows
of jsd_mean, kl_op, kl_po, disagree, nll_o, nll_p. The whole variant has rows of its own with cluster -1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import Context, SetStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from datapipe.storage.arrays import Float64, Int64
    from datapipe.storage.stage import StageDir

__all__ = ["DAMAGE", "Atlas", "AtlasConfig", "read_labels", "read_measures"]

DAMAGE = "damage.parquet"
MEASURES = ("jsd_mean", "kl_op", "kl_po", "disagree", "nll_o", "nll_p")
WHOLE = -1
"""Cluster of the rows that speak of all skills together."""


@dataclass(frozen=True, kw_only=True)
class AtlasConfig:
    """What the atlas depends on.

    Attributes:
        variants: Label of each pruned model and the stage that measured it, in order.
        prior_rows: Rows' worth of the mean of all that a skill's mean is shrunk by.
        seed: Of the bootstrap.
    """

    variants: tuple[tuple[str, str], ...]
    prior_rows: float
    seed: int


@dataclass(frozen=True)
class Atlas(SetStage):
    """Score every skill under every variant."""

    name: ClassVar[str] = "atlas"
    version: ClassVar[int] = 1

    settings: AtlasConfig

    @property
    def config(self) -> AtlasConfig:
        """See `AtlasConfig`."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """Skills, and the damage of every variant."""
        return ("skills/labels", *(stage for _, stage in self.settings.variants))

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Write the table. Raises `BudgetError` where a variant's damage is no number on every row."""
        import pyarrow as pa

        labels, names = read_labels(inputs["skills"]), inputs["skills"].facts["names"]
        tables = []
        for label, stage in self.settings.variants:
            measures = read_measures(inputs[stage])
            tables.append(self._variant(label, measures, labels, [", ".join(words) for words in names]))
            context.tick(len(labels))
        out.write_table(DAMAGE, pa.concat_tables(tables))
        return [DAMAGE], {"rows": sum(table.num_rows for table in tables)}

    def _variant(self, label: str, measures: Mapping[str, Float64], labels: Int64, names: list[str]) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        from datapipe.paser.allocate import degradation

        k, own = len(names), self.settings
        by_skill = degradation(measures["jsd_mean"], labels, clusters=k, prior_rows=own.prior_rows, seed=own.seed)
        whole = degradation(
            measures["jsd_mean"], np.zeros_like(labels), clusters=1, prior_rows=own.prior_rows, seed=own.seed
        )
        ints = {name: (getattr(whole, name), getattr(by_skill, name)) for name in ("rows", "measured")}
        floats = {
            shown: (getattr(whole, name), getattr(by_skill, name))
            for shown, name in {"cds": "score", "low": "low", "high": "high"}.items()
        }
        means = {name: _means(measures[name], labels, k) for name in MEASURES}
        return pa.table(
            {
                "variant": pa.array([label] * (k + 1), pa.string()),
                "cluster": pa.array([WHOLE, *range(k)], pa.int32()),
                "name": pa.array(["all rows", *names], pa.string()),
                **{name: pa.array(np.concatenate(each), pa.int64()) for name, each in ints.items()},
                **{name: pa.array(np.concatenate(each), pa.float64()) for name, each in floats.items()},
                **{name: pa.array(each, pa.float64(), from_pandas=True) for name, each in means.items()},
            }
        )


def read_labels(skills: StageOutput) -> Int64:
    """Skill of every row, int64 (rows,), in the order of their ids."""
    import numpy as np

    parts = [table["cluster"].to_numpy() for table in skills.tables("labels", columns=["cluster"])]
    return np.concatenate(parts).astype(np.int64)


def read_measures(damage: StageOutput) -> dict[str, Float64]:
    """Every measure of every row, float64 (rows,) by name, in the order of their ids; NaN where it was not taken."""
    import numpy as np

    parts: dict[str, list[Any]] = {name: [] for name in MEASURES}
    for table in damage.tables(columns=list(MEASURES)):
        for name in MEASURES:
            parts[name].append(table[name].to_numpy().astype(np.float64))
    return {name: np.concatenate(each) for name, each in parts.items()}


def _means(values: Float64, labels: Int64, k: int) -> Float64:
    """Mean over the measured rows, of all and then of each skill; NaN where none was."""
    import numpy as np

    known = np.isfinite(values)
    counts = np.bincount(labels[known], minlength=k)
    sums = np.bincount(labels[known], weights=values[known], minlength=k)
    counts, sums = np.append(counts.sum(), counts), np.append(sums.sum(), sums)
    means: Float64 = np.divide(sums, counts, out=np.full(k + 1, np.nan), where=counts > 0)
    return means
