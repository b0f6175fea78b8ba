"""Scores to decisions: which units are kept, and why. Knows no model.

    PruneScores of one question's texts, Policy -> decide -> one Decision a text

An aim (a threshold, or a budget over all texts together) picks units; obligations (`min_keep`, `always_keep_first`)
add to them; then each kept unit brings what it needs (`pin`, `repair`). Every unit that a budget admits is counted with
what it brings, so kept tokens never exceed it. Raises `ConfigError` for a recall without a calibration, or one that it
cannot promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError
from provence.policy import pin_of
from provence.repair import CHEAP_TOKENS, leans_back

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapipe.storage.arrays import Bool
    from provence.calibration import Calibration
    from provence.policy import Policy
    from provence.task import PruneScores

__all__ = ["Decision", "decide", "ranked", "relevance_order"]

_REPAIR_STEPS = 2
"""Antecedents of antecedents that are brought back."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is kept of a text.

    Attributes:
        reasons: Why each unit is kept, as in `ScoredSentence.reason`; empty where it is not.
    """

    reasons: tuple[str, ...]

    @property
    def kept(self) -> tuple[bool, ...]:
        """Whether each unit is kept."""
        return tuple(bool(reason) for reason in self.reasons)


def decide(
    texts: Sequence[str], scores: Sequence[PruneScores], policy: Policy, *, calibration: Calibration | None = None
) -> list[Decision]:
    """Decide on the units of all texts of one question.

    A budget is filled with the most probable units first, over all texts; one that no longer fits with what it brings
    is passed over, and ties go by place. So no unit is left out that fits beside all the more probable ones. Where
    units bring nothing along and none is obliged, the expected number of needed tokens kept (length times probability,
    summed) falls short of the most that any choice could reach by less than that of the first unit passed over.

    Args:
        texts: Of the question; looked at for `repair` only.
        scores: Of each text.
        policy: What is wanted; `top_n` is not applied here (see `ranked`).
        calibration: Where `target_recall` finds its threshold.

    Raises:
        ConfigError: `target_recall` without a calibration, or more than it can promise.
    """
    chosen = [_Text(text, found, policy) for text, found in zip(texts, scores, strict=True)]
    for text in chosen:
        text.oblige()
    if policy.budget_tokens is not None:
        _spend(chosen, policy.budget_tokens)
    else:
        aim = "threshold" if policy.target_recall is None else "recall"
        for text, above in zip(chosen, _above(scores, policy, calibration), strict=True):
            for unit in np.flatnonzero(above):
                text.reasons[unit] = aim
            text.complete()
    return [Decision(tuple(text.reasons)) for text in chosen]


def ranked(scores: Sequence[PruneScores], top_n: int | None) -> list[int]:
    """Places of the texts: all in their order, or the `top_n` most relevant, best first; ties by place.

    Texts without a token come last.
    """
    places = list(range(len(scores)))
    return places if top_n is None else sorted(places, key=lambda place: relevance_order(scores[place]))[:top_n]


def relevance_order(scores: PruneScores) -> tuple[bool, float]:
    """What texts are sorted by, best first: those without a token come last, whatever the scale of the others."""
    return not scores.lengths.any(), -scores.score


class _Text:
    """The units of one text while it is decided which are kept."""

    def __init__(self, text: str, scores: PruneScores, policy: Policy) -> None:
        self._text, self._policy, self.scores = text, policy, scores
        self.reasons = [""] * len(scores.starts)
        self.obliged: list[tuple[int, str]] = []

    def oblige(self) -> None:
        """Note the units that must be kept whatever the aim says."""
        first = [(0, "first")] if self._policy.always_keep_first and self.reasons else []
        self.obliged = first
        if self._policy.min_keep:
            order = np.argsort(-np.asarray(self.scores.probabilities), kind="stable")
            self.obliged = first + [(int(unit), "min_keep") for unit in order[: self._policy.min_keep]]

    def complete(self) -> None:
        """Keep what is obliged and has not been chosen, and what the kept units bring."""
        kept = sum(map(bool, self.reasons))
        for unit, reason in self.obliged:
            if not self.reasons[unit] and (reason == "first" or kept < self._policy.min_keep):
                self.reasons[unit] = reason
                kept += 1
        if self._policy.pin or self._policy.repair:
            for unit in [unit for unit, reason in enumerate(self.reasons) if reason]:
                self.keep(self.bundle(unit))

    def bundle(self, unit: int) -> dict[int, str]:
        """The units that come with one if it is kept, and why; only those that are not kept yet."""
        found: dict[int, str] = {}
        if self._policy.repair:
            for before in self._antecedents(unit):
                found.setdefault(before, "repair")
        for each in [unit, *found]:
            for above in self._pinned(each):
                found.setdefault(above, "pinned")
        return {each: reason for each, reason in found.items() if not self.reasons[each]}

    def keep(self, bundle: dict[int, str]) -> None:
        """Keep these units."""
        for unit, reason in bundle.items():
            self.reasons[unit] = self.reasons[unit] or reason

    def _pinned(self, unit: int) -> Iterator[int]:
        if not self._policy.pin:
            return
        if "title" in self._policy.pin:
            yield 0
        above = int(self.scores.parents[unit])
        while above >= 0:
            if pin_of(self.scores.kinds[above]) in self._policy.pin:
                yield above
            above = int(self.scores.parents[above])

    def _antecedents(self, unit: int) -> Iterator[int]:
        for before in range(unit - 1, max(-1, unit - 1 - _REPAIR_STEPS), -1):
            start, end = int(self.scores.starts[before + 1]), int(self.scores.ends[before + 1])
            prose = {self.scores.kinds[before], self.scores.kinds[before + 1]} <= {"sentence", "item"}
            cheap = self.scores.lengths[before] <= CHEAP_TOKENS
            if not (prose and cheap and leans_back(self._text[start:end])):
                return
            yield before


def _spend(texts: Sequence[_Text], budget: int) -> None:
    """Keep the obliged units that fit, then the most probable ones that do."""
    left = budget
    obliged = [(text, unit, reason) for text in texts for unit, reason in text.obliged]
    probable = [(text, int(unit), "budget") for text in texts for unit in np.flatnonzero(text.scores.probabilities)]
    for candidates in (obliged, probable):
        candidates.sort(key=lambda candidate: -candidate[0].scores.probabilities[candidate[1]])
        for text, unit, reason in candidates:
            if text.reasons[unit]:
                continue
            bundle = {**text.bundle(unit), unit: reason}
            cost = sum(int(text.scores.lengths[each]) for each in bundle)
            if cost <= left:
                text.keep(bundle)
                left -= cost


def _above(scores: Sequence[PruneScores], policy: Policy, calibration: Calibration | None) -> list[Bool]:
    """Which units of each text are above the threshold; probabilities and thresholds are compared as float32."""
    if policy.target_recall is not None:
        if calibration is None:
            raise ConfigError(
                "target_recall needs a calibration of this model: make one with provence calibrate and pass it as "
                "calibration= (--calibration)"
            )
        recall = calibration.threshold_for(policy.target_recall)
        return [np.asarray(found.probabilities) > np.float32(recall) for found in scores]
    return [
        np.asarray(found.probabilities if found.shares is None or policy.rule == "mean" else found.shares)
        > np.float32(found.threshold if policy.threshold is None else policy.threshold)
        for found in scores
    ]
