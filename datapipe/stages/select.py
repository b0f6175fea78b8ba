"""Scores to the rows kept.

Reads `score`, `ingest/rows` where labels or groups count, tokens where the budget counts them, and `screen/excluded`.
Writes `selection.parquet`: row_id, kept, reason, stratum, rank, sorted by row_id.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import BudgetError, SelectionError
from datapipe.pipeline import Context, SetStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from datapipe.config import Strategy
    from datapipe.metrics.base import Direction
    from datapipe.selection.auto import Choice
    from datapipe.selection.budget import Budget
    from datapipe.selection.result import ScoreBatch, Selection
    from datapipe.storage.arrays import Float64, Int32
    from datapipe.storage.stage import ShardInfo, StageDir

SELECTION = "selection.parquet"
UNSCORED = "unscored"
EXCLUSIONS = ("protected", "leak", "duplicate", "other_split", UNSCORED)
READ_ROWS = 65_536
_UNSCORED = EXCLUSIONS.index(UNSCORED)


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """What the choice depends on besides the scores.

    Attributes:
        metric: The score column.
        higher: What a high score says of a row.
        clusters: Whether the scores come with clusters.
        strategy: As asked: `auto`, `hard`, `easy`, `random` or `strata`.
        budget: Fraction, rows or tokens.
        labelled: Whether rows have labels.
        balanced: Whether a balance column asks for a floor for each of its values.
        tokens: The stage that counted tokens; None unless the budget counts them.
        screened: Whether rows may be excluded.
        seed: Seeds the hash order.
        preset: Name of the preset that stands in for the strategy; None without.
        window_start: Part of the rows, from the highest score on, before the window of the preset `bws`.
    """

    metric: str
    higher: Direction
    clusters: bool
    strategy: Strategy
    budget: Budget
    labelled: bool
    balanced: bool
    tokens: str | None
    screened: bool
    seed: int
    preset: str | None = None
    window_start: float | None = None


@dataclass(frozen=True)
class Select(SetStage):
    """Apply a strategy to the scores, out of core.

    Attributes:
        settings: The frozen config.
    """

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 4

    settings: SelectConfig

    @property
    def config(self) -> SelectConfig:
        """The frozen config."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """Scores; rows, tokens and exclusions where they count."""
        asked = ["score"]
        if self.settings.labelled or self.settings.balanced:
            asked.append("ingest/rows")
        if self.settings.tokens is not None:
            asked.append(self.settings.tokens)
        if self.settings.screened:
            asked.append("screen/excluded")
        return tuple(asked)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Choose the plan, run the engine, write the selection."""
        from datapipe.selection.engine import select

        settings = self.settings
        stream = _Stream(settings, inputs)
        choice = stream.choose()
        column = "group" if settings.balanced else choice.group_by
        groups = stream.names(column) if choice.plan.strata == "group" else ()
        with select(
            lambda: stream.batches(column, groups),
            choice.plan,
            settings.budget,
            seed=settings.seed,
            scratch=context.scratch,
            groups=groups,
            exclusions=EXCLUSIONS,
            weights=stream.weights(column, groups) if choice.plan.quota == "given" else None,
            placed=stream.place is not None,
        ) as selection:
            self._check_kept(selection)
            facts = {
                "rows": selection.rows,
                "counts": dict(selection.reasons),
                "budget": _told(settings.budget),
                "plan": _told(choice.plan),
                "reasons": list(choice.reasons),
                "warnings": list(choice.warnings),
                "kept_tokens": selection.kept_tokens,
                "strata": [_told(stratum) for stratum in selection.strata],
            }
            _write(selection, out, context)
        return [SELECTION], facts

    def _check_kept(self, selection: Selection) -> None:
        if not selection.kept:
            raise BudgetError(
                f"a budget of {self.settings.budget.tokens:,} tokens keeps none of {selection.pool:,} rows: the first "
                "row to keep is longer; raise keep_tokens"
            )


def _told(value: Any) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in fields(value) if getattr(value, each.name) is not None}


def _write(selection: Selection, out: StageDir, context: Context) -> None:
    import pyarrow as pa

    schema = pa.schema(
        [
            pa.field("row_id", pa.binary(16), nullable=False),
            pa.field("kept", pa.bool_()),
            pa.field("reason", pa.string()),
            pa.field("stratum", pa.string()),
            pa.field("rank", pa.int64()),
        ]
    )
    with out.writer(SELECTION, schema) as writer:
        for table in selection:
            writer.write(table.cast(schema))
            context.tick(table.num_rows)


def read_selection(select: StageOutput, like: Sequence[ShardInfo]) -> Iterator[pa.Table]:
    """Read the selection cut into as many rows as each shard of `like` has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(select.path / SELECTION) as file:
        batches = file.iter_batches(batch_size=READ_ROWS)
        rest = file.schema_arrow.empty_table()
        for shard in like:
            while rest.num_rows < shard.rows:
                rest = pa.concat_tables([rest, pa.Table.from_batches([next(batches)])])
            yield rest.slice(0, shard.rows).combine_chunks()
            rest = rest.slice(shard.rows)


class _Stream:
    """The stages before, as the engine reads them: as often as it likes, in row_id order."""

    def __init__(self, settings: SelectConfig, inputs: Mapping[str, StageOutput]) -> None:
        self._settings, self._inputs = settings, inputs

    @property
    def place(self) -> str | None:
        """The column at which the preset takes its density."""
        from datapipe.selection.presets import get_preset

        return get_preset(self._settings.preset).place if self._settings.preset is not None else None

    def choose(self) -> Choice:
        """What to do, by what is known of the rows.

        Raises:
            SelectionError: No row is left to choose from; says why.
        """
        pool = self._pool()
        choice = self._choice(pool, min(1.0, self._fraction(pool)))
        share = self._settings.budget.fraction
        if share is None or round(share * pool):
            return choice
        told = f"{share:g} of {pool:,} rows to choose from are less than half a row; one is kept."
        return replace(choice, warnings=(*choice.warnings, told))

    def _choice(self, pool: int, fraction: float) -> Choice:
        from datapipe.metrics.base import get_metric
        from datapipe.selection.auto import balance, by_preset, choose
        from datapipe.selection.presets import get_preset

        settings = self._settings
        classes = len(self.names("label")) if settings.labelled else None
        k = len(self.names("cluster")) if settings.clusters else None
        if settings.preset is not None:
            return by_preset(
                get_preset(settings.preset), fraction=fraction, classes=classes, k=k, window_start=settings.window_start
            )
        choice = choose(
            settings.strategy,
            fraction=fraction,
            rows=pool,
            classes=classes,
            k=k,
            metric=replace(get_metric(settings.metric), higher=settings.higher),
        )
        return balance(choice) if settings.balanced else choice

    def _pool(self) -> int:
        """Rows that may be kept: neither taken out nor without a score."""
        pool = unscored = 0
        for batch in self.batches(None, ()):
            if batch.excluded is not None:
                pool += int((batch.excluded < 0).sum())
                unscored += int((batch.excluded == _UNSCORED).sum())
        if unscored and not pool:
            raise SelectionError(
                f"none of {unscored:,} rows has a score by {self._settings.metric}, so there is nothing to choose "
                "from; check the labels or vectors that the metric needs"
            )
        return pool

    def weights(self, column: str | None, groups: Sequence[str]) -> Float64:
        """The weight of each group, float64 (groups,)."""
        from datapipe.selection.groups import mean_scores

        return mean_scores(self.batches(column, groups), groups=len(groups))

    def names(self, column: str | None) -> tuple[str, ...]:
        """Names of the groups of a column, by code."""
        from datapipe.selection.groups import group_names

        if column == "cluster":
            most = max((_largest(table["cluster"]) for table in self._inputs["score"].tables()), default=0)
            return tuple(f"cluster {i}" for i in range(most + 1))
        found: set[str | None] = set()
        for table in self._inputs["ingest"].tables("rows", columns=[str(column)]):
            found.update(table[str(column)].unique().to_pylist())
        return group_names(found)

    def batches(self, column: str | None, groups: Sequence[str]) -> Iterator[ScoreBatch]:
        """One batch a canonical shard."""
        import numpy as np

        from datapipe.selection.groups import group_codes
        from datapipe.selection.result import ScoreBatch
        from datapipe.storage.rowid import ids_from_arrow

        settings = self._settings
        labels = groups and column != "cluster"
        rows = self._inputs["ingest"].tables("rows", columns=[str(column)]) if labels else None
        tokens = self._token_tables() if settings.tokens is not None else None
        excluded = self._inputs["screen"].tables("excluded") if settings.screened else None
        for table in self._inputs["score"].tables():
            codes: Int32 | None = None
            if rows is not None:
                codes = group_codes(next(rows)[str(column)], groups)
            elif groups:
                codes = table["cluster"].to_numpy()
            scores = table[settings.metric].to_numpy()
            out = _codes_of(next(excluded), table) if excluded is not None else np.full(len(scores), -1, np.int32)
            yield ScoreBatch(
                ids=ids_from_arrow(table["row_id"]),
                scores=scores,
                groups=codes,
                excluded=np.where((out < 0) & ~np.isfinite(scores), _UNSCORED, out).astype(np.int32),
                tokens=next(tokens)["tokens"].to_numpy() if tokens is not None else None,
                places=table[self.place].to_numpy() if self.place is not None else None,
            )

    def _fraction(self, pool: int) -> float:
        """The budget as a part of the pool."""
        budget = self._settings.budget
        if budget.fraction is not None:
            return budget.fraction
        if budget.rows is not None:
            return budget.rows / max(pool, 1)
        total = sum(int(table["tokens"].to_numpy().sum(dtype="int64")) for table in self._token_tables())
        return (budget.tokens or 0) / max(total, 1)

    def _token_tables(self) -> Iterator[pa.Table]:
        return self._inputs[str(self._settings.tokens)].tables(columns=["tokens"])


def _largest(column: pa.ChunkedArray) -> int:
    import pyarrow.compute as pc

    return int(pc.max(column).as_py() or 0)


def _codes_of(excluded: pa.Table, scores: pa.Table) -> Int32:
    """The reason's code for each row of `scores`, -1 where it is not excluded, int32 (rows,)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    place = pc.index_in(scores["row_id"], value_set=excluded["row_id"].combine_chunks())
    reasons = pc.index_in(excluded["reason"], value_set=pa.array(EXCLUSIONS, pa.string()))
    codes = pc.fill_null(reasons.combine_chunks().take(pa.chunked_array(place).combine_chunks()), -1)
    return np.asarray(codes.to_numpy(zero_copy_only=False), dtype=np.int32)
