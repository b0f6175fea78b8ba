"""Which rows contradict others, and what to do about it.

    paper           concepts of each row -> graph -> a row is refused whose known concepts were never seen together
    contradiction   near-equal instructions with answers far apart -> the row that fewer others agree with goes
    off

`paper` is the rule of PASER's published program (arXiv 2502.12594, "NTEM", concept consistency graph), made anew from
its description for comparison: it refuses what repeats, so mathematics and code, and depends on the order of the rows.
Ours looks at answers and at no order but that of the ranking. Raises `ConfigError`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datapipe.storage.arrays import Bool, Float32, Int64

Conflicts = Literal["contradiction", "paper", "off"]
CONFLICTS: tuple[str, ...] = get_args(Conflicts)

SAME_QUESTION, OTHER_ANSWER = 0.95, 0.5
_NEAR = 15
_CUT = (1_500, 500, 1_000)
"""Characters of instruction, input and answer that concepts are taken from."""
_SPLIT = re.compile(r"[^\w'-]+|(?<=\w)[.,;:!?]+\s*")
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


def by_contradiction(
    questions: Float32,
    answers: Float32,
    rank: Int64,
    *,
    same: float = SAME_QUESTION,
    other: float = OTHER_ANSWER,
    device: str = "cpu",
    threads: int | None = None,
) -> Verdict:
    """Refuse a row that answers otherwise than a better one what is nearly the same question.

    Two rows contradict each other if their questions' cosine is at least `same` and their answers' below `other`, and
    agree if both are near. Rows are taken by how many more of their 15 nearest agree than contradict, most first, then
    by rank; one is refused if it contradicts one taken. The order of the file plays no part.

    Args:
        questions: Vectors of instruction and input, float32 (rows, dim), unit length.
        answers: Vectors of the answers, float32 (rows, dim), unit length.
        rank: Place of each row in the order of preference, int64 (rows,), all different.
        same: Cosine of questions that ask the same.
        other: Cosine of answers that say something else.
        device: Where neighbours are searched.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.

    Raises:
        ConfigError: The arrays differ in rows.
    """
    from datapipe.paser.graph import neighbours

    if not len(questions) == len(answers) == len(rank):
        raise ConfigError(f"{len(questions)} questions, {len(answers)} answers and {len(rank)} ranks are of one pool")
    count = len(questions)
    verdict = Verdict(np.ones(count, np.bool_), np.full(count, -1, np.int64))
    if count < 2:  # noqa: PLR2004 - nobody to contradict
        return verdict
    found = neighbours(questions, k=min(_NEAR, count - 1), device=device, threads=threads)
    near = (found.rows >= 0) & (found.cosines >= same)
    left, place = np.nonzero(near)
    right = found.rows[left, place]
    alike = np.einsum("ij,ij->i", answers[left], answers[right])
    clashing = alike < other
    support = np.bincount(left[~clashing], minlength=count) - np.bincount(left[clashing], minlength=count)
    opposed: dict[int, set[int]] = {}
    for one, two in zip(left[clashing].tolist(), right[clashing].tolist(), strict=True):
        opposed.setdefault(one, set()).add(two)
        opposed.setdefault(two, set()).add(one)
    taken: set[int] = set()
    for row in sorted(opposed, key=lambda each: (-int(support[each]), int(rank[each]))):
        better = opposed[row] & taken
        if better:
            verdict.kept[row] = False
            verdict.against[row] = min(better, key=lambda each: int(rank[each]))
        else:
            taken.add(row)
    return verdict


def acceptance(kept: Bool, labels: Int64, *, clusters: int) -> Sequence[float]:
    """Part of each cluster's rows that were kept, 0 ... 1; 1 for an empty cluster."""
    rows = np.bincount(labels, minlength=clusters)
    stayed = np.bincount(labels[kept], minlength=clusters)
    share: list[float] = np.where(rows > 0, stayed / np.maximum(rows, 1), 1.0).tolist()
    return share
