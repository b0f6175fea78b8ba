"""Which rows contradict others, and what to do about it.

    paper           concepts of each row -> graph -> a row is refused whose known concepts were never seen together
    contradiction   the same words asked, answers far apart -> the row that fewer others agree with goes
    off

`paper` is the rule of PASER's published program (arXiv 2502.12594, "NTEM", concept consistency graph), made anew from
its description for comparison: it refuses what repeats, so mathematics and code, and depends on the order of the rows.
Ours looks at answers and at no order but that of the ranking. It compares what is asked word by word: a vector of a
passage and a question is that of the passage, so near vectors ask different things. Raises `ConfigError`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datapipe.storage.arrays import Bool, Float32, Int64, UInt64

Conflicts = Literal["contradiction", "paper", "off"]
CONFLICTS: tuple[str, ...] = get_args(Conflicts)

OTHER_ANSWER = 0.5
"""Cosine below which two answers say something else."""
MOST_ANSWERS = 64
"""Rows that ask the same up to which they are one question; more are a task that has no one answer."""
_CUT = (1_500, 500, 1_000)
"""Characters of instruction, input and answer that concepts are taken from."""
_SPLIT = re.compile(r"[^\w'-]+|(?<=\w)[.,;:!?]+\s*")
_ASKED = re.compile(r"\w+|[^\w\s.,;:!?\"'`\u2018-\u201d\u2026]")
_ARTICLES = ("a", "an", "the", "this", "that", "these", "those")
_FILLERS = frozenset(
    (*_ARTICLES, "of", "to", "for", "and", "is", "are", "be", "please", "can", "could", "would", "you")
)
"""Words that are in or out without another thing being asked for."""
_PUNCTUATION = re.compile(r"[.,;:!?()\[\]{}\"“”\n\r\t/\\|]+")


@dataclass(frozen=True, eq=False)
class Verdict:
    """What became of each row.

    Attributes:
        kept: bool (rows,).
        against: The row that a refused one contradicts, int64 (rows,); -1 where there is none.
    """

    kept: Bool
    against: Int64


def concepts(*texts: str) -> frozenset[str]:
    """Runs of words between stop words and punctuation, lower case, as RAKE takes them (Rose et al. 2010)."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    found: set[str] = set()
    for text in texts:
        for phrase in _PUNCTUATION.split(text.lower()):
            run: list[str] = []
            for word in [*_SPLIT.split(phrase), ""]:
                if word and word not in ENGLISH_STOP_WORDS:
                    run.append(word)
                elif run:
                    found.add(" ".join(run))
                    run = []
    return frozenset(found)


class ConceptGraph:
    """Which concepts stood together in a row that was accepted; one row is asked after the other."""

    def __init__(self) -> None:
        self._seen_in: dict[str, set[int]] = {}

    def clash(self, row: int, texts: tuple[str, str, str]) -> int:
        """Accept a row and return -1, or return the accepted row that stands against it.

        Args:
            row: Its number.
            texts: Instruction, input and answer; cut to 1,500, 500 and 1,000 characters.
        """
        own = concepts(*(text[:cut] for text, cut in zip(texts, _CUT, strict=True)))
        seen = self._seen_in
        known = [each for each in sorted(own) if each in seen]
        for at, one in enumerate(known):
            for other in known[at + 1 :]:
                if seen[one].isdisjoint(seen[other]):
                    return max(seen[one])
        for each in own:
            seen.setdefault(each, set()).add(row)
        return -1


def by_concepts(rows: Iterable[tuple[str, str, str]]) -> Verdict:
    """The published rule: refuse a row iff two of its concepts are both known and were never in one accepted row.

    Args:
        rows: Instruction, input and answer of each, in the order in which they are asked.
    """
    graph = ConceptGraph()
    against = np.array([graph.clash(row, texts) for row, texts in enumerate(rows)], np.int64)
    return Verdict(against < 0, against)


def asked_keys(rows: Iterable[Sequence[str]]) -> UInt64:
    """A number for what each row asks, uint64 (rows,): equal where the same words are asked in the same order.

    Case, punctuation and articles do not count; signs and digits do.

    Args:
        rows: What was said before the answer, in order: earlier turns, instruction, input.
    """
    keys = []
    for parts in rows:
        words = _ASKED.findall("\n".join(parts).lower())
        told = [word for word in words if word not in _FILLERS] or words
        keys.append(hashlib.blake2b("\n".join(told).encode(), digest_size=8).digest())
    return np.frombuffer(b"".join(keys), ">u8").astype(np.uint64)


def by_contradiction(asked: UInt64, answers: Float32, rank: Int64, *, other: float = OTHER_ANSWER) -> Verdict:
    """Refuse a row that answers otherwise than a better one what is the same question.

    Rows that ask the same contradict each other if their answers' cosine is below `other`, and else agree. They are
    taken by how many more agree than contradict, most first, then by rank; one is refused if it contradicts one taken.
    The order of the file plays no part. What more than 64 rows ask has many answers, and none is refused.

    Args:
        asked: Of `asked_keys`, uint64 (rows,).
        answers: Vectors of the answers, float32 (rows, dim), unit length.
        rank: Place of each row in the order of preference, int64 (rows,), all different.
        other: Cosine of answers that say something else.

    Raises:
        ConfigError: The arrays differ in rows.
    """
    if not len(asked) == len(answers) == len(rank):
        raise ConfigError(f"{len(asked)} questions, {len(answers)} answers and {len(rank)} ranks are of one pool")
    verdict = Verdict(np.ones(len(asked), np.bool_), np.full(len(asked), -1, np.int64))
    order = np.lexsort((rank, asked))
    for start, end in _groups(asked[order]):
        if 1 < end - start <= MOST_ANSWERS:
            _settle(order[start:end], answers, other, verdict)
    return verdict


def _groups(keys: UInt64) -> Iterable[tuple[int, int]]:
    """Start and end of each run of equal keys."""
    starts = [0, *(np.flatnonzero(keys[1:] != keys[:-1]) + 1).tolist()]
    return zip(starts, [*starts[1:], len(keys)], strict=True)


def _settle(rows: Int64, answers: Float32, other: float, verdict: Verdict) -> None:
    """Take the rows of one question, in order of rank, that do not contradict each other; write down the others."""
    own = answers[rows]
    clashing = own @ own.T < other
    np.fill_diagonal(clashing, val=False)
    if not clashing.any():
        return
    taken: list[int] = []
    for place in np.argsort(clashing.sum(1), kind="stable").tolist():
        better = [each for each in taken if clashing[place, each]]
        if better:
            verdict.kept[rows[place]] = False
            verdict.against[rows[place]] = rows[min(better)]
        else:
            taken.append(place)


def acceptance(kept: Bool, labels: Int64, *, clusters: int) -> Sequence[float]:
    """Part of each cluster's rows that were kept, 0 ... 1; 1 for an empty cluster."""
    rows = np.bincount(labels, minlength=clusters)
    stayed = np.bincount(labels[kept], minlength=clusters)
    share: list[float] = np.where(rows > 0, stayed / np.maximum(rows, 1), 1.0).tolist()
    return share
