"""What a selection does with its scores: every published method is a setting of one engine.

scores -> trim the ends -> strata -> quotas -> keep order -> exact count. Raises `SelectionError` for settings that
contradict each other or would be without effect.

Settings of some methods: keep-hard with 50 % class balance (Sorscher et al.) `Plan(order="hard", strata="group",
quota="fill")`; CCS `Plan(order="random", trim_hard=b, strata="score_width", quota="equal")`; Moderate-DS at fraction
f `Plan(order="hard", trim_hard=(1 - f) / 2, trim_easy=(1 - f) / 2)`; a window of BWS from s on `Plan(order="hard",
trim_hard=s)`; stratified random `Plan(order="random", strata="group")`; random rows mixed into a score cut (arXiv
2302.06960) `mix_random`; the Beta sampling of DUAL `order="weighted"` with `beta`, or with weights as scores; the
quotas of DBP `quota="given"`. `datapipe.selection.presets` names them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from datapipe.errors import SelectionError

Order: TypeAlias = Literal["hard", "easy", "random", "weighted"]
Strata: TypeAlias = Literal["none", "score_width", "score_count", "group"]
Quota: TypeAlias = Literal["proportional", "equal", "fill", "given"]

MOST_BINS = 1000
_DEFAULT_BINS = 50
_DEFAULT_FLOOR = 0.5
_CHOICES: dict[str, tuple[str, ...]] = {
    "order": ("hard", "easy", "random", "weighted"),
    "strata": ("none", "score_width", "score_count", "group"),
    "quota": ("proportional", "equal", "fill", "given"),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of one selection; part of the stage's config, so no field may be without effect.

    Attributes:
        order: The keep order within a stratum. "hard": highest score first. "easy": lowest first. "random": hash order.
            "weighted": a random order in which scores are sampling weights >= 0 (the exponential race of Efraimidis and
            Spirakis 2006, drawn from the hash order). Ties break by hash order.
        beta: For "weighted" only: sharpness C > 0 and reach t, 0 <= t <= 1, of the Beta distribution of DUAL, with
            b = C (1 - anchor) t and a = C + 1 - b. Where rows come with a place in 0 ... 1 (a mean probability), the
            weight is the score times the density at the place, and the anchor is the mean place of the ten highest
            scores. Where they come without, the density alone is the weight, the place is the rank from 0 (highest
            score of the pool) to 1 (lowest), and the anchor is 0.
        trim_hard: Fraction of the pool with the highest scores that is never kept, rounded down; 0 <= trim_hard < 1.
        trim_easy: The same at the low end; the two together stay below 1.
        strata: What is balanced. "score_width": `bins` intervals of equal width between the scores left after trimming.
            "score_count": `bins` groups of equal size along the score. "group": the groups given (classes, clusters).
        bins: Number of score strata, 2 ... 1000; for "score_width" and "score_count" only.
        quota: How strata share the budget. "proportional" to what they hold, "equal" with small ones kept whole,
            "given" by weights that come with the data, or "fill": each keeps a floor first, the rest goes by keep order
            across strata.
        floor_ratio: The floor of "fill" as a part of an equal share, 0 ... 1.
        mix_random: Part of the budget, 0 ... 1, rounded down, that goes to the first rows in hash order whatever their
            score or stratum. The rest goes by the plan among the other rows; a stratum's floor counts both.

    Nesting: with strata "none" a smaller budget's rows lie within a larger one's (same seed, trim and mix). With strata
    this holds where no stratum's number of kept rows falls, which largest remainders and floors do not promise.
    """

    order: Order
    beta: tuple[float, float] | None = None
    trim_hard: float = 0.0
    trim_easy: float = 0.0
    strata: Strata = "none"
    bins: int = _DEFAULT_BINS
    quota: Quota = "proportional"
    floor_ratio: float = _DEFAULT_FLOOR
    mix_random: float = 0.0

    def __post_init__(self) -> None:
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise SelectionError(f"{field} is one of {', '.join(allowed)}; got {getattr(self, field)!r}.")
        if not (0 <= self.trim_hard < 1 and 0 <= self.trim_easy < 1 and self.trim_hard + self.trim_easy < 1):
            raise SelectionError(
                f"trim_hard and trim_easy are fractions that leave rows; got {self.trim_hard} and {self.trim_easy}."
            )
        if not 2 <= self.bins <= MOST_BINS:  # noqa: PLR2004 - one bin would be no strata
            raise SelectionError(f"bins lies within 2 and {MOST_BINS}; got {self.bins}.")
        if not (0 <= self.floor_ratio <= 1 and 0 <= self.mix_random <= 1):
            raise SelectionError(
                f"floor_ratio and mix_random lie within 0 and 1; got {self.floor_ratio} and {self.mix_random}."
            )
        self._refuse_idle_settings()

    def _refuse_idle_settings(self) -> None:
        if self.beta is not None and self.order != "weighted":
            raise SelectionError(f"beta = {self.beta} has no effect with order = {self.order!r}.")
        if self.beta is not None and not (0 < self.beta[0] < math.inf and 0 <= self.beta[1] <= 1):
            raise SelectionError(f"beta is a finite sharpness above 0 and a reach within 0 and 1; got {self.beta}.")
        if self.bins != _DEFAULT_BINS and not self.strata.startswith("score"):
            raise SelectionError(f"bins = {self.bins} has no effect with strata = {self.strata!r}.")
        if self.quota != "proportional" and self.strata == "none":
            raise SelectionError(f"quota = {self.quota!r} needs strata.")
        if self.floor_ratio != _DEFAULT_FLOOR and self.quota != "fill":
            raise SelectionError(f"floor_ratio = {self.floor_ratio} has no effect with quota = {self.quota!r}.")
        if self.mix_random and self.order == "random":
            raise SelectionError("mix_random has no effect on a random order.")
        if self.quota == "fill" and self.mix_random + self.floor_ratio > 1:
            raise SelectionError(
                f"mix_random = {self.mix_random} and floor_ratio = {self.floor_ratio} together exceed the budget."
            )
