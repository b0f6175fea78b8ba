"""From facts and evidence to advice: pure rules, no file and no model.

    Facts, budget, teacher -> nearest evidence -> method -> Advice(preset, keep, why, evidence, warnings, command)

A method is advised only where the nearest rows of the evidence have it above random by more than their interval on
every data set and below on none; otherwise it is random, stratified where there are labels. Where we measured a method
on a data set, published rows of it there do not count: ours is what would run. Raises `BudgetError` for a fraction that
is none.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from datapipe.errors import BudgetError
from datapipe.metrics.base import get_metric
from datapipe.selection.evidence import best_of, closest, nearest, published
from datapipe.selection.presets import PRESETS, get_preset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.advisor.look import Facts
    from datapipe.advisor.pilot import Pilot
    from datapipe.selection.evidence import Evidence

TOLERANCE = 1.0
"""Points of accuracy below the full set up to which the advisor prunes where no budget is asked for."""
CAUTIOUS_KEEP = 0.7
"""Kept where no row of the evidence is that near to its full set; the most that the published figures keep."""
TEACHER_KEEP = 0.5
"""Kept with a teacher: half of ImageNet at random with distillation is above the full set without (2403.07854)."""
FEW_ROWS = 10
FEW_DIMENSIONS = 4.0
LARGE_MODEL = 10**9

_TEACHER = (
    "With a teacher, random pruning and distillation are comparable or superior to every score at every fraction; "
    "raise the weight of the teacher the less is kept (Ben-Baruch et al., arXiv 2403.07854)."
)
_BALANCE = "Within each class in proportion, for pruning must not make imbalance worse (DRoP, ICLR 2025)."

_REPEATS = "Take them out first, for repeats draw prototypes and budgets to themselves (D4, NeurIPS 2023)."


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to do and why.

    Attributes:
        preset: The method, a name of `datapipe.selection.presets.PRESETS`.
        keep: Fraction to keep, 0 < keep <= 1.
        why: Sentences, at least one.
        evidence: The rows that speak for it; none for random.
        warnings: Sentences about what the advice does not know or cannot promise.
        command: The command line that does it.
        facts: What the advice rests on.
        pilot: What a pilot on this data found; None without one.
    """

    preset: str
    keep: float
    why: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    warnings: tuple[str, ...]
    command: str
    facts: Facts
    pilot: Pilot | None = None

    @property
    def method(self) -> str:
        """The method's name; the same as `preset`."""
        return self.preset

    def as_dict(self) -> dict[str, Any]:
        """The advice as plain values, for JSON."""
        return asdict(self)


def decide(
    facts: Facts,
    *,
    keep: float | None,
    has_teacher: bool = False,
    parameters: int | None = None,
    table: Sequence[Evidence] | None = None,
    pilot: Pilot | None = None,
    options: Mapping[str, str] | None = None,
) -> Advice:
    """Return the advice for a data set.

    Args:
        facts: What is known of it.
        keep: Fraction to keep, 0 < keep <= 1; None asks how far to go.
        has_teacher: A teacher's soft labels will go with the rows kept.
        parameters: Parameters of the model to be trained; None where they are not known.
        table: The evidence; None takes the published one.
        pilot: What a pilot at this fraction found; a win of it outweighs the evidence from other data.
        options: Further options of the command, such as SOURCE's columns.

    Raises:
        BudgetError: `keep` is out of range.
    """
    if keep is not None and not 0 < keep <= 1:
        raise BudgetError(f"keep must be a fraction above 0 and at most 1, got {keep!r}")
    rows = _ours_first(published() if table is None else table)
    fraction, how_far = (keep, ()) if keep is not None else _how_far(facts, rows, has_teacher=has_teacher)
    preset, why, evidence = _method(facts, fraction, rows, has_teacher=has_teacher)
    extra: dict[str, str] = {}
    if pilot is not None and not has_teacher and fraction < 1:
        why = (*why, pilot.told())
        if pilot.start is not None:
            preset, evidence, extra = "bws", (), {"window-start": f"{pilot.start:g}"}
    if facts.repeats > 0:
        extra["dedup"] = "exact"
        why = (*why, f"{facts.repeats:.1%} of the rows repeat another one exactly. {_REPEATS}")
    return Advice(
        preset=preset,
        keep=fraction,
        why=(*how_far, *why),
        evidence=evidence,
        warnings=_warnings(facts, fraction, preset, evidence, parameters),
        command=_command(fraction, preset, {**(options or {}), **extra}),
        facts=facts,
        pilot=pilot,
    )


def available(facts: Facts) -> set[str]:
    """Presets whose metric and groups this data set has; those that are random by another name aside."""
    labels = facts.classes is not None and facts.classes > 1
    return {
        preset.name
        for preset in PRESETS
        if preset.metric != "random" and (labels or "labels" not in get_metric(preset.metric).needs)
    }


def _ours_first(table: Sequence[Evidence]) -> tuple[Evidence, ...]:
    ours = {(row.dataset, row.method) for row in table if row.kind == "measured"}
    return tuple(row for row in table if row.kind == "measured" or (row.dataset, row.method) not in ours)


def _how_far(facts: Facts, table: Sequence[Evidence], *, has_teacher: bool) -> tuple[float, tuple[str, ...]]:
    if has_teacher:
        told = "Half: ImageNet at 50 % and random, with distillation, is above the full set without (arXiv 2403.07854)."
        return TEACHER_KEEP, (told,)
    known = closest(table, modality=facts.modality, size=facts.rows, classes=facts.classes)
    for fraction in sorted({row.fraction for row in known}):
        near = nearest(known, modality=facts.modality, size=facts.rows, classes=facts.classes, fraction=fraction)
        method, rows = best_of(near, available(facts))
        lost = [row.full - row.accuracy for row in rows if row.full is not None and row.accuracy is not None]
        if method != "random" and lost and max(lost) <= TOLERANCE:
            told = "; ".join(row.told() for row in rows)
            cost = f"at most {max(lost):.1f} points" if max(lost) > 0 else "nothing"
            return fraction, (f"No budget was asked for: {fraction:.0%} cost {cost} there: {told}.",)
    told = (
        f"No budget was asked for, and no row of the evidence near this data set is within {TOLERANCE:g} point of its "
        f"full set: {CAUTIOUS_KEEP:.0%} are kept."
    )
    return CAUTIOUS_KEEP, (told,)


def _method(
    facts: Facts, fraction: float, table: Sequence[Evidence], *, has_teacher: bool
) -> tuple[str, tuple[str, ...], tuple[Evidence, ...]]:
    labels = facts.classes is not None and facts.classes > 1
    random = "random_stratified" if labels else "random"
    balance = (_BALANCE,) if labels else ()
    if fraction >= 1:
        return "random", ("Everything is kept, so nothing is chosen.",), ()
    if has_teacher:
        return random, (_TEACHER, *balance), ()
    near = nearest(table, modality=facts.modality, size=facts.rows, classes=facts.classes, fraction=fraction)
    method, rows = best_of(near, available(facts))
    if method == "random":
        told = (
            "No method that this data set allows is above random by more than the interval in all of the nearest rows"
        )
        losers = "; ".join(f"{row.method} on {row.told()}" for row in near if row.loses)
        return random, (f"{told}{f'; these are below it: {losers}' if losers else ''}.", *balance), ()
    gains = "; ".join(row.told() for row in rows)
    preset = get_preset(method)
    return method, (f"{preset.told} Against random of the same size: {gains}.",), rows


def _warnings(
    facts: Facts, fraction: float, preset: str, evidence: tuple[Evidence, ...], parameters: int | None
) -> tuple[str, ...]:
    found = []
    kept = round(facts.rows * fraction)
    if evidence and all(row.modality != facts.modality for row in evidence):
        kinds = ", ".join(sorted({row.modality for row in evidence}))
        found.append(f"The evidence is about {kinds}, not {facts.modality}: run a pilot, or prove the result.")
    if evidence and fraction < min(row.fraction for row in evidence):
        found.append(f"No row of the evidence keeps as little as {fraction:.0%}.")
    if evidence and not any(row.rows / 10 <= facts.rows <= row.rows * 10 for row in evidence):
        sizes = ", ".join(sorted({f"{row.dataset} {row.rows:,}" for row in evidence}))
        found.append(f"The sets of the evidence are of another size ({sizes}) than these {facts.rows:,} rows.")
    if facts.modality == "images" and not facts.sampled:
        found.append("No image was embedded, so nothing is known of their vectors: name a vision model with model.")
    found += _label_warnings(facts, fraction, kept)
    if facts.near_repeats is not None and facts.near_repeats >= 0.01:  # noqa: PLR2004 - one row in a hundred
        found.append(
            f"{facts.near_repeats:.1%} of {facts.sampled:,} sampled rows have a near copy in the sample alone; in the "
            "whole set it is more. Semantic dedup would take them out."
        )
    if facts.dimensions is not None and facts.dimensions < FEW_DIMENSIONS and preset != "random":
        found.append(
            f"The vectors spread over {facts.dimensions:.1f} effective dimensions only, so scores on them say little."
        )
    if parameters is not None and parameters >= LARGE_MODEL:
        found.append("Larger models need less filtering (BETR, arXiv 2507.12466): prefer to keep more.")
    return tuple(found)


def _label_warnings(facts: Facts, fraction: float, kept: int) -> list[str]:
    found: list[str] = []
    if facts.classes is None or facts.labelled is None or facts.smallest_class is None:
        return found
    if facts.classes < 2:  # noqa: PLR2004 - a choice among classes needs two
        found.append(f"The labels have {facts.classes} value, which is as good as none.")
        return found
    if facts.labelled < facts.rows:
        found.append(
            f"{facts.rows - facts.labelled:,} of {facts.rows:,} rows have no label; metrics that need one drop them."
        )
    if kept < FEW_ROWS * facts.classes:
        found.append(f"{kept:,} rows for {facts.classes} classes are fewer than {FEW_ROWS} a class.")
    if facts.smallest_class * fraction < 1:
        found.append(
            f"The smallest class has {facts.smallest_class} rows and may lose all; random_balanced keeps some."
        )
    return found


def _command(fraction: float, preset: str, options: Mapping[str, str]) -> str:
    given = dict(options)
    source, out = given.pop("source", "SOURCE"), given.pop("out", "OUT")
    words = ["datapipe", "curate", source, "--out", out, "--keep", f"{fraction:g}", "--preset", preset]
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)
