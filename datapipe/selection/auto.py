"""From what is known of a data set to a plan, with the evidence for it.

`choose` turns a strategy into a `Plan`: "auto" by the rules below, "hard", "easy", "random" and "strata" as asked, with
a warning where the evidence is against it. Raises `SelectionError` for an unknown strategy.

Rules of "auto", first match: everything is kept -> no choice; a teacher -> random; at most 30 % kept -> random; a
metric that does not measure difficulty -> random; rows of the evidence on that metric's hardest rows lose to random
here, or none speaks for them -> random; fewer than 500 rows a group -> random; else keep-hard with the 50 % floor. What
is known of one metric says nothing of another. Random is stratified: in proportion over the classes, without labels
over the clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from datapipe.errors import SelectionError
from datapipe.selection.evidence import around, cut_of, losses, published, safe_from
from datapipe.selection.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.metrics.base import Metric
    from datapipe.selection.evidence import Evidence
    from datapipe.selection.presets import Preset

Strategy: TypeAlias = Literal["auto", "hard", "easy", "random", "strata"]
Grouping: TypeAlias = Literal["label", "cluster"]

STRATEGIES: tuple[Strategy, ...] = ("auto", "hard", "easy", "random", "strata")
HEAVY_PRUNING = 0.3
"""Fraction kept up to which a pure score cut fails provably (arXiv 2302.06960)."""
PLENTY_ROWS = 500
"""Rows a class of CIFAR-100, where keep-hard ties with random at 70 % kept: nothing is measured on fewer."""

_FAILS = "At 30 % kept or less pruning by score alone provably fails and random rows repair it (arXiv 2302.06960)."
_SCARCE = "Where data are scarce the easiest rows are the better ones to keep (Sorscher et al., arXiv 2206.14486)"
_TEACHER = (
    "With a teacher, random pruning and distillation are comparable or superior to every score at every fraction "
    "(Ben-Baruch et al., arXiv 2403.07854)."
)
_BALANCE = "Pruning by score makes imbalance worse; quotas and random choice within them do not (DRoP, ICLR 2025)."


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A plan and why.

    Attributes:
        plan: The settings.
        group_by: What the plan's groups are; None for a plan without.
        reasons: Sentences that cite the evidence for it, at least one.
        warnings: Sentences that cite the evidence against it.
    """

    plan: Plan
    group_by: Grouping | None
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def choose(
    strategy: Strategy,
    *,
    fraction: float,
    rows: int,
    classes: int | None,
    k: int | None,
    metric: Metric,
    has_teacher: bool = False,
    table: Sequence[Evidence] | None = None,
) -> Choice:
    """Return the plan for a strategy on this data set.

    Args:
        strategy: One of `STRATEGIES`.
        fraction: Part of the rows (or tokens) that the budget keeps, 0 <= fraction <= 1.
        rows: Rows of the pool.
        classes: Number of labels; None without labels. One label is as good as none.
        k: Number of clusters of the rows; None where the metric finds none.
        metric: What the scores are.
        has_teacher: Soft labels of a teacher will go with the rows kept.
        table: The evidence; None takes that of the package.

    Raises:
        SelectionError: There is no such strategy; lists those there are.
    """
    groups = _Groups.of(rows, classes=classes, k=k)
    known = published() if table is None else table
    if strategy == "auto":
        return _auto(fraction, groups, _Cut.of(metric, "hard", known), has_teacher=has_teacher)
    if strategy == "random":
        reason = (
            "Random was asked for: the seeded hash of the row id decides, so smaller budgets lie inside larger ones."
        )
        return _random(_Groups(None, rows), reason)
    if strategy == "strata":
        return _coverage(fraction, metric)
    if strategy in {"hard", "easy"}:
        return _by_score(fraction, groups, _Cut.of(metric, strategy, known), has_teacher=has_teacher)
    raise SelectionError(f"There is no strategy {strategy!r}; the strategies are: {', '.join(STRATEGIES)}.")


def by_preset(
    preset: Preset, *, fraction: float, classes: int | None, k: int | None, window_start: float | None = None
) -> Choice:
    """Return the plan of a preset, with a warning where the evidence says that it loses to random.

    Args:
        preset: The method.
        fraction: Part of the rows (or tokens) that the budget keeps, 0 <= fraction <= 1.
        classes: Number of labels; None without labels. One label is as good as none.
        k: Number of clusters of the rows; None where the metric finds none.
        window_start: Where the window of `bws` begins, as a part of the rows; None for the middle.

    Raises:
        SelectionError: The preset needs groups that are not there, or the window does not fit.
    """
    there: list[Grouping] = []
    if classes is not None and classes > 1:
        there.append("label")
    if k is not None and k > 1:
        there.append("cluster")
    plan, group = preset.settings(fraction, groups=there, window_start=window_start)
    reasons = [f"The preset {preset.name} was asked for. {preset.told} Source: {preset.source}."]
    if preset.ours:
        reasons.append(f"Ours: {preset.ours}")
    near = around(fraction, method=preset.name) if plan != Plan(order="random") else ()
    told = "; ".join(row.told() for row in near if row.loses)
    warnings = (f"At fractions near to this one {preset.name} loses to random: {told}.",) if told else ()
    return Choice(plan=plan, group_by=group, reasons=tuple(reasons), warnings=warnings if fraction < 1 else ())


def balance(choice: Choice) -> Choice:
    """Return the choice with a floor for every group: half of an equal share each, the rest by keep order.

    Raises:
        SelectionError: The plan has strata of scores already, which a balance would undo.
    """
    if choice.plan.strata.startswith("score"):
        raise SelectionError(
            "A balance column and the strategy strata exclude each other: one balances groups, one scores."
        )
    floor = "Each value of the balance column keeps half of an equal share first (class balance of 50 %)."
    plan = replace(choice.plan, strata="group", quota="fill")
    return replace(choice, plan=plan, reasons=(*choice.reasons, floor))


@dataclass(frozen=True)
class _Groups:
    """What rows can be balanced over, and how many rows a group has on average."""

    by: Grouping | None
    rows_each: float

    @classmethod
    def of(cls, rows: int, *, classes: int | None, k: int | None) -> _Groups:
        if classes is not None and classes > 1:
            return cls("label", rows / classes)
        if k is not None and k > 1:
            return cls("cluster", rows / k)
        return cls(None, float(rows))


@dataclass(frozen=True)
class _Cut:
    """What is known of keeping the rows at one end of a metric.

    Attributes:
        metric: The metric.
        order: Which end.
        rows: The rows of the evidence on that very cut; those of other metrics are none.
    """

    metric: Metric
    order: Literal["hard", "easy"]
    rows: tuple[Evidence, ...]

    @classmethod
    def of(cls, metric: Metric, order: Literal["hard", "easy"], table: Sequence[Evidence]) -> _Cut:
        method = cut_of(metric.name, order)
        return cls(metric, order, tuple(row for row in table if row.method == method))

    @property
    def told(self) -> str:
        return f"the rows that {self.metric.name} scores {_END[self.order]}"

    @property
    def unknown(self) -> str:
        return (
            f"No row of the evidence compares {self.told} with random rows of the same number, and what is known of "
            "other metrics says nothing of this one."
        )

    def against(self, fraction: float) -> tuple[str, ...]:
        """Where this cut loses to random near to a fraction, or else where more is kept; empty where it does not."""
        worst = max((row.fraction for row in self.rows if row.loses), default=0.0)
        safe = any(row.fraction > worst for row in self.rows)
        if fraction >= safe_from(rows=self.rows) or (not safe and fraction > worst):
            return ()
        near = [row for row in around(fraction, rows=self.rows) if row.loses]
        lost = "; ".join(row.told() for row in near or losses(rows=self.rows, least=fraction))
        return (f"Random rows of the same number are better than {self.told}: {lost}.",) if lost else ()

    def speaking(self, fraction: float) -> tuple[Evidence, ...]:
        """The rows that speak for this cut: wins and statements from where no row says that it loses, up to here."""
        least = safe_from(rows=self.rows)
        return tuple(row for row in self.rows if least <= row.fraction <= fraction and (row.wins or row.gain is None))


def _auto(fraction: float, groups: _Groups, cut: _Cut, *, has_teacher: bool) -> Choice:
    if fraction >= 1:
        return Choice(plan=Plan(order="random"), group_by=None, reasons=("Everything is kept, so nothing is chosen.",))
    if has_teacher:
        return _random(groups, _TEACHER)
    against = cut.against(fraction)
    if fraction <= HEAVY_PRUNING:
        return _random(groups, _FAILS, *against)
    if cut.metric.higher != "harder":
        name = cut.metric.name
        return _random(
            groups, f"The metric {name} does not measure difficulty, and no evidence speaks for a cut by it."
        )
    speaking = cut.speaking(fraction)
    if not speaking:
        known = any(row.gain is not None for row in cut.rows)
        silent = f"No row of the evidence has {cut.told} above random rows at {fraction:.0%} kept or less."
        return _random(groups, *(against or ((silent,) if known else (cut.unknown,))))
    if groups.rows_each < PLENTY_ROWS:
        return _random(groups, f"There are {groups.rows_each:.0f} rows a group, fewer than {PLENTY_ROWS}. {_SCARCE}.")
    told = "; ".join(row.told() for row in speaking)
    return Choice(
        plan=_cut("hard", groups),
        group_by=groups.by,
        reasons=(
            f"The evidence speaks for {cut.told}: {told}.",
            f"Here {fraction:.0%} are kept and a group has {groups.rows_each:.0f} rows, at least {PLENTY_ROWS}.",
        ),
    )


def _random(groups: _Groups, *reasons: str) -> Choice:
    if groups.by is None:
        return Choice(plan=Plan(order="random"), group_by=None, reasons=reasons)
    each = f"So rows are chosen at random within each {groups.by}, in proportion. {_BALANCE}"
    return Choice(plan=Plan(order="random", strata="group"), group_by=groups.by, reasons=(*reasons, each))


def _cut(order: Literal["hard", "easy"], groups: _Groups) -> Plan:
    return Plan(order=order) if groups.by is None else Plan(order=order, strata="group", quota="fill")


def _by_score(fraction: float, groups: _Groups, cut: _Cut, *, has_teacher: bool) -> Choice:
    order, metric = cut.order, cut.metric
    against = []
    plenty = groups.rows_each >= PLENTY_ROWS
    if fraction <= HEAVY_PRUNING:
        against.append(_FAILS)
    against += cut.against(fraction)
    if order == "hard" and not plenty:
        against.append(f"There are {groups.rows_each:.0f} rows a group. {_SCARCE}.")
    if order == "easy" and plenty:
        against.append(f"{_SCARCE}; with {groups.rows_each:.0f} rows a group they are not scarce.")
    if has_teacher:
        against.append(_TEACHER)
    if metric.higher != "harder":
        against.append(f"The metric {metric.name} does not measure difficulty; {order} means its {_END[order]} scores.")
    elif not cut.rows:
        against.append(cut.unknown)
    balanced = _Groups(groups.by if groups.by == "label" else None, groups.rows_each)
    reasons = [f"The rows with the {_END[order]} scores are kept, as asked."]
    if balanced.by:
        reasons.append(f"Each label keeps half of an equal share first (class balance of 50 %). {_BALANCE}")
    return Choice(
        plan=_cut(order, balanced),
        group_by=balanced.by,
        reasons=tuple(reasons),
        warnings=tuple(against) if fraction < 1 else (),
    )


_END = {"hard": "highest", "easy": "lowest"}


def _coverage(fraction: float, metric: Metric) -> Choice:
    """Return CCS; the trims at 10 % and 20 % kept are theirs for ImageNet, 0.1 at 30 % is interpolated."""
    trim = next((trim for most, trim in ((0.1, 0.3), (0.2, 0.2), (0.3, 0.1)) if fraction <= most), 0.0)
    reason = (
        f"Strata were asked for: the hardest {trim:.0%} are left out, then 50 intervals of the score share the budget "
        "equally and small ones are kept whole, at random within each (CCS, ICLR 2023, arXiv 2210.15809)."
    )
    against = f"The metric {metric.name} does not measure difficulty, which CCS spreads over."
    return Choice(
        plan=Plan(order="random", trim_hard=trim, strata="score_width", quota="equal"),
        group_by=None,
        reasons=(reason,),
        warnings=(against,) if metric.higher != "harder" else (),
    )
