"""Training rows that an evaluation set holds already, found by three rules, each with its evidence.

    exact      protect_exact       equal text keys (see `datapipe.dedup.exact`)
    contained  protect_contained   the row quotes the evaluation text (see `datapipe.dedup.contained`)
    near       protect_near        cosine of the two vectors at or above a threshold (see `datapipe.dedup.near`)

The rules see different things. Vectors find a reworded copy of the same length and miss an evaluation text inside a
longer row, whose vector speaks of all the rest; runs of words find the quotation and miss the rewording. Each rule
names, for each row, the evaluation row and the similarity; `combine_matches` makes one list of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from datapipe.storage.arrays import Bool, Float32, Ids, Int64, UInt64

__all__ = [
    "RULES",
    "Matches",
    "combine_matches",
    "protect_exact",
    "sort_keys",
]

RULES = ("exact", "contained", "near")
"""Names of the rules, the strictest first."""


def sort_keys(keys: Ids) -> tuple[Ids, Int64]:
    """Return text keys in ascending order, and for each its place in `keys`; equal keys stay in order."""
    order = np.lexsort((keys[:, 1], keys[:, 0])).astype(np.int64)
    return keys[order], order


def protect_exact(keys: Ids, protected: Ids) -> tuple[Bool, Int64]:
    """Find rows whose text key is among the protected ones. Time rows * log protected.

    Args:
        keys: Text keys of the training rows, uint64 (rows, 2), in any order.
        protected: Text keys of the evaluation rows, uint64 (m, 2), ascending (`sort_keys`).

    Returns:
        Whether each row is protected, bool (rows,); the first place of its key in `protected`, int64 (rows,), else -1.

    Raises:
        ConfigError: `protected` is not sorted.
    """
    hi, lo = protected[:, 0], protected[:, 1]
    if not bool(np.all((hi[1:] > hi[:-1]) | ((hi[1:] == hi[:-1]) & (lo[1:] >= lo[:-1])))):
        raise ConfigError("protected keys must ascend; pass them through sort_keys first")
    place = np.searchsorted(hi, keys[:, 0], side="left").astype(np.int64)
    end = np.searchsorted(hi, keys[:, 0], side="right")
    # Equal first words are one evaluation text said twice, or a chance of 2^-64: the loop runs once or twice.
    while (behind := np.flatnonzero((place < end) & (_at(lo, place) < keys[:, 1]))).size:
        place[behind] += 1
    found: Bool = (place < end) & (_at(lo, place) == keys[:, 1])
    return found, np.where(found, place, -1)


@dataclass(frozen=True, eq=False)
class Matches:
    """One training row an entry, in ascending order of `rows`, under the strictest rule that found it.

    Attributes:
        rows: Training rows, int64 (n,).
        evaluation: The evaluation row behind each, int64 (n,).
        similarity: 1 for exact, share of the evaluation text for contained, cosine for near; float32 (n,).
        rules: Index into `RULES`, int64 (n,).
    """

    rows: Int64
    evaluation: Int64
    similarity: Float32
    rules: Int64

    def __len__(self) -> int:
        return len(self.rows)


def combine_matches(
    *,
    exact: tuple[Bool, Int64] | None = None,
    contained: tuple[Bool, Int64, Float32] | None = None,
    near: tuple[Bool, Int64, Float32] | None = None,
) -> Matches:
    """Join what the rules returned for the same rows; a row found by several stands once, under the first rule."""
    found = [(*exact, np.ones(len(exact[0]), np.float32)) if exact else None, contained, near]
    parts = [
        (np.flatnonzero(hit), evaluation[hit], similarity[hit], rule)
        for rule, part in enumerate(found)
        if part is not None
        for hit, evaluation, similarity in [part]
    ]
    rows = np.concatenate([np.empty(0, np.int64), *(part[0] for part in parts)])
    evaluation = np.concatenate([np.empty(0, np.int64), *(part[1] for part in parts)])
    similarity = np.concatenate([np.empty(0, np.float32), *(part[2] for part in parts)])
    rules = np.concatenate([np.empty(0, np.int64), *(np.full(len(part[0]), part[3], np.int64) for part in parts)])
    _, first = np.unique(rows, return_index=True)
    return Matches(rows=rows[first], evaluation=evaluation[first], similarity=similarity[first], rules=rules[first])


def _at(values: UInt64, places: Int64) -> UInt64:
    """Return `values` at `places`, the last value for a place beyond the end."""
    if not len(values):
        return np.zeros(len(places), np.uint64)
    taken: UInt64 = values[np.minimum(places, len(values) - 1)]
    return taken
