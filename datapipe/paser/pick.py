"""From damage to the rows that heal: which of a pool are kept, in which order, and why the others are not.

    CDS of each cluster -> share of the budget      \
    rule -> order inside each cluster                > quotas -> rows that fit -> what is left -> kept, reason, rank
    conflicts -> rows that may not be taken         /

`ours` gives out the whole budget: what a cluster cannot use goes to the others. `paper` is the published rule to the
letter (PASER, arXiv 2502.12594; see `datapipe.paser.pick_paper`). The baselines order the whole pool. No result depends
on the order of the rows. Pure functions of arrays; raises `BudgetError` and `ConfigError`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import BudgetError, ConfigError
from datapipe.paser import ies
from datapipe.paser.allocate import WINSOR, Degradation, degradation, fitting
from datapipe.paser.conflicts import Verdict, acceptance, asked_keys, by_concepts, by_contradiction
from datapipe.paser.pick_config import METHODS, Choice, Method, PickConfig, PickRows, undamaged
from datapipe.paser.pick_paper import picks_of_paper
from datapipe.paser.pick_shares import quotas_of, weights_of

if TYPE_CHECKING:
    from datapipe.storage.arrays import Bool, Float64, Int64, UInt8

__all__ = ["METHODS", "REASONS", "ClusterPicks", "Method", "PickConfig", "PickRows", "Picks", "pick"]

REASONS = ("kept", "over_budget", "contradicts", "conflicting_concepts")
_KEPT, _OVER, _CONTRADICTS, _CONCEPTS = range(4)
_BY_FILTER = {"contradiction": _CONTRADICTS, "paper": _CONCEPTS}


@dataclass(frozen=True, eq=False)
class ClusterPicks:
    """What became of each cluster; arrays (clusters,).

    Attributes:
        damage: Its CDS, interval, mean, and rows measured.
        share: Of the budget, summing to 1; NaN where the method knows no clusters.
        budget: Rows or tokens it was given; NaN likewise.
        taken: Rows kept.
        tokens_taken: Tokens of these.
        acceptance: Part of its rows that no conflict refused, 0 ... 1; of those that were asked, for `paper`.
    """

    damage: Degradation
    share: Float64
    budget: Float64
    taken: Int64
    tokens_taken: Int64
    acceptance: Float64


@dataclass(frozen=True, eq=False)
class Picks:
    """The choice; arrays (rows,).

    Attributes:
        kept: Rows to train on.
        reason: Place in `REASONS`.
        rank: Place in the order of preference, from 0: in the row's cluster for `ours` and `paper`, else in the pool.
        ies: The paper's efficiency score, NaN where damage was not measured.
        against: The row that a refused one conflicts with; -1 where there is none.
        clusters: What became of each.
        budget: Rows or tokens asked for.
        unit: `rows` or `tokens`.
        warnings: What the user should know.
    """

    kept: Bool
    reason: UInt8
    rank: Int64
    ies: Float64
    against: Int64
    clusters: ClusterPicks
    budget: int
    unit: str
    warnings: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Rows by reason."""
        numbers = np.bincount(self.reason, minlength=len(REASONS)).tolist()
        return {name: count for name, count in zip(REASONS, numbers, strict=True) if count or name == REASONS[_KEPT]}


def pick(rows: PickRows, config: PickConfig) -> Picks:
    """Choose rows for a budget.

    A budget of rows is met exactly, one of tokens is not exceeded, as long as there are rows that no conflict refuses.
    `paper` keeps fewer.

    Args:
        rows: The pool.
        config: How.

    Raises:
        BudgetError: There are no rows, no damage was measured and the method needs it, or the budget keeps no row.
        ConfigError: The method needs what is not known of the rows, or a prior names a cluster or source there is not.
    """
    _check(rows, config)
    told: list[str] = []
    unit = "tokens" if config.budget.tokens is not None else "rows"
    costs = rows.length if unit == "tokens" else np.ones(len(rows.labels), np.int64)
    asked = config.budget.tokens or config.budget.rows or config.budget.rows_of(len(rows.labels))
    if asked > costs.sum():
        told.append(f"the budget is {asked:,} {unit}, but the pool holds {costs.sum():,}: it leaves nothing out")
    budget = min(asked, int(costs.sum()))
    damage = _degradation(rows, config)
    if config.method == "paper":
        choice = picks_of_paper(rows, damage, config, costs=costs, budget=budget)
    else:
        choice = _picks(rows, damage, config, costs=costs, budget=budget)
    if not len(choice.chosen):
        why = "each share rounds down to nothing" if config.method == "paper" else "the rows are longer, or refused"
        raise BudgetError(f"a budget of {budget:,} {unit} keeps none of {len(costs):,} rows: {why}; raise it")
    found = _finished(rows, config, choice, damage, budget=asked, unit=unit)
    return replace(found, warnings=(*told, *_warnings(config, found, budget, int(costs[found.kept].sum()))))


def _check(rows: PickRows, config: PickConfig) -> None:
    count = len(rows.labels)
    if not count:
        raise BudgetError("the pool has no rows to choose from")
    if rows.labels.min() < 0 or rows.labels.max() >= rows.clusters:
        raise ConfigError(f"labels run from {rows.labels.min()} to {rows.labels.max()}; clusters are {rows.clusters}")
    if len(np.unique(rows.order)) != count:
        raise ConfigError("order must give every row a place of its own")
    needs = {"ifd": ("nll", "alone"), "ours": ("jsd",), "paper": ("jsd",), "top_jsd": ("jsd",)}
    asked_by = ("texts",) if rows.asked is None else ()
    filters = {"contradiction": ("answers", *asked_by), "paper": ("texts",)}
    asked = needs.get(config.method, ()) + filters.get(config.filter, ()) + ("sources",) * bool(config.source_prior)
    for name in ("order", "tokens", "prompt_tokens", "jsd", "nll", "alone", "answers", "asked", "texts", "sources"):
        values = getattr(rows, name)
        if values is None and name in asked:
            raise ConfigError(f"{config.method} with conflicts {config.filter} needs {name} of the rows")
        if values is not None and len(values) != count:
            raise ConfigError(f"there are {count} labels, but {len(values)} {name}")


def _degradation(rows: PickRows, config: PickConfig) -> Degradation:
    """CDS of each cluster; zero where nothing was measured and no method needs it."""
    size = np.bincount(rows.labels, minlength=rows.clusters).astype(np.int64)
    if rows.jsd is None or (np.isnan(rows.jsd).all() and config.method not in {"ours", "paper", "top_jsd"}):
        nothing, none = np.full(rows.clusters, np.nan), np.zeros(rows.clusters, np.int64)
        return Degradation(nothing, nothing, nothing, nothing, none, size)
    # In the random order, so that neither the rounding of a sum nor a resample hangs on the order of the rows.
    turned = np.argsort(rows.order)
    paper = config.method == "paper"
    found = degradation(
        rows.jsd[turned].astype(np.float64),
        rows.labels[turned],
        clusters=rows.clusters,
        floor=0.0 if paper else config.noise,
        prior_rows=0.0 if paper else config.prior_rows,
        winsor=1.0 if paper else WINSOR,
        seed=config.seed,
    )
    return replace(found, score=np.nan_to_num(found.mean)) if paper else found


def _picks(rows: PickRows, damage: Degradation, config: PickConfig, *, costs: Int64, budget: int) -> Choice:
    """Ours and the baselines: an order of the pool, what conflicts refuse, and what the budget takes of the rest."""
    preferred = _preferred(rows, damage, config)
    rank = np.empty(len(preferred), np.int64)
    rank[preferred] = np.arange(len(preferred))
    verdict = _verdict(rows, config, preferred, rank)
    everything = np.ones(len(preferred), np.bool_)
    unknown = np.full(rows.clusters, np.nan)
    if config.method != "ours":
        chosen = fitting(preferred[verdict.kept[preferred]], costs, budget)
        share = damage.rows / damage.rows.sum() if config.method == "stratified" else unknown
        return Choice(chosen, rank, verdict, share, share * budget, everything)
    left = preferred[verdict.kept[preferred]]
    own = rows.labels[left]
    weights = weights_of(rows, damage, config, costs)
    available = np.bincount(own, costs[left], rows.clusters).astype(np.int64)
    quotas = quotas_of(weights, available, config, budget)
    taken = [fitting(left[own == each], costs, int(quotas[each])) for each in range(rows.clusters)]
    places = ies.places_within(preferred, rows.labels, clusters=rows.clusters)
    chosen = _with_leftover(np.concatenate(taken), left, places, rows, weights, costs=costs, budget=budget)
    return Choice(chosen, places, verdict, weights, quotas.astype(np.float64), everything)


def _preferred(rows: PickRows, damage: Degradation, config: PickConfig) -> Int64:
    """All rows, the one to take first in front."""
    known = rows.jsd if rows.jsd is not None else np.full(len(rows.labels), np.nan)
    order, method = rows.order, config.method
    if method == "stratified" or (method == "ours" and undamaged(damage)):
        places = ies.places_within(np.argsort(order), rows.labels, clusters=rows.clusters)
        return ies.interleaved(places, rows.labels, damage.rows.astype(np.float64), order)
    if method == "ifd" and rows.nll is not None and rows.alone is not None:
        return ies.ranked(ies.following_difficulty(rows.nll, rows.alone), order)
    rule = {"random": "random", "longest": "length", "top_jsd": "jsd"}.get(method, config.rule)
    scores = ies.rule_scores(rule, jsd=known, tokens=rows.tokens, prompt_tokens=rows.prompt_tokens)
    if method == "ours":
        scores = ies.with_unmeasured(scores, rows.labels, order, clusters=rows.clusters)
        scores = np.where(rows.tokens > 0, scores, np.nan)
    return ies.ranked(scores, order)


def _verdict(rows: PickRows, config: PickConfig, preferred: Int64, rank: Int64) -> Verdict:
    if config.filter == "contradiction" and rows.answers is not None:
        keys = rows.asked if rows.asked is not None else asked_keys(each[:2] for each in rows.texts or ())
        return by_contradiction(keys, rows.answers, rank, other=config.other)
    verdict = Verdict(np.ones(len(rank), np.bool_), np.full(len(rank), -1, np.int64))
    if config.filter == "paper" and rows.texts is not None:
        asked = preferred[np.argsort(rows.labels[preferred], kind="stable")]
        found = by_concepts(rows.texts[row] for row in asked.tolist())
        verdict.kept[asked] = found.kept
        verdict.against[asked] = np.where(found.kept, -1, asked[found.against])
    return verdict


def _with_leftover(
    taken: Int64, left: Int64, places: Int64, rows: PickRows, weights: Float64, *, costs: Int64, budget: int
) -> Int64:
    """Spend what the clusters' last rows did not fit into, on the next rows of all clusters in proportion."""
    spare = budget - int(costs[taken].sum())
    free = np.zeros(len(places), np.bool_)
    free[left] = True
    free[taken] = False
    if not spare or not free.any():
        return taken
    order = ies.interleaved(places, rows.labels, weights, rows.order)
    return np.concatenate([taken, fitting(order[free[order]], costs, spare)])


def _finished(
    rows: PickRows, config: PickConfig, choice: Choice, damage: Degradation, *, budget: int, unit: str
) -> Picks:
    kept = np.zeros(len(rows.labels), np.bool_)
    kept[choice.chosen] = True
    reason = np.full(len(kept), _OVER, np.uint8)
    reason[~choice.verdict.kept] = _BY_FILTER.get(config.filter, _OVER)
    reason[kept] = _KEPT
    jsd = rows.jsd if rows.jsd is not None else np.full(len(kept), np.nan)
    own = rows.labels[kept]
    clusters = ClusterPicks(
        damage=damage,
        share=choice.share,
        budget=choice.budget,
        taken=np.bincount(own, minlength=rows.clusters).astype(np.int64),
        tokens_taken=np.bincount(own, rows.length[kept], rows.clusters).astype(np.int64),
        acceptance=np.array(
            acceptance(choice.verdict.kept[choice.asked], rows.labels[choice.asked], clusters=rows.clusters)
        ),
    )
    efficiency = ies.efficiency(jsd, rows.length)
    return Picks(kept, reason, choice.rank, efficiency, choice.verdict.against, clusters, budget, unit, ())


def _warnings(config: PickConfig, picks: Picks, budget: int, spent: int) -> list[str]:
    told = []
    if config.method in {"ours", "paper"} and undamaged(picks.clusters.damage):
        told.append("the models do not differ on any cluster: the budget follows the clusters' sizes")
    elif config.method == "top_jsd" or (config.method == "ours" and config.rule not in {"length", "random"}):
        unknown = int(np.isnan(picks.ies).sum())
        if unknown:
            place = "come last" if config.method == "top_jsd" else "count as the mean of their cluster"
            told.append(f"the damage of {unknown:,} of {len(picks.ies):,} rows is not known: they {place}, at random")
    if picks.unit == "rows" and spent < budget:
        refused = int((picks.reason > _OVER).sum())
        why = "the published rule rounds shares down and replaces no row; " if config.method == "paper" else ""
        told.append(f"{spent:,} rows are kept of the {budget:,} asked for: {why}conflicts refuse {refused:,}")
    return told
