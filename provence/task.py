"""The worker task: question and text to keep probabilities of units and a relevance score, in one forward pass.

PruneItem -> prepare (units, tokens, windows) -> PreparedText -> forward (both heads, means a unit on the device)
-> PruneScores
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PruneItem", "PruneScores"]


@dataclass(frozen=True, slots=True)
class PruneItem:
    """A text to be scored for a question.

    Attributes:
        question: Any text.
        text: Any text; an empty one has no units.
        title: Shown to the model at the head of each window, not scored.
        kind: How the text is read (`provence.units.TextKind`).
        starts: Offsets at which the caller's own units begin; None lets the text be split.
        ends: Where they end; as many.
        cut_question: Whether a question too long for the model is cut; otherwise it is refused.
        share_at: Token threshold of the `share` rule; None takes the model's own.
    """

    question: str
    text: str
    title: str | None = None
    kind: str = "auto"
    starts: Sequence[int] | None = None
    ends: Sequence[int] | None = None
    cut_question: bool = False
    share_at: float | None = None


@dataclass(frozen=True, slots=True)
class PruneScores:
    """What the model says of a text; the lists have one entry a unit, in order.

    Attributes:
        starts: Offset of each unit's first character in the text.
        ends: Offset after its last.
        kinds: What it is (`UnitKind`).
        parents: Place of the unit that gives it its sense; -1 for none.
        lengths: Tokens of each unit.
        probabilities: Mean keep probability of its tokens, 0-1.
        shares: Share of its tokens with a keep probability above `share_at`; None where the model's rule is `mean`.
        score: Relevance of the text, on the model's own scale; the best of its windows.
        tokens: Tokens of question, title and text, special tokens not counted.
        truncated: Whether the question was cut.
        rule: The model's published decision rule, `mean` or `share`.
        threshold: Its published default threshold.
    """

    starts: Sequence[int]
    ends: Sequence[int]
    kinds: Sequence[str]
    parents: Sequence[int]
    lengths: Sequence[int]
    probabilities: Sequence[float]
    shares: Sequence[float] | None
    score: float
    tokens: int
    truncated: bool
    rule: str
    threshold: float
