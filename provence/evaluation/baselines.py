"""What a pruner must beat: scorers with the same interface, from nothing at all to a sentence embedder.

    [Passage, …] -> scorer.score -> [PassageScores, …]

Idf and lengths are counted over the distinct sentences of the set's passages, or over its distinct passages where a
passage is scored.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from datapipe.errors import ConfigError
from provence.evaluation.protocol import PassageScores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapipe.storage.arrays import Float32
    from datapipe.workers.protocol import Worker
    from provence.evaluation.protocol import Passage, Scorer

__all__ = [
    "BASELINES",
    "EMBEDDER",
    "Baseline",
    "Bm25",
    "IdfOverlap",
    "KeepAll",
    "Lead",
    "PassageCosine",
    "SentenceCosine",
    "baselines",
]

Baseline: TypeAlias = Literal["keep_all", "lead", "idf", "bm25", "sentence_cosine", "passage_cosine"]

BASELINES: tuple[Baseline, ...] = get_args(Baseline)

EMBEDDER = "all-MiniLM-L6-v2"
"""The embedded model whose cosines are a baseline unless another is asked for."""

_WORDS = re.compile(r"\w+")
_SHORTER = 1e-9


class KeepAll:
    """Keep every sentence; passages in any order."""

    name = "keep_all"
    threshold: float | None = 0.0

    def score(self, passages: Sequence[Passage]) -> Iterator[PassageScores]:
        """One for every sentence, nothing for every passage."""
        for passage in passages:
            yield PassageScores(np.ones(passage.starts.size), 0.0)


class Lead:
    """Keep the first sentences of each passage; passages in the order of the document.

    Args:
        sentences: Kept at the scorer's own threshold.
    """

    name = "lead"

    def __init__(self, sentences: int = 3) -> None:
        self.threshold: float | None = 1 / sentences

    def score(self, passages: Sequence[Passage]) -> Iterator[PassageScores]:
        """1 / place of the sentence in its passage; 1 / place of the passage in its document."""
        for passage in passages:
            yield PassageScores(1 / np.arange(1, passage.starts.size + 1), 1 / (passage.number + 1))


class IdfOverlap:
    """Share of the question's words that a sentence holds, weighted by idf = log((n + 1) / (df + 0.5)).

    Among equal shares a shorter sentence scores a trifle higher, so that a threshold also divides sentences that share
    no word with the question.
    """

    name = "idf"
    threshold: float | None = None

    def score(self, passages: Sequence[Passage]) -> Iterator[PassageScores]:
        """0-1 for sentences and passages."""
        sentences, whole = _Words(_sentences(passages)), _Words(passage.text for passage in passages)
        for passage in passages:
            question = sorted(set(_words(passage.example.question)))
            values = [self._share(question, text, sentences) for text in _sentences([passage])]
            yield PassageScores(values, self._share(question, passage.text, whole))

    @staticmethod
    def _share(question: list[str], text: str, counted: _Words) -> float:
        total = sum(map(counted.idf, question))
        both = sum(counted.idf(word) for word in question if word in counted.of(text))
        return (both / total if total else 0.0) - _SHORTER * len(text)


class Bm25:
    """Okapi BM25 of the question against each sentence, idf = log(1 + (n - df + 0.5) / (df + 0.5)).

    Robertson and Zaragoza 2009. Equal scores are divided as in `IdfOverlap`.

    Args:
        k1: How soon a repeated word stops to count.
        b: How much long texts are held back, 0-1.
    """

    name = "bm25"
    threshold: float | None = None

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        self._k1, self._b = k1, b

    def score(self, passages: Sequence[Passage]) -> Iterator[PassageScores]:
        """0 or more for sentences and passages."""
        sentences, whole = _Words(_sentences(passages)), _Words(passage.text for passage in passages)
        for passage in passages:
            question = _words(passage.example.question)
            values = [self._bm25(question, text, sentences) for text in _sentences([passage])]
            yield PassageScores(values, self._bm25(question, passage.text, whole))

    def _bm25(self, question: list[str], text: str, counted: _Words) -> float:
        words = counted.of(text)
        held_back = self._k1 * (1 - self._b + self._b * words.total() / counted.mean_length)
        found = 0.0
        for word in question:
            if count := words[word]:
                found += counted.rsj(word) * count * (self._k1 + 1) / (count + held_back)
        return found - _SHORTER * len(text)


class SentenceCosine:
    """Cosine of question and sentence by a sentence embedder; a passage is as relevant as its best sentence.

    Args:
        worker: Runs the task `embed`.
        model: Name of the embedder on that worker.
    """

    name = "sentence_cosine"
    threshold: float | None = None

    def __init__(self, worker: Worker, model: str = EMBEDDER) -> None:
        self._worker, self._model = worker, model

    def score(self, passages: Sequence[Passage]) -> Iterator[PassageScores]:
        """-1 to 1 for sentences and passages."""
        texts = [*_sentences(passages), *(passage.example.question for passage in passages)]
        vectors = _embedded(self._worker, self._model, texts)
        for passage in passages:
            rows = np.stack([vectors[text] for text in _sentences([passage])])
            values = (rows @ vectors[passage.example.question]).astype(np.float64)
            yield PassageScores(values, float(values.max()))


class PassageCosine:
    """Cosine of question and whole passage, given to each of its sentences: what a filter of documents does.

    Args:
        worker: Runs the task `embed`.
        model: Name of the embedder on that worker.
    """

    name = "passage_cosine"
    threshold: float | None = None

    def __init__(self, worker: Worker, model: str = EMBEDDER) -> None:
        self._worker, self._model = worker, model

    def score(self, passages: Sequence[Passage]) -> Iterator[PassageScores]:
        """-1 to 1, the same for a passage and its sentences."""
        texts = [text for passage in passages for text in (passage.text, passage.example.question)]
        vectors = _embedded(self._worker, self._model, texts)
        for passage in passages:
            cosine = float(vectors[passage.text] @ vectors[passage.example.question])
            yield PassageScores(np.full(passage.starts.size, cosine), cosine)


def baselines(names: Sequence[str], *, worker: Worker | None = None, model: str = EMBEDDER) -> list[Scorer]:
    """Scorers by their names.

    Args:
        names: Of `BASELINES`.
        worker: Runs the embedder; None opens the embedded model in this process if a cosine is asked for.
        model: Name of the embedder on the worker.

    Raises:
        ConfigError: There is no such baseline; names those there are.
    """
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise ConfigError(f"no baseline {', '.join(unknown)}. There are {', '.join(BASELINES)}")
    if worker is None and any(name.endswith("_cosine") for name in names):
        worker = _embedder(model)
    return [_baseline(name, worker, model) for name in names]


def _baseline(name: str, worker: Worker | None, model: str) -> Scorer:
    if worker is not None and name == "sentence_cosine":
        return SentenceCosine(worker, model)
    if worker is not None and name == "passage_cosine":
        return PassageCosine(worker, model)
    plain: dict[str, type[KeepAll | Lead | IdfOverlap | Bm25]] = {
        "keep_all": KeepAll,
        "lead": Lead,
        "idf": IdfOverlap,
        "bm25": Bm25,
    }
    return plain[name]()


def _embedder(model: str) -> Worker:
    from datapipe.weights import embedded_folder
    from datapipe.workers import LocalWorker, ModelSpec

    return LocalWorker([ModelSpec(model, str(embedded_folder(model)))])


def _embedded(worker: Worker, model: str, texts: Sequence[str]) -> dict[str, Float32]:
    """Unit vectors of the distinct texts."""
    from datapipe.workers import TextItem

    distinct = list(dict.fromkeys(texts))
    found = worker.run("embed", [TextItem(text) for text in distinct], model=model)
    rows = np.stack([result.vector for result in found])
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return dict(zip(distinct, rows, strict=True))


def _sentences(passages: Sequence[Passage]) -> list[str]:
    return [
        passage.text[start:end]
        for passage in passages
        for start, end in zip(passage.starts.tolist(), passage.ends.tolist(), strict=True)
    ]


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


class _Words:
    """Words of each text of a set, and in how many distinct texts each occurs."""

    def __init__(self, texts: Iterator[str] | Sequence[str]) -> None:
        self._of = {text: Counter(_words(text)) for text in dict.fromkeys(texts)}
        self._count = len(self._of)
        self._frequency = Counter(word for words in self._of.values() for word in words)
        self.mean_length = max(1.0, sum(words.total() for words in self._of.values()) / max(1, self._count))

    def of(self, text: str) -> Counter[str]:
        return self._of[text]

    def idf(self, word: str) -> float:
        return math.log((self._count + 1) / (self._frequency[word] + 0.5))

    def rsj(self, word: str) -> float:
        frequency = self._frequency[word]
        return math.log(1 + (self._count - frequency + 0.5) / (frequency + 0.5))
