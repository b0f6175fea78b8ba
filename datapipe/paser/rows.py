"""Numbers of tokens to numbers of rows: how damaged an answer is, from how damaged its tokens are.

(tokens, 6) of `divergence.columns`, tokens of each row -> mean, sum, 95th percentile and first token of each row
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError
from datapipe.paser.divergence import columns

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32, Float64, Int64

__all__ = ["ROW_NUMBERS", "row_numbers"]

_HIGH = 0.95
_JSD = columns().index("jsd")
ROW_NUMBERS = ("jsd_mean", "jsd_sum", "jsd_p95", "jsd_first", *(name for name in columns() if name != "jsd"))
"""Names of a row's numbers, in nats but for `disagree`, a share."""


def row_numbers(tokens: Float32, sizes: Int64) -> dict[str, Float32]:
    """Sum up each row's tokens, in float64.

    `jsd_p95` interpolates between the two nearest tokens, as numpy's quantile. Everything but `jsd_sum`, `jsd_p95` and
    `jsd_first` is a mean over the row's tokens.

    Args:
        tokens: Columns of `divergence.columns`, float32 (tokens, 6), row after row.
        sizes: Tokens of each row, int64 (rows,), >= 0, summing to the tokens.

    Returns:
        `ROW_NUMBERS`, float32 (rows,) each; NaN for a row without tokens, whose sum is 0.

    Raises:
        MetricError: The sizes do not sum to the tokens.
    """
    if int(sizes.sum()) != len(tokens):
        raise MetricError(f"the rows have {int(sizes.sum()):,} tokens together, but numbers of {len(tokens):,} came")
    there = np.flatnonzero(sizes)
    found = {name: np.full(len(sizes), np.nan, np.float32) for name in ROW_NUMBERS}
    found["jsd_sum"][:] = 0.0
    if not len(there):
        return found
    own = sizes[there]
    starts = np.cumsum(own) - own
    sums = np.add.reduceat(tokens, starts, axis=0, dtype=np.float64)
    for place, name in enumerate(columns()):
        found["jsd_mean" if name == "jsd" else name][there] = sums[:, place] / own
    jsd = tokens[:, _JSD].astype(np.float64)
    found["jsd_sum"][there] = sums[:, _JSD]
    found["jsd_p95"][there] = _quantiles(jsd, own, starts)
    found["jsd_first"][there] = jsd[starts]
    return found


def _quantiles(values: Float64, sizes: Int64, starts: Int64) -> Float64:
    """The 95 % quantile of each run of values, float64 (runs,)."""
    ranked = values[np.lexsort((values, np.repeat(np.arange(len(sizes)), sizes)))]
    place = _HIGH * (sizes - 1)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, sizes - 1)
    low, high = ranked[starts + below], ranked[starts + above]
    found: Float64 = low + (place - below) * (high - low)
    return found
