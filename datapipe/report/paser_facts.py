"""What a selection for recovery has to say besides the facts that every run has, as plain data.

Skills are clusters of instructions; damage is how far a pruned model has moved away from the original, in nats.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 (pydantic reads the field types)
from dataclasses import dataclass, field
from typing import Literal

from datapipe.report.facts import RunFacts  # noqa: TC001

__all__ = ["CurveFacts", "RecoveryFacts", "SkillFacts", "VariantFacts", "skill_name"]


@dataclass(frozen=True, kw_only=True)
class SkillFacts:
    """One skill.

    Attributes:
        cluster: Its number; 0 is the largest.
        words: What tells it from the others, most telling first.
        rows: Rows of the pool in it.
        measured: Rows whose damage was measured.
        damage: Capability degradation score (CDS), nats; None where nothing was measured.
        low: Lower end of its 95 % interval.
        high: Upper end.
        share: Part of the budget that it was to get, 0 ... 1; None where the method knows no skills.
        budget: What it was to get, in the unit of the budget, after caps; None likewise.
        taken: Rows taken.
        tokens_taken: Tokens of their prompts and responses.
        acceptance: Part of its rows that no conflict refused, 0 ... 1; None where none was asked.
        examples: Instructions nearest to its middle.
    """

    cluster: int
    words: tuple[str, ...]
    rows: int
    measured: int
    damage: float | None
    low: float | None
    high: float | None
    share: float | None
    budget: int | None
    taken: int
    tokens_taken: int | None
    acceptance: float | None
    examples: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As the page calls it."""
        return skill_name(self.cluster, self.words)


@dataclass(frozen=True, kw_only=True)
class VariantFacts:
    """One pruned model.

    Attributes:
        label: Its name.
        damage: CDS of each skill, by number; None where nothing was measured.
        mean: Mean damage of the measured rows, nats.
        disagree: Share of tokens at which its first choice is not the original's; None where it is not known.
    """

    label: str
    damage: tuple[float | None, ...]
    mean: float
    disagree: float | None


@dataclass(frozen=True, kw_only=True)
class CurveFacts:
    """What a larger or smaller budget would hold of the pool's damage; all values are shares, 0 ... 1.

    Attributes:
        budgets: Share of the pool, in the unit of the budget, ascending.
        chosen: Damage held by rows chosen as in this run.
        random: By rows chosen at random.
        most: By the most damaged rows.
        at: The budget of the run.
    """

    budgets: tuple[float, ...]
    chosen: tuple[float, ...]
    random: tuple[float, ...]
    most: tuple[float, ...]
    at: float


@dataclass(frozen=True, kw_only=True)
class RecoveryFacts:
    """Everything that the page of a selection for recovery shows.

    Attributes:
        run: What every run has; its strata are the skills, its scores the damage.
        unit: What the budget counts.
        original: Name of the original model.
        skills: By number.
        variants: Pruned models; the first decided the choice.
        stability: Agreement of clusterings of resampled rows (adjusted Rand index) by number of clusters tried.
        recall: Part of the true neighbours that the search found.
        curve: None where too little was measured.
    """

    run: RunFacts
    unit: Literal["rows", "tokens"]
    original: str
    skills: tuple[SkillFacts, ...]
    variants: tuple[VariantFacts, ...]
    stability: Mapping[int, float] = field(default_factory=dict)
    recall: float | None = None
    curve: CurveFacts | None = None


def skill_name(cluster: int, words: tuple[str, ...] | list[str], *, most: int = 4) -> str:
    """Return a skill's name: its number and its first words, `3 · garden, water, plant`."""
    return f"{cluster} \u00b7 {', '.join(words[:most])}" if words else str(cluster)
