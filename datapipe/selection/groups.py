"""Groups by name and by code, and what their rows score: what strata and quotas of groups are made from.

values of a column -> group_names -> codes of each batch -> mean_scores -> weights of a plan with quota "given"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datapipe.selection.result import ScoreBatch
    from datapipe.storage.arrays import Float64, Int32

NO_GROUP = "(none)"
"""The group of the nulls; a value that reads like it shares it."""


def group_names(found: Iterable[str | None]) -> tuple[str, ...]:
    """Names of the groups by code: the distinct values, sorted; that of the nulls last, where there are any."""
    distinct = set(found)
    named = sorted(name for name in distinct if name is not None and name != NO_GROUP)
    return (*named, NO_GROUP) if len(named) < len(distinct) else tuple(named)


def group_codes(column: pa.ChunkedArray, groups: Sequence[str]) -> Int32:
    """Place of each value, a string or null, among `group_names` of the whole column, int32 (rows,)."""
    # The group of nulls comes last, so its code stands in where the value is not found.
    codes = pc.index_in(column, value_set=pa.array([name for name in groups if name != NO_GROUP], pa.string()))
    return np.asarray(pc.fill_null(codes, len(groups) - 1).to_numpy(), dtype=np.int32)


def mean_scores(batches: Iterable[ScoreBatch], *, groups: int) -> Float64:
    """The mean score of each group's pool, float64 (groups,), at least 0, and 0 without a row; summed in row order."""
    sums, counts = np.zeros(groups), np.zeros(groups)
    for batch in batches:
        if batch.groups is not None:
            inside = batch.excluded < 0 if batch.excluded is not None else np.ones(len(batch.scores), np.bool_)
            np.add.at(sums, batch.groups[inside], batch.scores[inside].astype(np.float64))
            np.add.at(counts, batch.groups[inside], 1)
    means: Float64 = np.maximum(sums, 0) / np.maximum(counts, 1)
    return means
