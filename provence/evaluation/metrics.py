"""What a pruner is worth on a set: characters removed at a recall, sentence F, answers kept, ranking; with intervals.

Pure functions from arrays to numbers. A sentence is kept if its score is at least the threshold. Intervals resample
questions, not sentences, since the sentences of a question stand or fall together.
"""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datapipe.storage.arrays import Bool, Float64, Int64

__all__ = [
    "Agreement",
    "agreement",
    "answer_retained",
    "interval",
    "normalised",
    "ranking",
    "removed_at_recall",
    "resampled_agreement",
    "resampled_mean",
    "resampled_removed",
    "resamples",
    "threshold_at_recall",
]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CELLS = 1 << 21


@dataclass(frozen=True)
class Agreement:
    """Kept sentences against gold sentences, each 0-1.

    Attributes:
        precision: Share of the kept that are gold; 1 where nothing is kept.
        recall: Share of the gold that are kept; 1 where there is no gold.
        f1: Harmonic mean of both.
        f2: The same with recall weighted twice as much as precision.
    """

    precision: float
    recall: float
    f1: float
    f2: float


def threshold_at_recall(probabilities: Float64, gold: Bool, recall: float) -> float:
    """The largest threshold at which at least this share of the gold sentences is kept.

    Args:
        probabilities: float64 (sentences,).
        gold: bool (sentences,).
        recall: 0 < recall <= 1.

    Raises:
        MetricError: There is no gold sentence, or the recall is out of range.
    """
    return float(np.sort(probabilities[gold])[::-1][_needed(int(gold.sum()), recall) - 1])


def removed_at_recall(probabilities: Float64, gold: Bool, characters: Int64, recall: float) -> float:
    """Share of the characters that go when this share of gold sentences is kept, one threshold for all; 0-1.

    Raises:
        MetricError: There is no gold sentence, or the recall is out of range.
    """
    cut = probabilities < threshold_at_recall(probabilities, gold, recall)
    return float(characters[cut].sum() / characters.sum())


def agreement(kept: Bool, gold: Bool) -> Agreement:
    """Sentence precision, recall, F1 and F2."""
    return _agreement(float((kept & gold).sum()), float(kept.sum()), float(gold.sum()))


def normalised(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces: the answer normalisation of SQuAD."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_retained(answers: Sequence[str], shown: Iterable[str], kept: Iterable[str]) -> float | None:
    """Whether the kept sentences still hold an answer string that those shown held: 1.0 or 0.0.

    Strings are compared as whole words after `normalised`.

    Args:
        answers: Accepted answer strings.
        shown: Sentences that the pruner saw, in order.
        kept: Those that it kept, in order.

    Returns:
        None where no answer string stands in the sentences shown: then nothing could be lost.
    """
    wanted = {f" {answer} " for answer in map(normalised, answers) if answer}
    before = f" {normalised(' '.join(shown))} "
    present = [answer for answer in wanted if answer in before]
    if not present:
        return None
    after = f" {normalised(' '.join(kept))} "
    return float(any(answer in after for answer in present))


def ranking(scores: Float64, holds_gold: Bool, asked: Int64, *, depth: int = 10) -> dict[str, Float64]:
    """How well passages that hold gold are ranked above the others of their question.

    Only questions count that show a passage with gold and one without. Among equal scores passages without gold go
    first, so that a constant score earns nothing.

    Args:
        scores: Relevance of each passage, float64 (passages,).
        holds_gold: bool (passages,).
        asked: Question of each passage, int64 (passages,).
        depth: Passages that nDCG looks at.

    Returns:
        `ndcg`, `mrr` and `first` (whether the best passage holds gold), float64 (questions that count,), and
        `question`, the places of these questions.
    """
    order = np.lexsort((holds_gold, -scores, asked))
    sorted_asked, hits = asked[order], holds_gold[order].astype(np.float64)
    questions, begins = np.unique(sorted_asked, return_index=True)
    if not questions.size:
        return {name: np.zeros(0) for name in ("question", "ndcg", "mrr", "first")}
    sizes = np.diff([*begins, hits.size])
    ranks = np.arange(hits.size) - np.repeat(begins, sizes) + 1
    golds = np.add.reduceat(hits, begins)
    gains = np.where(ranks <= depth, 1 / np.log2(ranks + 1), 0.0)
    ideal = np.cumsum(1 / np.log2(np.arange(2, depth + 2)))[np.minimum(golds, depth).astype(int) - 1]
    counts = (golds > 0) & (golds < sizes)
    found = {
        "question": questions,
        "ndcg": np.add.reduceat(hits * gains, begins) / ideal,
        "mrr": np.maximum.reduceat(hits / ranks, begins),
        "first": hits[begins],
    }
    return {name: values[counts] for name, values in found.items()}


def resamples(questions: int, *, count: int = 1000, seed: int = 0) -> Int64:
    """How often each bootstrap sample draws each question, int64 (count, questions); a row sums to `questions`."""
    if not questions:
        return np.zeros((count, 0), dtype=np.int64)
    drawn = np.random.default_rng(seed).integers(questions, size=(count, questions))
    counted = np.bincount((drawn + questions * np.arange(count)[:, None]).ravel(), minlength=count * questions)
    return counted.reshape(count, questions)


def resampled_mean(values: Float64, weights: Int64) -> Float64:
    """Mean of a value a question in each sample, float64 (samples,).

    Args:
        values: float64 (questions,); NaN where the question does not count.
        weights: From `resamples`, (samples, questions). NaN is given for a sample with no question that counts.
    """
    counted = np.isfinite(values)
    total = weights @ np.where(counted, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Float64 = total / (weights @ counted)
    return found


def resampled_removed(
    probabilities: Float64,
    gold: Bool,
    characters: Int64,
    question: Int64,
    *,
    recalls: Sequence[float],
    weights: Int64,
) -> Float64:
    """`removed_at_recall` in each sample, its threshold chosen anew, float64 (samples, recalls).

    Time and memory samples * sentences, in slices of bounded memory. A sample without gold gives NaN.

    Args:
        probabilities: float64 (sentences,).
        gold: bool (sentences,).
        characters: int64 (sentences,).
        question: Column of `weights` of each sentence, int64 (sentences,).
        recalls: Each 0 < recall <= 1.
        weights: From `resamples`, (samples, questions).
    """
    order = np.argsort(-probabilities, kind="stable")
    last_of_tie = np.searchsorted(-probabilities[order], -probabilities[order], side="right") - 1
    asked, is_gold, length = question[order], gold[order], characters[order]
    found = np.full((len(weights), len(recalls)), np.nan)
    step = max(1, _CELLS // max(1, order.size))
    for first in range(0, len(weights), step):
        drawn = weights[first : first + step, asked]
        golds = np.cumsum(drawn[:, is_gold], axis=1)
        kept = np.cumsum(drawn * length, axis=1)
        at_gold = last_of_tie[is_gold]
        for row in np.flatnonzero(golds[:, -1] > 0 if golds.shape[1] else np.zeros(0, dtype=bool)):
            needed = [_needed(int(golds[row, -1]), recall) for recall in recalls]
            places = at_gold[np.searchsorted(golds[row], needed, side="left")]
            found[first + row] = 1 - kept[row, places] / kept[row, -1]
    return found


def resampled_agreement(kept: Bool, gold: Bool, question: Int64, weights: Int64) -> list[Agreement]:
    """`agreement` in each sample."""
    questions = weights.shape[1]
    totals = [
        weights @ np.bincount(question, weights=flag.astype(np.float64), minlength=questions)
        for flag in (kept & gold, kept, gold)
    ]
    return [_agreement(*map(float, row)) for row in zip(*totals, strict=True)]


def interval(samples: Float64, *, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap samples; NaN samples are left out. (NaN, NaN) where none is left."""
    finite = samples[np.isfinite(samples)]
    if not finite.size:
        return (math.nan, math.nan)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _needed(golds: int, recall: float) -> int:
    """Gold sentences to keep; a product that is whole but for rounding counts as whole."""
    if not 0 < recall <= 1:
        raise MetricError(f"recall must lie in (0, 1]. Got {recall}")
    if not golds:
        raise MetricError("no gold sentence to keep, so no threshold gives a recall")
    return max(1, math.ceil(recall * golds - 1e-9))


def _agreement(both: float, kept: float, gold: float) -> Agreement:
    precision = both / kept if kept else 1.0
    recall = both / gold if gold else 1.0
    return Agreement(precision, recall, _f(1, both, kept, gold), _f(2, both, kept, gold))


def _f(beta: float, both: float, kept: float, gold: float) -> float:
    weight = beta * beta
    return (1 + weight) * both / (weight * gold + kept) if gold or kept else 1.0
