"""What a pruner is shown while it learns: windows of a question and sentences, as places in a bank.

Bank -> Page (a question's document) -> Row -> Windows -> save / load
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from datapipe.storage.arrays import Bool, Int32, Int64, UInt8
    from provence.training.bank import Bank

__all__ = ["Page", "Row", "Template", "Windows", "fitted", "protocol_windows"]


class Template(NamedTuple):
    """Special tokens of a pair, and what is added to the bank's ids to get the model's.

    Attributes:
        before: Before the question.
        between: Between question and text.
        after: After the text.
        shift: Added to ids of words.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    shift: int = 0

    @property
    def special(self) -> int:
        """Tokens of the template."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows as places in a bank.

    Attributes:
        question: int32 (windows,).
        title: Title in front among the bank's texts, -1 for none, int32 (windows,).
        sentence: Sentences of all windows, int32 (units,).
        label: Whether the sentence is gold, uint8 (units,).
        at: Bounds of each window in the units, int64 (windows + 1,).
    """

    question: Int32
    title: Int32
    sentence: Int32
    label: UInt8
    at: Int64

    def __len__(self) -> int:
        return len(self.question)

    def holds_gold(self) -> Bool:
        """Whether a window has a gold sentence, bool (windows,)."""
        found: Bool = np.maximum.reduceat(self.label, self.at[:-1]) > 0 if len(self) else np.zeros(0, dtype=np.bool_)
        return found

    def save(self, path: Path) -> None:
        """Write an .npz, whole or not at all."""
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
        np.savez(temporary, **{item.name: getattr(self, item.name) for item in fields(self)})
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Windows:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{item.name: stored[item.name] for item in fields(cls)})

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Windows:
        """Lay rows flat."""
        lengths = [len(row.sentences) for row in rows]
        return cls(
            question=np.array([row.question for row in rows], dtype=np.int32),
            title=np.array([row.title for row in rows], dtype=np.int32),
            sentence=np.fromiter((s for row in rows for s in row.sentences), dtype=np.int32, count=sum(lengths)),
            label=np.fromiter((g for row in rows for g in row.gold), dtype=np.uint8, count=sum(lengths)),
            at=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )


class Row(NamedTuple):
    """One window: its question, title among the bank's texts or -1, sentences, and which of them are gold."""

    question: int
    title: int
    sentences: tuple[int, ...]
    gold: tuple[bool, ...]


def protocol_windows(bank: Bank, *, seed: int = 0, most: int | None = None, room: int = 508) -> Windows:
    """The held-out questions with the passages that the measuring protocol shows, without titles.

    Args:
        bank: Where they come from.
        seed: Of the passages without gold.
        most: Questions of each source at most; None takes all.
        room: Tokens of question and sentences of a window; the last sentences are left out if they are more.
    """
    from provence.evaluation.protocol import OTHERS, cut_lengths

    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for source in range(int(bank.source.max(initial=-1)) + 1):
        held = np.flatnonzero(bank.held & (bank.source == source))
        for question in np.sort(rng.permutation(held)[:most]).tolist():
            page = Page(bank, question)
            cuts = cut_lengths(bank.characters[page.first : page.last].tolist())
            gold = [cut for cut in cuts if any(cut[0] <= place < cut[1] for place in page.gold)]
            rest = [cut for cut in cuts if cut not in gold]
            chosen = sorted([*gold, *(rest[i] for i in rng.permutation(len(rest))[:OTHERS])])
            rows += [page.row(range(page.first + a, page.first + b), title=False) for a, b in chosen]
    return Windows.of([fitted(bank, row, room) for row in rows])


class Page:
    """A question's document: its sentences and which are gold."""

    def __init__(self, bank: Bank, question: int) -> None:
        self.bank, self.question = bank, question
        document = bank.document[question]
        self.first, self.last = int(bank.sentence_at[document]), int(bank.sentence_at[document + 1])
        self.gold = set(bank.gold[bank.gold_at[question] : bank.gold_at[question + 1]].tolist())

    def row(self, sentences: Sequence[int] | range, *, title: bool) -> Row:
        """A window of these sentences, of this document or others."""
        head = int(self.bank.title[self.bank.document[self.question]]) if title else -1
        gold = tuple(self.first <= s < self.last and s - self.first in self.gold for s in sentences)
        return Row(self.question, head, tuple(sentences), gold)


def fitted(bank: Bank, row: Row, room: int) -> Row:
    """Drop sentences from the ends, gold last, and then the title, until all fit."""
    used = int(bank.word_at[bank.asked[row.question] + 1] - bank.word_at[bank.asked[row.question]])
    if row.title >= 0:
        used += int(bank.word_at[row.title + 1] - bank.word_at[row.title])
    sizes = [int(bank.token_at[s + 1] - bank.token_at[s]) for s in row.sentences]
    low, high, total = 0, len(sizes), sum(sizes)
    while used + total > room and high - low > 1:
        if any(row.gold) and row.gold[high - 1] and not row.gold[low]:
            total -= sizes[low]
            low += 1
        else:
            high -= 1
            total -= sizes[high]
    title = row.title if used + total <= room else -1
    return Row(row.question, title, row.sentences[low:high], row.gold[low:high])
