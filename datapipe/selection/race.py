"""The keep order of a plan that draws rows: an exponential race whose weights are scores or Beta densities.

pool -> anchor, or the first row of each step -> a chunk's steps -> density -> weight -> key
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.selection.cuts import cuts_at
from datapipe.selection.keys import PLACE_STEPS, RANK_STEPS, beta_weights, place_steps, race_keys, scores_of_keys
from datapipe.selection.strata import marks_of

if TYPE_CHECKING:
    from datapipe.selection.intake import Chunk, Pool
    from datapipe.selection.keys import UInt32
    from datapipe.selection.plan import Plan
    from datapipe.storage.arrays import Float32, UInt64

ANCHORS = 10
"""Rows of highest score whose mean place is the anchor of a Beta distribution, as in the authors' code of DUAL."""
_GREATEST = 2**64 - 1


class Race:
    """Keys of rows, ascending in the order in which they are drawn.

    Args:
        plan: With order "weighted"; its `beta` decides.
        pool: The rows.
        placed: They have places.
    """

    def __init__(self, plan: Plan, pool: Pool, *, placed: bool) -> None:
        self._beta, self._pool = plan.beta, pool
        self._anchor = self._find_anchor() if placed and plan.beta is not None else None
        self._steps = self._find_steps() if not placed and plan.beta is not None else None

    def keys(self, chunk: Chunk) -> UInt32:
        """Return the keys of a chunk, uint32 (rows,)."""
        return race_keys(self._weights(chunk), chunk.hashes)

    def _weights(self, chunk: Chunk) -> Float32:
        if self._beta is None:
            return scores_of_keys(chunk.keys)
        if self._anchor is not None:
            density = beta_weights(place_steps(chunk.places), self._beta, anchor=self._anchor, count=PLACE_STEPS)
            weights: Float32 = density * scores_of_keys(chunk.keys)
            return weights
        if self._steps is None:
            return np.ones(len(chunk.rows), np.float32)
        steps = np.searchsorted(self._steps, marks_of(chunk.keys, chunk.hashes), side="right")
        return beta_weights(steps, self._beta, anchor=0.0, count=RANK_STEPS)

    def _find_anchor(self) -> float:
        """The mean place of the rows of highest score, 0 ... 1."""
        places, marks = np.zeros(0, np.float32), np.zeros(0, np.uint64)
        for chunk in self._pool.chunks():
            places = np.concatenate([places, chunk.places])
            marks = np.concatenate([marks, marks_of(chunk.keys, chunk.hashes)])
            first = np.argsort(marks, kind="stable")[:ANCHORS]
            places, marks = places[first], marks[first]
        return float(places.mean(dtype=np.float64)) if len(places) else 0.0

    def _find_steps(self) -> UInt64 | None:
        """Where the steps of places by rank begin, all but the first, as marks; None of an empty pool."""
        size = self._pool.size
        if not size:
            return None
        bounds = [-(-step * size // RANK_STEPS) for step in range(1, RANK_STEPS)]
        inside = sorted({at for at in bounds if at < size})
        cuts = cuts_at(lambda: ((chunk.keys, chunk.hashes) for chunk in self._pool.chunks()), inside)
        found = dict(zip(inside, cuts, strict=True))
        keys = np.array([found[at].key if at in found else 2**32 - 1 for at in bounds], np.uint32)
        hashes = np.array([found[at].hash if at in found else _GREATEST for at in bounds], np.uint64)
        return marks_of(keys, hashes)
