"""The published choice of rows, made anew from its description, for comparison.

    plain mean damage -> shares rounded down -> efficiency first -> one graph of concepts over all clusters

PASER, arXiv 2502.12594, equations 6 and 7 and "NTEM". Nothing replaces what rounding and refusals leave unused. Where
the description is silent: the cost of a row is the square of its tokens, concepts are cut to 1,500, 500 and 1,000
characters, clusters are asked in the order of their numbers, and ties go by hash order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.paser import ies
from datapipe.paser.conflicts import ConceptGraph, Verdict
from datapipe.paser.pick_config import Choice, PickConfig, PickRows, undamaged

if TYPE_CHECKING:
    from datapipe.paser.allocate import Degradation
    from datapipe.storage.arrays import Int64


def picks_of_paper(rows: PickRows, damage: Degradation, config: PickConfig, *, costs: Int64, budget: int) -> Choice:
    """Share out n_k = floor(B CDS_k / sum of CDS) and ask the rows of each cluster until n_k are accepted.

    If no cluster is damaged, where the formula divides by zero, shares follow the sizes.

    Args:
        rows: The pool; `jsd` is known.
        damage: Its clusters; the score is the plain mean.
        config: Whether concepts are looked at.
        costs: What each row takes of the budget, int64 (rows,): 1, or its tokens.
        budget: B, in the same unit.
    """
    scores = damage.rows.astype(np.float64) if undamaged(damage) else damage.score
    quotas = np.floor(budget * scores / scores.sum())
    preferred = ies.ranked(ies.efficiency(np.asarray(rows.jsd), rows.length), rows.order)
    kept, asked, allowed = np.zeros((3, len(preferred)), np.bool_)
    allowed[:] = True
    against = np.full(len(preferred), -1, np.int64)
    graph = ConceptGraph()
    sequence: list[int] = []
    for cluster in range(rows.clusters):
        left = int(quotas[cluster])
        for row in preferred[rows.labels[preferred] == cluster].tolist():
            if left <= 0:
                break
            if costs[row] > left:
                continue
            asked[row] = True
            if config.filter == "paper" and rows.texts is not None:
                clash = graph.clash(len(sequence), rows.texts[row])
                sequence.append(row)
                allowed[row] = clash < 0
                against[row] = sequence[clash] if clash >= 0 else -1
            if allowed[row]:
                kept[row] = True
                left -= int(costs[row])
    places = ies.places_within(preferred, rows.labels, clusters=rows.clusters)
    return Choice(np.flatnonzero(kept), places, Verdict(allowed, against), scores / scores.sum(), quotas, asked)
