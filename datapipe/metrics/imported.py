"""Scores that were computed elsewhere: turned the right way, and joined by row id.

ids of the file, scores -> oriented -> joined -> one float32 a row of the run, NaN where the file has none
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from datapipe.errors import MetricError
from datapipe.metrics.base import get_metric

if TYPE_CHECKING:
    from datapipe.metrics.base import Metric
    from datapipe.storage.arrays import Float32, Float64, Ids, Int64

Higher: TypeAlias = Literal["harder", "easier", "rarer", "better"]
"""What the file's high scores mean; "easier" is turned round to "harder"."""
DEFAULT_HIGHER: Higher = "harder"


def declared(higher: Higher | None) -> Metric:
    """The declaration of imported scores once their direction is known; None is `DEFAULT_HIGHER`."""
    known = higher or DEFAULT_HIGHER
    return replace(get_metric("imported"), higher="harder" if known == "easier" else known)


def oriented(scores: Float64, *, higher: Higher) -> Float32:
    """The scores with `easier` turned round, float32 (rows,). Infinities count as no score (NaN)."""
    turned = -scores if higher == "easier" else scores
    narrow: Float32 = turned.astype(np.float32)
    return np.where(np.isfinite(narrow), narrow, np.float32(np.nan))


def sorted_ids(ids: Ids) -> Int64:
    """Places of the ids in ascending order, int64 (rows,); equal ids in the order given."""
    order: Int64 = np.lexsort((ids[:, 1], ids[:, 0]))
    return order


def first_repeat(ids: Ids) -> tuple[int, int] | None:
    """Places of two rows with one id, the first such pair in id order; None where all ids differ."""
    order = sorted_ids(ids)
    again = np.flatnonzero((ids[order[1:]] == ids[order[:-1]]).all(axis=1))
    return (int(order[again[0]]), int(order[again[0] + 1])) if len(again) else None


def joined(rows: Ids, ids: Ids, scores: Float32) -> Float32:
    """The score of each row of the run, float32 (rows,), NaN for a row that is not in `ids`.

    Args:
        rows: Row ids of the run, uint64 (rows, 2).
        ids: Row ids of the scores, uint64 (n, 2), all different.
        scores: float32 (n,).

    Raises:
        MetricError: An id occurs twice; says where.
    """
    return scores_at(places_of(rows, ids), scores)


def places_of(rows: Ids, ids: Ids) -> Int64:
    """Where each row of the run stands in `ids`, int64 (rows,), -1 for one that does not; arguments as in `joined`."""
    repeat = first_repeat(ids)
    if repeat is not None:
        raise MetricError(f"rows {repeat[0]} and {repeat[1]} of the scores have one id")
    both = np.concatenate([ids, rows])
    order = sorted_ids(both)
    place = np.empty(len(both), np.int64)
    first = np.append(True, (both[order[1:]] != both[order[:-1]]).any(axis=1))
    # The sort is stable, so where a row's id is among the scores, that entry comes first in its group.
    group = order[np.maximum.accumulate(np.where(first, np.arange(len(both)), 0))]
    place[order] = group
    where = place[len(ids) :]
    return np.where(where < len(ids), where, -1)


def scores_at(places: Int64, scores: Float32) -> Float32:
    """The score at each place, float32 (rows,), NaN at -1."""
    found = np.full(len(places), np.nan, np.float32)
    known = places >= 0
    found[known] = scores[places[known]]
    return found
