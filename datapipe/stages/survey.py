"""The damage of as many rows as it takes to split a budget among clusters, in place of the damage of all.

Reads `pool/rows` and `skills/labels`. Writes `rows-*.parquet` as `datapipe.stages.damage` does, in the order of the
rows: tokens and prompt_tokens of every row, numbers of the measured, NaN elsewhere. Rows of a cluster are measured in
hash order, a round at a time, by the rule of `datapipe.paser.survey`; a killed survey loses the round in hand. Raises
`ModelError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.damage import compared, damage_schema
from datapipe.stages.states import ReadConfig, form_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from datapipe.paser.bodies import Form
    from datapipe.paser.models import Models
    from datapipe.paser.survey import Moments
    from datapipe.storage.arrays import Float64, Ids, Int32, Int64
    from datapipe.storage.stage import StageDir

__all__ = ["Survey", "SurveyConfig"]


@dataclass(frozen=True, kw_only=True)
class SurveyConfig:
    """How rows are read, and how many are enough.

    Attributes:
        read: As for `states`.
        tolerance: Part of its own budget, or of an average one, that a cluster's budget may be wrong by, > 0.
        first: Rows of each cluster in the first round, >= 2.
        power: Of the damage in the split of the budget, >= 0.
        seed: Of the order in which rows are measured.
    """

    read: ReadConfig
    tolerance: float = 0.1
    first: int = 32
    power: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Survey(SetStage):
    """Measure rows of each cluster until its part of the budget is known.

    Attributes:
        run_by: The original and its damaged versions.
        label: Which version.
        settings: See `SurveyConfig`.
        further: Whether another version is surveyed in the same run, under the plain name.
    """

    version: ClassVar[int] = 1

    run_by: Models
    label: str
    settings: SurveyConfig
    further: bool = False

    @property
    def name(self) -> str:
        """`survey`, or `survey_LABEL` of a further version."""
        return f"survey_{self.label}" if self.further else "survey"

    @classmethod
    def of(
        cls,
        models: Models,
        label: str,
        *,
        tolerance: float = 0.1,
        first: int = 32,
        power: float = 1.0,
        seed: int = 0,
        further: bool = False,
    ) -> Self:
        """The stage for one of the models' labels."""
        read = ReadConfig.of(models)
        settings = SurveyConfig(read=read, tolerance=tolerance, first=first, power=power, seed=seed)
        return cls(models, label, settings, further)

    @property
    def config(self) -> SurveyConfig:
        """How rows are read, and how many are enough."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows, and their clusters."""
        return ("pool/rows", "skills/labels")

    @property
    def models(self) -> tuple[str, ...]:
        """Original and damaged version."""
        from datapipe.paser.models import ORIGINAL

        return (self.run_by.digest(ORIGINAL), self.run_by.digest(self.label))

    @property
    def platform(self) -> Mapping[str, str]:
        """As the worker states it."""
        return self.run_by.bits

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Count the tokens of all rows, measure some, and write them in the order of the rows.

        Facts: `rows`; `measured`, rows measured; `measured_tokens`; `rounds`; `narrow`, whether every interval is as
        narrow as asked (it is not where a cluster has too few rows); `shares` and `halves`, of each cluster.
        """
        from datapipe.paser.survey import shares

        form = form_of(self.run_by, self.settings.read)
        pool = inputs["pool"]
        listed = _Listed.read(inputs, form, self.run_by, seed=self.settings.seed)
        measured = self._rounds(pool, listed, form, out, context)
        names = _write(pool, listed, measured, out)
        context.tick(max(0, len(listed.ids) - measured.num_rows))
        own = self.settings
        known = listed.moments(measured)
        found = shares(known, tolerance=own.tolerance, power=own.power)
        facts = {
            "rows": len(listed.ids),
            "measured": measured.num_rows,
            "measured_tokens": int(measured["tokens"].to_numpy().sum()),
            "rounds": int(measured.schema.metadata[b"rounds"]),
            "narrow": bool(found.narrow.all()),
            "shares": [round(float(each), 6) for each in found.share],
            "halves": [round(float(each), 6) for each in found.half],
        }
        return names, facts

    def _rounds(self, pool: StageOutput, listed: _Listed, form: Form, out: StageDir, context: Context) -> pa.Table:
        """All measured rows, in the order of `damage_schema` with their place in the pool."""
        import pyarrow as pa

        from datapipe.paser.survey import next_sample

        own, found, rounds = self.settings, _placed(damage_schema()).empty_table(), 0
        measure = _Measure(self.run_by, self.label, form, context)
        while True:
            known = listed.moments(found)
            wanted = next_sample(known, tolerance=own.tolerance, first=own.first, power=own.power)
            places = listed.places(known.measured, wanted)
            if not len(places):
                return found.replace_schema_metadata({"rounds": str(rounds)})
            name = f"round-{rounds:05d}.parquet"
            if out.done(name) is None:
                out.write_table(name, measure(pool, places))
            else:
                context.tick(len(places))
            found = pa.concat_tables([found, _read(out, name)])
            rounds += 1


@dataclass(frozen=True, eq=False)
class _Listed:
    """All rows of the pool, and in which order those of a cluster are measured."""

    ids: Ids
    tokens: Int32
    prompt: Int32
    order: Int64
    starts: Int64
    labels: Int64
    rows: Int64

    @classmethod
    def read(cls, inputs: Mapping[str, StageOutput], form: Form, models: Models, *, seed: int) -> Self:
        import numpy as np

        from datapipe.paser.bodies import token_counts
        from datapipe.storage.order import hash_order, seed_for
        from datapipe.storage.rowid import ids_from_arrow

        ids, counted = [np.empty((0, 2), np.uint64)], [(np.empty(0, np.int32), np.empty(0, np.int32))]
        for table in inputs["pool"].tables("rows"):
            ids.append(ids_from_arrow(table["row_id"]))
            for start in range(0, table.num_rows, form.slice_rows):
                texts = form.of(table.slice(start, form.slice_rows))
                counted.append(token_counts(models.tokenizer, texts, max_length=form.max_length))
        parts = [table["cluster"].to_numpy() for table in inputs["skills"].tables("labels", columns=["cluster"])]
        labels = np.concatenate([np.empty(0, np.int32), *parts]).astype(np.int64)
        tokens, prompt = (np.concatenate(each) for each in zip(*counted, strict=True))
        every = np.concatenate(ids)
        clusters = max(int(inputs["skills"].facts["k"]), int(labels.max(initial=-1)) + 1)
        scored = np.flatnonzero(tokens)
        keys = hash_order(every[scored], seed=seed_for("survey", seed))
        order = scored[np.lexsort((keys, labels[scored]))]
        rows = np.bincount(labels[scored], minlength=clusters).astype(np.int64)
        return cls(every, tokens, prompt, order, np.cumsum(rows) - rows, labels, rows)

    def places(self, measured: Int64, wanted: Int64) -> Int64:
        """Places in the pool of the rows to be measured, ascending."""
        import numpy as np

        parts = [
            self.order[start + before : start + after]
            for start, before, after in zip(self.starts, measured, wanted, strict=True)
        ]
        return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))

    def moments(self, found: pa.Table) -> Moments:
        import numpy as np

        from datapipe.paser.survey import Moments

        damage: Float64 = found["jsd_mean"].to_numpy().astype(np.float64)
        return Moments.of(damage, self.labels[found["place"].to_numpy()], self.rows)


class _Measure:
    """Measures rows by their places, through both bodies and both heads."""

    def __init__(self, models: Models, label: str, form: Form, context: Context) -> None:
        self._models, self._label, self._form, self._context = models, label, form, context

    def __call__(self, pool: StageOutput, places: Int64) -> pa.Table:
        """Rows of `damage_schema` with their place, in the order of the places."""
        import pyarrow as pa

        from datapipe.storage.sort import regrouped

        parts = [_placed(damage_schema()).empty_table()]
        for rows in regrouped(_picked(pool, places), self._form.slice_rows):
            parts.append(self._slice(rows).append_column("place", rows["place"].combine_chunks()))
            self._context.tick(rows.num_rows)
        return pa.concat_tables(parts).combine_chunks()

    def _slice(self, rows: pa.Table) -> pa.Table:
        from datapipe.paser.bodies import read_responses
        from datapipe.paser.models import ORIGINAL

        heads, worker, texts = self._models.heads(self._label), self._models.worker, self._form.of(rows)
        one = read_responses(worker, ORIGINAL, texts, dim=heads.dims[0])
        other = read_responses(worker, self._label, texts, dim=heads.dims[1])
        return compared(rows, one, other, heads=heads, form=self._form, names=(ORIGINAL, self._label))


def _picked(pool: StageOutput, places: Int64) -> Any:
    """The rows at some places, shard by shard; a shard without any is not read."""
    import numpy as np
    import pyarrow as pa

    from datapipe.outputs import read_shard

    start = 0
    for shard in pool.shards("rows"):
        low, high = np.searchsorted(places, [start, start + shard.rows])
        if low < high:
            table = read_shard(pool.path / shard.name).take(pa.array(places[low:high] - start))
            yield table.append_column("place", pa.array(places[low:high]))
        start += shard.rows


def _placed(schema: pa.Schema) -> pa.Schema:
    import pyarrow as pa

    return schema.append(pa.field("place", pa.int64()))


def _read(out: StageDir, name: str) -> pa.Table:
    from datapipe.outputs import read_shard

    return read_shard(out.path / name)


def _write(pool: StageOutput, listed: _Listed, measured: pa.Table, out: StageDir) -> list[str]:
    """One shard a shard of the pool; returns their names."""
    import numpy as np
    import pyarrow as pa

    from datapipe.paser.rows import ROW_NUMBERS
    from datapipe.storage.rowid import ids_to_arrow

    places = measured["place"].to_numpy()
    values = {}
    for name in ROW_NUMBERS:
        values[name] = np.full(len(listed.ids), np.nan, np.float32)
        values[name][places] = measured[name].to_numpy()
    names, start = [], 0
    for number, shard in enumerate(pool.shards("rows")):
        part = slice(start, start + shard.rows)
        columns = [listed.tokens[part], listed.prompt[part], *(values[name][part] for name in ROW_NUMBERS)]
        arrays = [ids_to_arrow(listed.ids[part]), *(pa.array(column) for column in columns)]
        names.append(f"rows-{number:05d}.parquet")
        out.write_table(names[-1], pa.Table.from_arrays(arrays, schema=damage_schema()))
        start += shard.rows
    return names
