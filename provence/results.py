"""What pruning gives: the context that is left, and every unit with its probability.

`text` is the verbatim concatenation of `kept_spans` of the input, and every visible character of the input lies in one
of `sentences`. Offsets are Python string offsets into the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from provence.units.unit import UnitKind

__all__ = ["PrunedContext", "Ranked", "ScoredSentence"]


@dataclass(frozen=True, slots=True)
class ScoredSentence:
    """A unit of the text, and what became of it.

    Attributes:
        start: Offset of its first character in the input.
        end: Offset after its last character.
        keep_probability: Mean probability, 0-1, that a token of it helps to answer the question.
        kept: Whether it is part of `PrunedContext.text`.
        reason: Why it was kept: `threshold`, `recall`, `budget`, `min_keep`, `first`, `pinned`, `repair`, or
            `whole` (the text is kept because nothing of it was); empty if not.
        kind: What it is, such as `sentence` or `table_row`.
    """

    start: int
    end: int
    keep_probability: float
    kept: bool
    reason: str = ""
    kind: UnitKind = "sentence"


@dataclass(frozen=True, slots=True)
class PrunedContext:
    """A text without what a question does not need.

    Attributes:
        index: Place of the text in the call.
        text: The kept parts, joined as they stand in the input; empty if nothing is kept.
        kept_spans: (start, end) of each run of kept units; the whole input if nothing is cut. Of the white space
            between two units, what follows its last line break belongs to the second, the rest to the first; after the
            last kept unit there is none.
        sentences: All units, in order.
        relevance_score: How well the whole text fits the question, on the model's own scale; higher is better. The
            default model and Provence give a logit, which may be negative: its sigmoid lies in 0-1 and orders texts
            alike. Open Provence gives 0-1 itself. A text of white space alone has -10,000, below every other; among
            texts that share windows (`joint`) it is 0, and that of the others their most probable unit's, 0-1.
        compression: Share of the input's characters that was cut, 0-1; 0 for an empty input.
        tokens: Tokens of the input, in the model's own count.
        truncated: Whether the model saw only part of the question (`cut_question`).
    """

    index: int
    text: str
    kept_spans: tuple[tuple[int, int], ...]
    sentences: tuple[ScoredSentence, ...]
    relevance_score: float
    compression: float
    tokens: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Ranked:
    """A text's place in an order by relevance.

    Attributes:
        index: Place of the text in the call.
        relevance_score: On the model's own scale, as `PrunedContext` has it; higher is better.
    """

    index: int
    relevance_score: float
