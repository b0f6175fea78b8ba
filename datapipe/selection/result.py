"""What goes into a selection, batch by batch, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    import pyarrow as pa

    from datapipe.storage.arrays import Float32, Ids, Int32

KEPT = "kept"
OVER_BUDGET = "over_budget"
TRIMMED_HARD = "trimmed_hard"
TRIMMED_EASY = "trimmed_easy"
REASONS = (KEPT, OVER_BUDGET, TRIMMED_HARD, TRIMMED_EASY)
"""Why a row is kept or not; exclusions add their own slugs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreBatch:
    """Some rows and what a selection knows about them; arrays of equal length.

    Attributes:
        ids: Row ids, uint64 (rows, 2), ascending, also from batch to batch.
        scores: Float32 (rows,), finite where the row is not excluded.
        groups: Place of each row's group among the names given to `select`, int32 (rows,).
        excluded: Place of the reason among the slugs given to `select`, -1 for a row of the pool, int32 (rows,); None
            where no row of the batch is excluded.
        tokens: Length of each row, int32 (rows,), >= 0; for a budget of tokens.
        places: Place of each row in 0 ... 1, float32 (rows,), where it is not excluded; for a plan with `beta`.
    """

    ids: Ids
    scores: Float32
    groups: Int32 | None = None
    excluded: Int32 | None = None
    tokens: Int32 | None = None
    places: Float32 | None = None


@dataclass(frozen=True, kw_only=True)
class StratumCount:
    """What became of one stratum.

    Attributes:
        name: As in the column `stratum`.
        rows: Rows that competed for its quota: neither excluded nor trimmed.
        kept: How many of them are kept.
        tokens: Tokens of the rows that competed; None unless the budget counts tokens.
        kept_tokens: Tokens of the rows kept; None likewise.
        cut: Score of the last row kept in the keep order, mixed-in random rows aside; None where no row is kept by
            score.
    """

    name: str
    rows: int
    kept: int
    tokens: int | None
    kept_tokens: int | None
    cut: float | None


@dataclass(kw_only=True, eq=False)
class Selection:
    """The rows of a selection, sorted by row id, to be read once, and its counts, known before the first row is read.

    Iterating yields one table a batch of scores, with the columns row_id (16 bytes), kept (bool), reason, stratum
    (strings; the stratum is empty for rows in none) and rank (int64: place in the stratum's keep order from 0 on, -1
    for rows that are excluded or trimmed). A context manager: leaving it, or reading to the end, deletes the scratch
    files.

    Attributes:
        rows: All rows, excluded ones too.
        pool: Rows not excluded: what fractions and trims count.
        kept: Rows kept.
        kept_tokens: Their tokens; None unless the budget counts tokens.
        reasons: Rows by reason, without zeros.
        strata: Counts by stratum, empty strata too.
    """

    rows: int
    pool: int
    kept: int
    kept_tokens: int | None
    reasons: Mapping[str, int]
    strata: tuple[StratumCount, ...]
    _tables: Iterator[pa.Table] = field(repr=False)
    _close: Callable[[], None] = field(repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[pa.Table]:
        try:
            yield from self._tables
        finally:
            self.close()

    def close(self) -> None:
        """Delete the scratch files; the rest of the rows can no longer be read."""
        self._close()
