"""Scores to the rows kept.

Reads `score`, `ingest/rows` where labels or groups count, tokens where the budget counts them, and `screen/excluded`.
Writes `selection.parquet`: row_id, kept, reason, stratum, rank, sorted by row_id.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import BudgetError
from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.choosing import EXCLUSIONS, UNSCORED, ScoreStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from datapipe.config import Strategy
    from datapipe.metrics.base import Direction
    from datapipe.selection.budget import Budget
    from datapipe.selection.result import Selection
    from datapipe.storage.stage import ShardInfo, StageDir

__all__ = ["EXCLUSIONS", "SELECTION", "UNSCORED", "Select", "SelectConfig", "read_selection"]

SELECTION = "selection.parquet"
READ_ROWS = 65_536


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
    version: ClassVar[int] = 5

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
        stream = ScoreStream(settings, inputs)
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
