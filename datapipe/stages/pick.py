"""Damage to the rows kept: the choice of `datapipe.paser.pick` over a run's files.

Reads `skills/labels` and the damage of the first pruned model; `vectors` where contradictions are looked for, `alone`
for the instruction-following difficulty, `pool/rows` for conflicts and for priors over sources. All are aligned and by
row id. Writes `selection.parquet` (row_id, kept, reason, cluster, rank, tokens of prompt and response, jsd_mean, ies,
conflict_with) and `clusters.parquet`, a row a cluster. Memory: some 200 bytes a row, and the answers' vectors.
Raises `BudgetError`, `ConfigError`, and `StageError` where the inputs are not of the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import StageError
from datapipe.pipeline import Context, SetStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from datapipe.paser.pick import Picks
    from datapipe.paser.pick_config import PickConfig, PickRows
    from datapipe.storage.arrays import Float32, Ids, Int64, UInt64
    from datapipe.storage.stage import StageDir

__all__ = ["CLUSTERS", "SELECTION", "Pick"]

SELECTION, CLUSTERS = "selection.parquet", "clusters.parquet"
_WRITE_ROWS = 65_536


@dataclass(frozen=True)
class Pick(SetStage):
    """Choose the rows.

    Attributes:
        settings: How.
        damage: The stage that measured the first pruned model, as `stage` or `stage/family`.
    """

    name: ClassVar[str] = "pick"
    version: ClassVar[int] = 1

    settings: PickConfig
    damage: str

    @property
    def config(self) -> dict[str, Any]:
        """The settings that have an effect."""
        return self.settings.told()

    @property
    def needs(self) -> tuple[str, ...]:
        """Labels and damage; the rest where the method or the conflicts ask for it."""
        asked = ["skills/labels", self.damage]
        if self.settings.filter == "contradiction":
            asked.append("vectors")
        if self.settings.method == "ifd":
            asked.append("alone")
        if self.settings.filter != "off" or self.settings.source_prior:
            asked.append("pool/rows")
        return tuple(asked)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Choose, and write the choice.

        Facts: `rows`, `counts` by reason, `kept_tokens`, `method`, `conflicts`, `budget`, `unit`, `warnings`.
        """
        from datapipe.paser.pick import pick

        ids = _ids(inputs["skills"])
        rows = self._rows(inputs, ids)
        context.tick(0)
        picks = pick(rows, self.settings)
        _write_selection(out, ids, rows, picks, context)
        _write_clusters(out, picks, inputs["skills"].facts["names"])
        facts = {
            "rows": len(ids),
            "counts": picks.counts,
            "kept_tokens": int(picks.clusters.tokens_taken.sum()),
            "method": self.settings.method,
            "conflicts": self.settings.filter,
            "budget": picks.budget,
            "unit": picks.unit,
            "warnings": list(picks.warnings),
        }
        return [SELECTION, CLUSTERS], facts

    def _rows(self, inputs: Mapping[str, StageOutput], ids: Ids) -> PickRows:
        import numpy as np

        from datapipe.paser.pick_config import PickRows

        settings = self.settings
        numbers = ["tokens", "prompt_tokens", "jsd_mean", *(["nll_p"] if settings.method == "ifd" else [])]
        damage = self._aligned(inputs, self.damage, numbers, ids)
        more: dict[str, Any] = {}
        if settings.method == "ifd":
            more["nll"] = damage["nll_p"].astype(np.float64)
            more["alone"] = self._aligned(inputs, "alone", ["nll_alone"], ids)["nll_alone"].astype(np.float64)
        if settings.filter == "contradiction":
            more["answers"] = _vectors(inputs["vectors"], "answer", len(ids))
            more["asked"] = _asked(inputs["pool"])
        if settings.filter == "paper":
            more["texts"] = _texts(inputs["pool"])
        if settings.source_prior:
            more["sources"], more["source_names"] = _sources(inputs["pool"])
        return PickRows(
            labels=self._aligned(inputs, "skills/labels", ["cluster"], ids)["cluster"].astype(np.int64),
            clusters=int(inputs["skills"].facts["k"]),
            order=_random_order(ids, settings.seed),
            tokens=damage["tokens"].astype(np.int64),
            prompt_tokens=damage["prompt_tokens"].astype(np.int64),
            jsd=damage["jsd_mean"].astype(np.float64),
            **more,
        )

    def _aligned(self, inputs: Mapping[str, StageOutput], need: str, names: Sequence[str], ids: Ids) -> dict[str, Any]:
        """Columns of a stage as arrays. Raises `StageError` where its rows are not those of `ids`."""
        import numpy as np

        from datapipe.storage.rowid import ids_from_arrow

        name, _, family = need.partition("/")
        parts: dict[str, list[Any]] = {each: [] for each in names}
        start = 0
        for table in inputs[name].tables(family or None, columns=["row_id", *names]):
            own = ids_from_arrow(table["row_id"])
            if not np.array_equal(own, ids[start : start + len(own)]):
                raise StageError(f"{need} is not aligned with skills/labels: other rows, or in another order")
            start += len(own)
            for each in names:
                parts[each].append(table[each].to_numpy())
        if start != len(ids):
            raise StageError(f"{need} has {start:,} rows, skills/labels {len(ids):,}")
        return {each: np.concatenate(found) for each, found in parts.items()}


def _ids(skills: StageOutput) -> Ids:
    import numpy as np

    from datapipe.storage.rowid import ids_from_arrow

    return np.concatenate([ids_from_arrow(table["row_id"]) for table in skills.tables("labels", columns=["row_id"])])


def _random_order(ids: Ids, seed: int) -> Int64:
    import numpy as np

    from datapipe.storage.order import hash_order

    order = np.empty(len(ids), np.int64)
    order[np.lexsort((ids[:, 1], ids[:, 0], hash_order(ids, seed=seed)))] = np.arange(len(ids))
    return order


def _vectors(vectors: StageOutput, name: str, rows: int) -> Float32:
    """Vectors of all rows, float32 (rows, dim)."""
    import numpy as np

    from datapipe.storage.vectors import decode

    found, start = np.empty((rows, 0), np.float32), 0
    for table in vectors.tables(columns=[name]):
        part = decode(table[name])
        if not found.shape[1]:
            found = np.empty((rows, part.shape[1]), np.float32)
        found[start : start + len(part)] = part
        start += len(part)
    return found


def _asked(pool: StageOutput) -> UInt64:
    """Key of what each row asks, after what was said before."""
    import numpy as np

    from datapipe.paser.conflicts import asked_keys

    keys = []
    for table in pool.tables("rows", columns=["instruction", "input", "history"]):
        rows = table.to_pylist()
        said = ([turn["content"] for turn in row["history"]] for row in rows)
        keys.append(asked_keys([*each, row["instruction"], row["input"]] for each, row in zip(said, rows, strict=True)))
    return np.concatenate([np.empty(0, np.uint64), *keys])


def _texts(pool: StageOutput) -> list[tuple[str, str, str]]:
    texts: list[tuple[str, str, str]] = []
    for table in pool.tables("rows", columns=["instruction", "input", "response"]):
        texts.extend(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    return texts


def _sources(pool: StageOutput) -> tuple[Int64, tuple[str, ...]]:
    """Place of each row's source among their names, which are sorted."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = pa.chunked_array([c for t in pool.tables("rows", columns=["source"]) for c in t["source"].chunks])
    names = pc.unique(whole).sort()
    return pc.index_in(whole, value_set=names).to_numpy().astype(np.int64), tuple(names.to_pylist())


def _write_selection(out: StageDir, ids: Ids, rows: PickRows, picks: Picks, context: Context) -> None:
    import pyarrow as pa

    from datapipe.storage.rowid import ID_TYPE

    schema = pa.schema(
        [
            pa.field("row_id", ID_TYPE, nullable=False),
            pa.field("kept", pa.bool_()),
            pa.field("reason", pa.string()),
            pa.field("cluster", pa.int32()),
            pa.field("rank", pa.int64()),
            pa.field("tokens", pa.int32()),
            pa.field("jsd_mean", pa.float32()),
            pa.field("ies", pa.float32()),
            pa.field("conflict_with", ID_TYPE),
        ]
    )
    with out.writer(SELECTION, schema) as writer:
        for columns in _columns(ids, rows, picks):
            table = pa.Table.from_arrays(columns, schema=schema)
            writer.write(table)
            context.tick(table.num_rows)


def _columns(ids: Ids, rows: PickRows, picks: Picks) -> Iterator[list[pa.Array]]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from datapipe.paser.pick import REASONS
    from datapipe.storage.rowid import ID_TYPE, ids_to_arrow

    reasons = pa.array(REASONS)
    jsd = np.full(len(ids), np.nan) if rows.jsd is None else rows.jsd
    for start in range(0, len(ids), _WRITE_ROWS):
        part = slice(start, start + _WRITE_ROWS)
        against = picks.against[part]
        others = ids_to_arrow(ids[np.maximum(against, 0)])
        yield [
            ids_to_arrow(ids[part]),
            pa.array(picks.kept[part]),
            reasons.take(pa.array(picks.reason[part])),
            pa.array(rows.labels[part], pa.int32()),
            pa.array(picks.rank[part]),
            pa.array(rows.length[part], pa.int32()),
            _numbers(jsd[part]),
            _numbers(picks.ies[part]),
            pc.if_else(pa.array(against >= 0), others, pa.scalar(None, ID_TYPE)),
        ]


def _numbers(values: Any, kind: str = "float32") -> pa.Array:
    """NaN is what was not measured: null."""
    import pyarrow as pa

    return pa.array(values, from_pandas=True).cast(kind)


def _write_clusters(out: StageDir, picks: Picks, names: Sequence[Sequence[str]]) -> None:
    import numpy as np
    import pyarrow as pa

    found = picks.clusters
    damage = found.damage
    table = pa.table(
        {
            "cluster": pa.array(np.arange(len(damage.rows)), pa.int32()),
            "name": pa.array([", ".join(words) for words in names], pa.string()),
            "rows": damage.rows,
            "measured": damage.measured,
            "cds": _numbers(damage.score, "float64"),
            "low": _numbers(damage.low, "float64"),
            "high": _numbers(damage.high, "float64"),
            "share": _numbers(found.share, "float64"),
            "budget": _numbers(found.budget, "float64"),
            "taken": found.taken,
            "tokens_taken": found.tokens_taken,
            "acceptance": found.acceptance,
        }
    )
    out.write_table(CLUSTERS, table)
