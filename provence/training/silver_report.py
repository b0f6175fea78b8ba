"""How good silver labels are: share of replies that could be read, why others were refused, agreement with people.

Pure counting; nothing here raises.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provence.training.silver_answers import Verdict

__all__ = ["Agreement", "LabelReport", "Tally"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Silver against human labels, sentence by sentence; a human label counts as the truth.

    Attributes:
        rows: Passages that have both.
        sentences: Sentences of them.
        precision: Share of the sentences labelled relevant that people marked, 0-1.
        recall: Share of the sentences that people marked that are labelled relevant, 0-1.
        f1: Harmonic mean of both.
        kappa: Cohen's kappa, agreement beyond chance, at most 1 (Cohen 1960).
    """

    rows: int
    sentences: int
    precision: float
    recall: float
    f1: float
    kappa: float

    @classmethod
    def of(cls, counts: Counter[tuple[int, int]], *, rows: int) -> Agreement:
        """From counts of (silver, human) pairs; ratios without a denominator are 0."""
        both, silver_only, human_only, neither = (counts[1, 1], counts[1, 0], counts[0, 1], counts[0, 0])
        total = both + silver_only + human_only + neither
        precision, recall = _ratio(both, both + silver_only), _ratio(both, both + human_only)
        chance = _ratio(
            (both + silver_only) * (both + human_only) + (human_only + neither) * (silver_only + neither), total * total
        )
        observed = _ratio(both + neither, total)
        return cls(
            rows=rows,
            sentences=total,
            precision=precision,
            recall=recall,
            f1=_ratio(2 * precision * recall, precision + recall),
            kappa=_ratio(observed - chance, 1 - chance),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReport:
    """What came of a run.

    Attributes:
        model: Who gave the labels.
        passages: Passages and refused rows that were read.
        asked: Replies made in this run; the others were there.
        replies: Passages that have a reply.
        labelled: Rows of labels.parquet.
        nothing_relevant: Those of them without a relevant sentence.
        parse_rate: Share of replies that are "No answer" or cite something, 0-1.
        rejected: Rows of rejected.parquet by reason.
        citations: Different numbers cited by a reply, summed.
        out_of_range: Those of them that no line had.
        kept: Share of the labelled sentences that are relevant, 0-1.
        agreement: With human labels; None where the source has none.
    """

    model: str
    passages: int
    asked: int
    replies: int
    labelled: int
    nothing_relevant: int
    parse_rate: float
    rejected: dict[str, int]
    citations: int
    out_of_range: int
    kept: float
    agreement: Agreement | None


@dataclass
class Tally:
    """Counts while labels are made."""

    passages: int = 0
    asked: int = 0
    replies: int = 0
    parsed: int = 0
    labelled: int = 0
    nothing: int = 0
    citations: int = 0
    out_of_range: int = 0
    sentences: int = 0
    relevant: int = 0
    compared: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)

    def judged(self, verdict: Verdict, human: Sequence[int] | None) -> None:
        """Count a reply."""
        self.replies += 1
        self.parsed += verdict.parsed
        self.citations += verdict.citations
        self.out_of_range += verdict.out_of_range
        if verdict.reason:
            return
        self.labelled += 1
        self.nothing += not any(verdict.relevant)
        self.sentences += len(verdict.relevant)
        self.relevant += sum(verdict.relevant)
        if human is not None:
            self.compared += 1
            self.pairs.update(zip(verdict.relevant, human, strict=True))

    def report(self, model: str) -> LabelReport:
        """The counts as shares."""
        return LabelReport(
            model=model,
            passages=self.passages,
            asked=self.asked,
            replies=self.replies,
            labelled=self.labelled,
            nothing_relevant=self.nothing,
            parse_rate=_ratio(self.parsed, self.replies),
            rejected=dict(sorted(self.rejected.items())),
            citations=self.citations,
            out_of_range=self.out_of_range,
            kept=_ratio(self.relevant, self.sentences),
            agreement=Agreement.of(self.pairs, rows=self.compared) if self.compared else None,
        )


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else 0.0
