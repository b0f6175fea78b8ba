"""What a choice reads, batch by batch (scores, groups, tokens, exclusions of the stages before), and the plan for it.

    score, ingest/rows, tokens, screen -> ScoreStream -> Choice, ScoreBatch ... -> `datapipe.selection.engine`

Raises `SelectionError` where there is nothing to choose from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from datapipe.errors import SelectionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from datapipe.pipeline import StageOutput
    from datapipe.selection.auto import Choice
    from datapipe.selection.result import ScoreBatch
    from datapipe.stages.select import SelectConfig
    from datapipe.storage.arrays import Float64, Int32

UNSCORED = "unscored"
EXCLUSIONS = ("protected", "leak", "duplicate", "other_split", UNSCORED)
"""Why a row is not in the pool."""
_UNSCORED = EXCLUSIONS.index(UNSCORED)


class ScoreStream:
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
