"""A pruner as a scorer of the measuring protocol.

    [Passage, …] -> question by question, with their own sentences -> Pruner.scores_batch -> [PassageScores, …]

Raises what the pruner raises.
"""

from __future__ import annotations

from itertools import groupby, islice
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from provence.evaluation.protocol import PassageScores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from provence.evaluation.protocol import Passage
    from provence.pruner import Pruner
    from provence.task import PruneScores

__all__ = ["PrunerScorer"]

_QUESTIONS = 128

_Spans: TypeAlias = "list[tuple[int, int]]"


class PrunerScorer:
    """Mean keep probabilities of the given sentences, whatever rule of decision the model's family publishes.

    Its own threshold is the model's, where the published rule is the mean too; else it has none. A question too long
    for the model is cut. Text between two sentences, such as the heading of a section, is shown and not counted.

    Args:
        pruner: Any.
        titles: Whether it is shown the documents' titles.
        joint: Whether the passages of a question share windows; a passage then ranks by its best sentence.
        name: In the report; None is `provence`, and `provence_joint` with `joint`.
    """

    def __init__(self, pruner: Pruner, *, titles: bool = False, joint: bool = False, name: str | None = None) -> None:
        self.name = name or ("provence_joint" if joint else "provence")
        self.threshold: float | None = None
        self._pruner, self._titles, self._joint = pruner, titles, joint

    def score(self, passages: Sequence[Passage]) -> Iterator[PassageScores]:
        """Scores of all passages, some hundreds at a time."""
        questions = groupby(passages, key=lambda passage: passage.place)
        asked = (list(group) for _, group in questions)
        while batch := list(islice(asked, _QUESTIONS)):
            spans = [[_covering(passage) for passage in group] for group in batch]
            for group, covered, found in zip(batch, spans, self._scores(batch, spans), strict=True):
                for passage, shown, scores in zip(group, covered, found, strict=True):
                    yield self._taken(passage, shown, scores)

    def _scores(self, batch: list[list[Passage]], spans: list[list[_Spans]]) -> list[list[PruneScores]]:
        return self._pruner.scores_batch(
            [(group[0].example.question, [passage.text for passage in group]) for group in batch],
            titles=[[passage.example.title or None for passage in group] for group in batch] if self._titles else None,
            spans=spans,
            joint=self._joint,
            cut_question=True,
        )

    def _taken(self, passage: Passage, shown: _Spans, scores: PruneScores) -> PassageScores:
        if scores.rule == "mean":
            self.threshold = float(np.nextafter(np.float32(scores.threshold), np.float32(1)))
        counted = np.isin([start for start, _ in shown], passage.starts)
        return PassageScores(np.asarray(scores.probabilities, dtype=np.float64)[counted], float(scores.score))


def _covering(passage: Passage) -> _Spans:
    """The sentences, and between them what else is visible, in order."""
    spans: _Spans = []
    before = 0
    for start, end in zip(passage.starts.tolist(), passage.ends.tolist(), strict=True):
        gap = passage.text[before:start]
        if gap.strip():
            first = before + len(gap) - len(gap.lstrip())
            spans.append((first, first + len(gap.strip())))
        spans.append((start, end))
        before = end
    return spans
