"""Which stratum a row falls into."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from datapipe.selection.keys import scores_of_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.selection.cuts import Cut
    from datapipe.selection.intake import Chunk
    from datapipe.selection.keys import UInt32
    from datapipe.selection.plan import Plan
    from datapipe.storage.arrays import Int64, UInt64

ALL = "all"
"""Name of the only stratum where a plan has none."""


class Strata:
    """Names the strata of a plan and places rows in them.

    Args:
        plan: Decides which of the others are used.
        groups: Names of the groups.
        edges: First and last row left after trimming, in difficulty order; for "score_width".
        cuts: Where parts of equal size begin, all but the first, in difficulty order; for "score_count".
    """

    def __init__(self, plan: Plan, *, groups: Sequence[str], edges: Sequence[Cut], cuts: Sequence[Cut]) -> None:
        self._kind, self._bins = plan.strata, plan.bins
        self._high, self._low = (_score(cut) for cut in edges) if edges else (0.0, 0.0)
        self._cuts = marks_of(
            np.array([cut.key for cut in cuts], np.uint32), np.array([cut.hash for cut in cuts], np.uint64)
        )
        self.names = self._names(groups, [_score(cut) for cut in cuts])

    def place(self, chunk: Chunk) -> Int64:
        """Return the stratum of each row, int64 (rows,); score strata mean nothing for rows that are trimmed."""
        if self._kind == "none":
            return np.zeros(len(chunk.rows), np.int64)
        if self._kind == "group":
            return chunk.groups.astype(np.int64)
        if self._kind == "score_count":
            return self._bins - 1 - np.searchsorted(self._cuts, marks_of(chunk.keys, chunk.hashes), side="right")
        scores = scores_of_keys(chunk.keys).astype(np.float64)
        width = self._high - self._low
        parts = (scores - self._low) / width * self._bins if width else np.zeros(len(scores))
        placed: Int64 = np.clip(parts, 0, self._bins - 1).astype(np.int64)
        return placed

    def _names(self, groups: Sequence[str], cut_scores: list[float]) -> list[str]:
        if self._kind == "none":
            return [ALL]
        if self._kind == "group":
            return list(groups)
        if self._kind == "score_width":
            edges = np.linspace(self._low, self._high, self._bins + 1).tolist()
        else:
            edges = [self._low, *reversed(cut_scores), self._high]
        digits = len(str(self._bins))
        return [
            f"{at + 1:0{digits}}/{self._bins} {low:.6g} to {high:.6g}" for at, (low, high) in enumerate(pairwise(edges))
        ]


def marks_of(keys: UInt32, hashes: UInt64) -> UInt64:
    """Return where rows stand in the difficulty order as one word, uint64 (rows,).

    The key and the first half of the hash tell rows apart but for one pair in 2^32 of equal scores.
    """
    return keys.astype(np.uint64) << np.uint64(32) | hashes >> np.uint64(32)


def _score(cut: Cut) -> float:
    return float(scores_of_keys(np.array([cut.key], np.uint32))[0])
