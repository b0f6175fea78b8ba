"""The selection as a few plain loops over lists: what the engine must give, row by row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from datapipe.selection.keys import race_keys
from datapipe.selection.quotas import allocate, balanced_floor
from datapipe.selection.result import ScoreBatch
from datapipe.storage.order import hash_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapipe.selection.budget import Budget
    from datapipe.selection.plan import Plan
    from datapipe.storage.arrays import Float32, Float64, Ids, Int32


@dataclass(kw_only=True, eq=False)
class Table:
    """Some rows to choose from, in the order of their ids."""

    ids: Ids
    scores: Float32
    groups: Int32
    excluded: Int32
    tokens: Int32
    places: Float32
    cuts: list[int] = field(default_factory=list)

    def batches(self) -> Iterator[ScoreBatch]:
        for low, high in zip([0, *self.cuts], [*self.cuts, len(self.ids)], strict=True):
            part = slice(low, high)
            yield ScoreBatch(
                ids=self.ids[part],
                scores=self.scores[part],
                groups=self.groups[part],
                excluded=self.excluded[part],
                tokens=self.tokens[part],
                places=self.places[part],
            )


def make_table(rows: int, *, seed: int, values: int = 5, groups: int = 3, excluded: float = 0.1) -> Table:
    """Rows with few distinct scores, so that ties abound; excluded rows have no score."""
    rng = np.random.default_rng(seed)
    words = np.unique(rng.integers(0, 2**64, (rows, 2), dtype=np.uint64), axis=0)
    out = np.where(rng.random(len(words)) < excluded, rng.integers(0, 2, len(words)), -1).astype(np.int32)
    scores = rng.integers(0, values, len(words)).astype(np.float32) / np.float32(values)
    places = rng.integers(0, 9, len(words)).astype(np.float32) / np.float32(8)
    scores[out >= 0] = places[out >= 0] = np.nan
    return Table(
        ids=words,
        scores=scores,
        groups=rng.integers(0, groups, len(words)).astype(np.int32),
        excluded=out,
        tokens=rng.integers(0, 20, len(words)).astype(np.int32),
        places=places,
        cuts=sorted(rng.integers(0, len(words) + 1, 3).tolist()),
    )


Row = tuple[bool, str, int, int]
"""kept, reason, number of the stratum (-1 for none), rank."""


def choose_rows(
    table: Table,
    plan: Plan,
    budget: Budget,
    *,
    seed: int,
    strata: int,
    given: Float64 | None = None,
    placed: bool = False,
) -> list[Row]:
    """Every row by the letter of `Plan`; `strata` counts the strata."""
    hashes = [int(h) for h in hash_order(table.ids, seed=seed)]
    score = table.scores.tolist()
    weight = [int(t) for t in table.tokens] if budget.tokens else [1] * len(score)
    pool = [i for i in range(len(score)) if table.excluded[i] < 0]
    rows: list[Row] = [(False, f"excluded-{table.excluded[i]}", -1, -1) for i in range(len(score))]

    by_difficulty = sorted(pool, key=lambda i: (-score[i], hashes[i]))
    hard, easy = int(plan.trim_hard * len(pool)), int(plan.trim_easy * len(pool))
    left = by_difficulty[hard : len(pool) - easy]
    stratum = dict(zip(left, _strata(table, plan, left), strict=True))
    for i in set(pool) - set(left):
        number = {"group": int(table.groups[i]), "none": 0}.get(plan.strata, -1)
        rows[i] = (False, "trimmed_hard" if i in by_difficulty[:hard] else "trimmed_easy", number, -1)

    limit = budget.tokens or budget.rows_of(len(pool))
    by_hash = sorted(left, key=lambda i: hashes[i])
    mixed = _start(by_hash, weight, int(plan.mix_random * limit)) if plan.mix_random else []
    race = hashes
    if plan.order == "weighted":
        draws = np.nan_to_num(table.scores)
        if plan.beta is not None and placed:
            draws = draws * _densities_at(table.places, by_difficulty, plan.beta)
        elif plan.beta is not None:
            draws = _densities(by_difficulty, len(score), plan.beta)
        race = list(race_keys(draws, np.array(hashes, np.uint64)))
    keys = {"hard": [-s for s in score], "easy": score, "random": [0] * len(score), "weighted": race}[plan.order]
    rest = sorted((i for i in left if i not in mixed), key=lambda i: (keys[i], hashes[i]))

    held = np.array([sum(weight[i] for i in rest if stratum[i] == s) for s in range(strata)], np.int64)
    taken = [sum(weight[i] for i in mixed if stratum[i] == s) for s in range(strata)]
    budget_left = limit - sum(taken)
    if plan.quota == "fill":
        floor = balanced_floor(limit, max(len(set(stratum.values())), 1), plan.floor_ratio)
        quotas = [max(min(floor, int(h) + t) - t, 0) for h, t in zip(held, taken, strict=True)]
    else:
        weights = {"proportional": held.astype(float), "equal": np.ones(strata), "given": given}[plan.quota]
        assert weights is not None
        quotas = allocate(weights, held, budget=budget_left).tolist()
    kept = set(mixed)
    for s in range(strata):
        kept |= set(_start([i for i in rest if stratum[i] == s], weight, quotas[s]))
    if plan.quota == "fill":
        kept |= set(_start([i for i in rest if i not in kept], weight, budget_left - sum(quotas)))
    for s in range(strata):
        for rank, i in enumerate(i for i in [*mixed, *rest] if stratum[i] == s):
            rows[i] = (i in kept, "kept" if i in kept else "over_budget", s, rank)
    return rows


def _densities(by_difficulty: list[int], rows: int, beta: tuple[float, float]) -> Float32:
    """The Beta density in the middle of the step of each row's place by rank, its greatest value 1."""
    density = _beta(64, beta, anchor=0.0)
    weights = np.zeros(rows, np.float32)
    for position, row in enumerate(by_difficulty):
        weights[row] = density[position * 64 // len(by_difficulty)]
    return weights


def _densities_at(places: Float32, by_difficulty: list[int], beta: tuple[float, float]) -> Float32:
    """The same at the places, anchored at those of the ten hardest rows."""
    hardest = by_difficulty[:10]
    anchor = sum(float(places[i]) for i in hardest) / len(hardest) if hardest else 0.0
    density = _beta(1024, beta, anchor=anchor)
    return np.array([density[min(int(p * 1024), 1023)] for p in np.nan_to_num(places)], np.float32)


def _beta(steps: int, beta: tuple[float, float], *, anchor: float) -> Float64:
    middles = (np.arange(steps) + 0.5) / steps
    b = max(beta[0] * (1 - anchor) * beta[1], 0.001)
    density: Float64 = middles ** (beta[0] - b) * (1 - middles) ** (b - 1)
    density /= density.max()
    return density


def _start(rows: list[int], weight: list[int], limit: int) -> list[int]:
    """The rows before the first one that goes over the limit."""
    total = 0
    for at, i in enumerate(rows):
        total += weight[i]
        if total > limit:
            return rows[:at]
    return rows


def _strata(table: Table, plan: Plan, left: list[int]) -> list[int]:
    if plan.strata == "none" or not left:
        return [0] * len(left)
    if plan.strata == "group":
        return [int(table.groups[i]) for i in left]
    if plan.strata == "score_count":
        ends = [part * len(left) // plan.bins for part in range(1, plan.bins + 1)]
        return [plan.bins - 1 - sum(position >= end for end in ends) for position in range(len(left))]
    high, low = float(table.scores[left[0]]), float(table.scores[left[-1]])
    if high == low:
        return [0] * len(left)
    return [min(int((float(table.scores[i]) - low) / (high - low) * plan.bins), plan.bins - 1) for i in left]
