"""One selection engine: scores in, the kept rows out, exactly counted and out of core.

batches -> pool on scratch (key, hash, group, tokens) -> cuts (trims, strata, random part) -> sort by keep order ->
quotas, ranks, kept -> sort back by row -> tables in row id order. The result does not depend on how rows were batched.
Raises `SelectionError` for scores or codes that cannot be used and `BudgetError` for a budget that rows cannot fill.

Stop rule for tokens: a stratum keeps its rows in keep order up to the first one that would exceed its share, and none
after it; likewise the part that "fill" gives out across strata. So at most the budget is kept, and the rows kept in a
stratum are the first of its keep order.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from datapipe.errors import BudgetError, SelectionError
from datapipe.selection.cuts import Cut, cuts_at, hash_cut
from datapipe.selection.intake import Needs, Pool
from datapipe.selection.keys import scores_of_keys
from datapipe.selection.race import Race
from datapipe.selection.ranking import Ranking, Supply, share_out
from datapipe.selection.result import REASONS, Selection, StratumCount
from datapipe.selection.strata import Strata
from datapipe.storage.rowid import ids_to_arrow
from datapipe.storage.sort import ExternalSorter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from datapipe.selection.budget import Budget
    from datapipe.selection.intake import Chunk
    from datapipe.selection.keys import UInt32
    from datapipe.selection.plan import Plan
    from datapipe.selection.result import ScoreBatch
    from datapipe.storage.arrays import Bool, Float64, Int64, UInt64

_KEPT, _OVER, _HARD, _EASY = range(len(REASONS))
_TABLE_ROWS = 1 << 18
_GREATEST = 2**64 - 1


def select(  # noqa: PLR0913 - the data, the plan and the budget; the rest by keyword
    batches: Callable[[], Iterator[ScoreBatch]],
    plan: Plan,
    budget: Budget,
    *,
    seed: int,
    scratch: Path,
    groups: Sequence[str] = (),
    exclusions: Sequence[str] = (),
    weights: Float64 | None = None,
    placed: bool = False,
    memory_bytes: int = 96 << 20,
) -> Selection:
    """Choose rows by `plan` within `budget`; every row comes back with its reason.

    The pool is every row that is not excluded. Fractions (of the budget, and trims) count the pool. A budget of rows
    or a fraction is met exactly; one of tokens at most. Ties break by hash order. Time: one hash and two sorts a row.

    Args:
        batches: Starts a pass over the rows, in the order of row ids; called twice and must yield the same.
        plan: What to keep.
        budget: How much.
        seed: Of the hash order, 0 <= seed < 2^64.
        scratch: Folder for scratch files, about 100 bytes a row; must not hold "pool", "order" or "place".
        groups: Names of the groups, for a plan with strata "group".
        exclusions: Slugs of why a row is not in the pool; they become its reason.
        weights: Weight of each group or bin, float64 (strata,), for a plan with quota "given".
        placed: The batches bring places, at which the density of a plan's `beta` is taken.
        memory_bytes: Bounds the rows held while sorting; the process needs about four times as much, whatever the
            number of rows, and one batch.

    Raises:
        SelectionError: Scores, codes or row ids cannot be used (names the row), groups or weights are missing, or an
            exclusion is named like a reason.
        BudgetError: The budget asks for more rows than there are, or than trimming leaves; says how many there are.
        OutputError: Scratch files cannot be written.
    """
    _check_names(plan, groups, exclusions, weights)
    needs = Needs(
        groups=len(groups) if plan.strata == "group" else None,
        exclusions=len(exclusions),
        tokens=budget.tokens is not None,
        weights=plan.order == "weighted" and (plan.beta is None or placed),
        places=placed and plan.beta is not None,
    )
    with ExitStack() as stack:
        place = stack.enter_context(ExternalSorter(scratch / "place", memory_bytes=memory_bytes // 2))
        with Pool(scratch / "pool", needs) as pool:
            pool.fill(batches(), seed=seed)
            run = _Run(plan, budget, pool, place, groups, placed=needs.places)
            run.put_nothing()
            with ExternalSorter(scratch / "order", memory_bytes=memory_bytes // 2) as order:
                supply = run.sort_into(order)
                ranking = run.decide(order, supply, given=weights)
        return Selection(
            rows=pool.ends[-1] if pool.ends else 0,
            pool=pool.size,
            kept=int(ranking.kept_rows.sum()),
            kept_tokens=int(ranking.kept_weights.sum()) if needs.tokens else None,
            reasons=run.reasons(supply, ranking, exclusions),
            strata=run.counts(supply, ranking),
            _tables=_tables(batches, place, pool.ends, run.strata.names, [*REASONS, *exclusions]),
            _close=stack.pop_all().close,
        )


def _check_names(plan: Plan, groups: Sequence[str], exclusions: Sequence[str], weights: Float64 | None) -> None:
    if plan.strata == "group" and not groups:
        raise SelectionError("The plan's strata are groups, but no group is named.")
    for kind, names in (("groups", groups), ("exclusions", exclusions)):
        if len(set(names)) < len(names):
            raise SelectionError(f"Two {kind} have the same name: {next(n for n in names if names.count(n) > 1)!r}.")
    for slug in exclusions:
        if slug in REASONS:
            raise SelectionError(f"{slug!r} is a reason of the selection itself and cannot name an exclusion.")
    if (plan.quota == "given") != (weights is not None):
        raise SelectionError("Weights of strata come with quota 'given', and only with it.")
    strata = len(groups) if plan.strata == "group" else plan.bins
    if weights is not None and len(weights) != strata:
        raise SelectionError(f"There are {len(weights)} weights for {strata} strata.")


class _Run:
    """One selection from its pool to its ranks."""

    def __init__(
        self, plan: Plan, budget: Budget, pool: Pool, place: ExternalSorter, groups: Sequence[str], *, placed: bool
    ) -> None:
        self._plan, self._pool, self._place = plan, pool, place
        self._tokens = budget.tokens is not None
        size = pool.size
        hard, easy = int(plan.trim_hard * size), int(plan.trim_easy * size)
        self.left = size - hard - easy
        self._limit = budget.tokens if budget.tokens is not None else budget.rows_of(size)
        if not self._tokens and self._limit > self.left:
            raise BudgetError(
                f"The budget keeps {self._limit} of {size} rows, but trimming {hard} at the hard end and {easy} at the "
                f"easy end leaves only {self.left}."
            )
        self._cut(hard, groups)
        self._race = Race(plan, pool, placed=placed) if plan.order == "weighted" else None
        self._mixed_below = self._find_mixed()
        self._mixed_rows, self._trimmed = 0, np.zeros(2, np.int64)

    def _cut(self, hard: int, groups: Sequence[str]) -> None:
        """Find the first rows left, the first ones trimmed at the easy end, and the bounds of score strata."""
        plan, left, size = self._plan, self.left, self._pool.size
        bounds = (
            [hard + part * left // plan.bins for part in range(1, plan.bins)] if plan.strata == "score_count" else []
        )
        edges = [hard, hard + left - 1] if plan.strata.startswith("score") and left else []
        ends = [at for at in (hard, hard + left) if 0 < at < size]
        wanted = sorted({*edges, *ends, *(at for at in bounds if left)})
        found = dict(zip(wanted, cuts_at(self._keys_and_hashes, wanted), strict=True))
        self._first_left = found[hard] if 0 < hard < size else None
        self._first_easy = found[hard + left] if hard + left < size else None
        inner = [found[at] for at in bounds] if left else [Cut(0, 0)] * len(bounds)
        self.strata = Strata(plan, groups=groups, edges=[found[at] for at in edges], cuts=inner)

    def _keys_and_hashes(self) -> Iterator[tuple[UInt32, UInt64]]:
        return ((chunk.keys, chunk.hashes) for chunk in self._pool.chunks())

    def _find_mixed(self) -> int:
        """The hash below which rows are kept whatever their score."""
        if not self._plan.mix_random:
            return 0

        def rows() -> Iterator[tuple[UInt64, Float64]]:
            for chunk in self._pool.chunks():
                hard, easy = self._trims(chunk)
                left = ~(hard | easy)
                yield chunk.hashes[left], chunk.weights[left].astype(np.float64)

        return hash_cut(rows, int(self._plan.mix_random * self._limit))

    def _trims(self, chunk: Chunk) -> tuple[Bool, Bool]:
        none = np.zeros(len(chunk.rows), np.bool_)
        hard = none if self._first_left is None else ~self._first_left.reached_by(chunk.keys, chunk.hashes)
        easy = none if self._first_easy is None else self._first_easy.reached_by(chunk.keys, chunk.hashes)
        return hard, easy

    def sort_into(self, order: ExternalSorter) -> Supply:
        """Hand the rows left to `order` under their keep order, the trimmed ones to their place; count what is left."""
        count = len(self.strata.names)
        rows, weights, mixed_weights = (np.zeros(count, np.int64) for _ in range(3))
        for whole in self._pool.chunks():
            hard, easy = self._trims(whole)
            left = ~(hard | easy)
            strata = self.strata.place(whole)
            if not left.all():
                self._put_trimmed(whole.where(~left), strata[~left], hard[~left])
            chunk, strata = whole.where(left), strata[left]
            mixed = self._is_mixed(chunk)
            self._mixed_rows += int(mixed.sum())
            np.add.at(rows, strata, 1)
            np.add.at(weights, strata, chunk.weights)
            np.add.at(mixed_weights, strata[mixed], chunk.weights[mixed])
            columns = {"row": chunk.rows, "stratum": strata.astype(np.int32), "key": chunk.keys}
            if self._tokens:
                columns["weight"] = chunk.weights.astype(np.int32)
            order.add(self._words(chunk, mixed), chunk.hashes, pa.table(columns))
        return Supply(rows=rows, weights=weights, mixed=mixed_weights)

    def _put_trimmed(self, chunk: Chunk, strata: Int64, hard: Bool) -> None:
        self._trimmed += [int(hard.sum()), int((~hard).sum())]
        named = strata if self._plan.strata in {"group", "none"} else np.full(len(strata), -1)
        self._put(chunk.rows, named, np.full(len(strata), -1), np.where(hard, _HARD, _EASY))

    def _is_mixed(self, chunk: Chunk) -> Bool:
        if self._mixed_below > _GREATEST:
            return np.ones(len(chunk.rows), np.bool_)
        below: Bool = chunk.hashes < np.uint64(self._mixed_below)
        return below

    def _words(self, chunk: Chunk, mixed: Bool) -> UInt64:
        """The first word of the keep order: the plan's key, then half of the hash; the random part stands first."""
        if self._plan.order == "random":
            return chunk.hashes
        if self._race is not None:
            keys = self._race.keys(chunk)
        else:
            keys = chunk.keys if self._plan.order == "hard" else ~chunk.keys
        # No finite score has the key 0, so the random part stands first.
        first = np.where(mixed, np.uint32(0), keys).astype(np.uint64)
        return first << np.uint64(32) | chunk.hashes >> np.uint64(32)

    def decide(self, order: ExternalSorter, supply: Supply, *, given: Float64 | None) -> Ranking:
        """Walk the rows in keep order; each goes to its place with rank and reason."""
        quotas, spare = share_out(self._plan, supply, limit=self._limit, given=given)
        ranking = Ranking(quotas, spare=spare, mixed_rows=self._mixed_rows)
        for table in order.sorted_tables(rows_hint=_TABLE_ROWS):
            strata = table["stratum"].to_numpy().astype(np.int64)
            weights = table["weight"].to_numpy().astype(np.int64) if self._tokens else np.ones(len(strata), np.int64)
            ranks, kept = ranking.decide(strata, weights, table["key"].to_numpy())
            self._put(table["row"].to_numpy(), strata, ranks, np.where(kept, _KEPT, _OVER))
        return ranking

    def put_nothing(self) -> None:
        """Tell the sorter of places its columns, which it would not know where the pool is empty."""
        nothing = np.zeros(0, np.int64)
        self._put(nothing, nothing, nothing, nothing)

    def _put(self, rows: Int64, strata: Int64, ranks: Int64, reasons: Int64) -> None:
        columns = {"stratum": strata.astype(np.int32), "rank": ranks, "reason": reasons.astype(np.int32)}
        self._place.add(rows.astype(np.uint64), np.zeros(len(rows), np.uint64), pa.table(columns))

    def counts(self, supply: Supply, ranking: Ranking) -> tuple[StratumCount, ...]:
        """Sum up by stratum."""
        by_score = self._plan.order in {"hard", "easy"}
        cuts = scores_of_keys(ranking.last_keys).tolist()
        return tuple(
            StratumCount(
                name=name,
                rows=int(supply.rows[at]),
                kept=int(ranking.kept_rows[at]),
                tokens=int(supply.weights[at]) if self._tokens else None,
                kept_tokens=int(ranking.kept_weights[at]) if self._tokens else None,
                cut=cuts[at] if by_score and ranking.has_cut[at] else None,
            )
            for at, name in enumerate(self.strata.names)
        )

    def reasons(self, supply: Supply, ranking: Ranking, exclusions: Sequence[str]) -> dict[str, int]:
        """Sum up by reason, without zeros."""
        kept = int(ranking.kept_rows.sum())
        counts = [kept, int(supply.rows.sum()) - kept, *self._trimmed.tolist(), *self._pool.excluded.tolist()]
        return {reason: count for reason, count in zip([*REASONS, *exclusions], counts, strict=True) if count}


def _tables(
    batches: Callable[[], Iterator[ScoreBatch]],
    place: ExternalSorter,
    ends: list[int],
    strata: list[str],
    reasons: list[str],
) -> Iterator[pa.Table]:
    """Join ranks and reasons to the row ids, batch by batch."""
    stratum_names, reason_names = pa.array([*strata, ""], pa.string()), pa.array(reasons, pa.string())
    start = 0
    for batch, end in zip_longest(batches(), ends):
        if batch is None or end is None or len(batch.ids) != end - start:
            raise SelectionError("The second pass over the batches yielded other rows than the first.")
        keys, placed = place.read_range(start, end)
        at = keys[:, 0].astype(np.int64) - start
        stratum = np.full(end - start, len(strata))
        ranks = np.full(end - start, -1)
        reason = np.zeros(end - start, np.int64) if batch.excluded is None else batch.excluded + len(REASONS)
        found = placed["stratum"].to_numpy()
        stratum[at] = np.where(found < 0, len(strata), found)
        ranks[at] = placed["rank"].to_numpy()
        reason[at] = placed["reason"].to_numpy()
        columns = {
            "row_id": ids_to_arrow(batch.ids),
            "kept": pa.array(reason == _KEPT),
            "reason": reason_names.take(pa.array(reason)),
            "stratum": stratum_names.take(pa.array(stratum)),
            "rank": pa.array(ranks),
        }
        yield pa.table(columns)
        start = end
