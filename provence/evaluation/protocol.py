"""The measuring protocol: which passages of a set a pruner sees, and what its answer is measured on.

    [Example, …] -> passages_of (whole sentences, about 300 tokens) -> [Passage, …] -> scorer -> Outcome (flat arrays)

A document is cut into passages of whole sentences, each closed before the sum of (characters / 4.2 + 1) over its
sentences passes 300; a longer sentence is a passage of its own. Shown are every passage that holds a gold sentence and
up to three others of the same document, drawn by the hash of seed, question and place. A question without gold shows up
to three passages. A sentence's score is its mean keep probability, and the figures are taken over all sentences shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from datapipe.errors import ConfigError
from provence.evaluation.sets import hash_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datapipe.storage.arrays import Bool, Float64, Int32, Int64
    from provence.evaluation.sets import Example

__all__ = [
    "LIMIT",
    "OTHERS",
    "PROTOCOL",
    "Outcome",
    "Passage",
    "PassageScores",
    "Scorer",
    "cut_lengths",
    "joined",
    "outcome_of",
    "passages_of",
    "passages_of_set",
]

PROTOCOL = 1
"""Version of these rules; figures of different versions do not compare."""

LIMIT = 300.0
"""Estimated tokens of a passage, at most, unless one sentence alone has more."""

OTHERS = 3
"""Passages without gold that are shown beside those with gold, at most."""

_CHARACTERS_A_TOKEN = 4.2


@dataclass(frozen=True, eq=False, slots=True)
class Passage:
    """Whole sentences of a document, shown to a pruner as one text.

    Attributes:
        example: The question and its document.
        place: Place of the example in its set.
        number: Place of the passage in its document; of the first, where several are joined.
        text: The passage.
        starts: Offset of each sentence's first character in `text`, int32 (sentences,).
        ends: Offset after its last, int32 (sentences,).
        gold: Whether the sentence is gold, bool (sentences,).
        parts: Sentences of each passage that this text joins; one entry for a plain passage.
    """

    example: Example
    place: int
    number: int
    text: str
    starts: Int32
    ends: Int32
    gold: Bool
    parts: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class PassageScores:
    """What a scorer says of a passage.

    Attributes:
        probabilities: Mean keep probability of each sentence, or any score that grows with it, (sentences,).
        score: Relevance of the passage; only its order matters.
    """

    probabilities: Sequence[float] | Float64
    score: float


class Scorer(Protocol):
    """A pruner, or what it must beat."""

    @property
    def name(self) -> str:
        """In the report."""

    @property
    def threshold(self) -> float | None:
        """Its own threshold, once it has scored: sentences with at least this score are kept. None if it has none."""

    def score(self, passages: Sequence[Passage]) -> Iterable[PassageScores]:
        """Scores of all passages of a set, in their order; what is counted a set, such as idf, is counted over them."""


@dataclass(frozen=True, eq=False, slots=True)
class Outcome:
    """A scored set as flat arrays: sentences in the order of their passages, passages in the order of their questions.

    Attributes:
        probabilities: Score of each sentence, float64 (sentences,).
        gold: Whether it is gold, bool (sentences,).
        characters: Its length, int64 (sentences,).
        question: Place, in `examples`, of the question it was scored for, int64 (sentences,); never falls.
        scores: Relevance of each passage, float64 (passages,).
        holds_gold: Whether the passage holds gold, bool (passages,).
        asked: Place of the passage's question, int64 (passages,); never falls.
        examples: The questions.
        texts: Text of each sentence, in order.
    """

    probabilities: Float64
    gold: Bool
    characters: Int64
    question: Int64
    scores: Float64
    holds_gold: Bool
    asked: Int64
    examples: tuple[Example, ...]
    texts: tuple[str, ...]


def cut_lengths(characters: Sequence[int] | Int64, *, limit: float = LIMIT) -> list[tuple[int, int]]:
    """Cut sentences of these lengths into passages: (first, after last) of each, in order and without gaps."""
    cuts, first, total = [], 0, 0.0
    for place, length in enumerate(characters):
        cost = float(length) / _CHARACTERS_A_TOKEN + 1
        if place > first and total + cost > limit:
            cuts.append((first, place))
            first, total = place, 0.0
        total += cost
    if len(characters):
        cuts.append((first, len(characters)))
    return cuts


def passages_of(
    example: Example, *, place: int = 0, others: int = OTHERS, seed: int = 0, limit: float = LIMIT
) -> list[Passage]:
    """The passages of one question that the protocol shows, in the order of the document.

    Args:
        example: Question and document.
        place: Place of the example in its set.
        others: Passages without gold, at most.
        seed: Another seed, other passages without gold.
        limit: Estimated tokens of a passage.
    """
    cuts = cut_lengths(example.ends - example.starts, limit=limit)
    gold = [number for number, (first, last) in enumerate(cuts) if example.relevant[first:last].any()]
    rest = sorted(set(range(len(cuts))).difference(gold), key=lambda number: hash_order(seed, example.id, number))
    return [_passage(example, place, number, *cuts[number]) for number in sorted([*gold, *rest[:others]])]


def passages_of_set(examples: Sequence[Example], *, others: int = OTHERS, seed: int = 0) -> list[Passage]:
    """The passages of all questions of a set, question by question."""
    found = []
    for place, example in enumerate(examples):
        found += passages_of(example, place=place, others=others, seed=seed)
    return found


def joined(passages: Sequence[Passage], *, limit: float | None = None, separator: str = "\n") -> list[Passage]:
    """Put passages of one question into shared texts, so that evidence in several places is seen at once.

    The sentences are the same in the same order, so the figures compare with those of the passages alone.

    Args:
        passages: Question by question.
        limit: Estimated tokens of a text, counted as for a passage, which is never cut. None joins all of a question.
        separator: Stands between two passages.

    Raises:
        ConfigError: A passage is joined already.
    """
    texts: list[Passage] = []
    group: list[Passage] = []
    total = 0.0
    for passage in passages:
        if len(passage.parts) > 1:
            raise ConfigError("passages are joined already; join what `passages_of` gives")
        cost = float(((passage.ends - passage.starts) / _CHARACTERS_A_TOKEN + 1).sum())
        if group and (passage.place != group[0].place or (limit is not None and total + cost > limit)):
            texts.append(_join(group, separator))
            group, total = [], 0.0
        group.append(passage)
        total += cost
    return [*texts, _join(group, separator)] if group else texts


def outcome_of(passages: Sequence[Passage], scores: Iterable[PassageScores], examples: Sequence[Example]) -> Outcome:
    """Lay the scores of a set's passages flat.

    Raises:
        ConfigError: A passage has not one score a sentence, or one that is not finite; names question and passage.
    """
    found = list(scores)
    if len(found) != len(passages):
        raise ConfigError(f"{len(passages)} passages, but scores of {len(found)}")
    for passage, scored in zip(passages, found, strict=True):
        values = np.asarray(scored.probabilities, dtype=np.float64)
        if values.shape != passage.starts.shape or not np.isfinite(values).all() or not np.isfinite(scored.score):
            raise ConfigError(
                f"question {passage.example.id}, passage {passage.number}: {passage.starts.size} sentences need as "
                f"many finite scores and one finite relevance. Got {values.size}: {values}, {scored.score}"
            )
    sizes = [passage.starts.size for passage in passages]
    gold = _flat([passage.gold for passage in passages], np.bool_)
    asked = np.array([passage.place for passage in passages], dtype=np.int64)
    return Outcome(
        probabilities=_flat([scored.probabilities for scored in found], np.float64),
        gold=gold,
        characters=_flat([passage.ends - passage.starts for passage in passages], np.int64),
        question=np.repeat(asked, sizes),
        scores=np.array([scored.score for scored in found], dtype=np.float64),
        holds_gold=np.array([bool(passage.gold.any()) for passage in passages], dtype=np.bool_),
        asked=asked,
        examples=tuple(examples),
        texts=tuple(p.text[s:e] for p in passages for s, e in zip(p.starts.tolist(), p.ends.tolist(), strict=True)),
    )


def _flat(parts: list[Sequence[float] | Float64] | list[Bool] | list[Int32], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=dtype), *(np.asarray(part, dtype=dtype) for part in parts)])


def _passage(example: Example, place: int, number: int, first: int, last: int) -> Passage:
    begin = int(example.starts[first])
    return Passage(
        example=example,
        place=place,
        number=number,
        text=example.context[begin : int(example.ends[last - 1])],
        starts=example.starts[first:last] - begin,
        ends=example.ends[first:last] - begin,
        gold=example.relevant[first:last],
        parts=(last - first,),
    )


def _join(group: list[Passage], separator: str) -> Passage:
    lengths = [len(passage.text) + len(separator) for passage in group]
    moves = np.repeat(np.cumsum([0, *lengths[:-1]]), [passage.starts.size for passage in group]).astype(np.int32)
    return Passage(
        example=group[0].example,
        place=group[0].place,
        number=group[0].number,
        text=separator.join(passage.text for passage in group),
        starts=np.concatenate([passage.starts for passage in group]) + moves,
        ends=np.concatenate([passage.ends for passage in group]) + moves,
        gold=np.concatenate([passage.gold for passage in group]),
        parts=tuple(passage.starts.size for passage in group),
    )
