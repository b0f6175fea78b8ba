"""What a pruner is shown while it learns: questions with passages of many shapes, and which sentences are gold.

    Bank -> training_windows (one epoch) / protocol_windows (for choices) -> Windows

Passages of random length, in which gold stands at any place; passages of the same document without gold, and of other
documents; several passages in one window, so that evidence lies in several places; a share of windows with the title in
front, which is not scored. No more than a share `duplicates` of an epoch repeats question and passage (repeated passages
teach a pruner to keep everything).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapipe.storage.arrays import Bool, Int32, Int64, UInt8
    from provence.training.bank import Bank
    from provence.training.config import WindowConfig

__all__ = ["Template", "Windows", "protocol_windows", "training_windows"]

_MOST_RANDOM = 10
"""Sentences of a passage of random length, at most (Chirkova et al., arXiv 2501.16214, section 3)."""


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

    @classmethod
    def of(cls, rows: Sequence[_Row]) -> Windows:
        """Lay rows flat."""
        lengths = [len(row.sentences) for row in rows]
        return cls(
            question=np.array([row.question for row in rows], dtype=np.int32),
            title=np.array([row.title for row in rows], dtype=np.int32),
            sentence=np.fromiter((s for row in rows for s in row.sentences), dtype=np.int32, count=sum(lengths)),
            label=np.fromiter((g for row in rows for g in row.gold), dtype=np.uint8, count=sum(lengths)),
            at=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )


class _Row(NamedTuple):
    question: int
    title: int
    sentences: tuple[int, ...]
    gold: tuple[bool, ...]


def protocol_windows(bank: Bank, *, seed: int = 0, most: int | None = None) -> Windows:
    """The held-out questions with the passages that the measuring protocol shows, without titles.

    Args:
        bank: Where they come from.
        seed: Of the passages without gold.
        most: Questions of each source at most; None takes all.
    """
    from provence.evaluation.protocol import OTHERS, cut_lengths

    rng = np.random.default_rng(seed)
    rows: list[_Row] = []
    for source in range(int(bank.source.max(initial=-1)) + 1):
        held = np.flatnonzero(bank.held & (bank.source == source))
        for question in np.sort(rng.permutation(held)[:most]).tolist():
            page = _Page(bank, question)
            cuts = cut_lengths(bank.characters[page.first : page.last])
            gold = [cut for cut in cuts if any(cut[0] <= place < cut[1] for place in page.gold)]
            rest = [cut for cut in cuts if cut not in gold]
            chosen = sorted([*gold, *(rest[i] for i in rng.permutation(len(rest))[:OTHERS])])
            rows += [page.row(range(page.first + a, page.first + b), title=False) for a, b in chosen]
    return Windows.of([_fitted(bank, row, 512) for row in rows])


def training_windows(
    bank: Bank, config: WindowConfig, *, seed: int, repeats: Sequence[int] = (), specials: int = 4
) -> Windows:
    """An epoch: windows for every question that is not held out.

    Args:
        bank: Where they come from.
        config: Shares and sizes.
        seed: Another seed, other passages.
        repeats: How often each source's questions are drawn; empty for once.
        specials: Special tokens of a window.
    """
    sampler = _Sampler(bank, config, np.random.default_rng(seed), config.max_tokens - specials)
    rows: list[_Row] = []
    for question in np.flatnonzero(~bank.held).tolist():
        for _ in range(repeats[bank.source[question]] if len(repeats) else 1):
            rows += sampler.windows(question)
    return Windows.of(_without_duplicates(rows, config.duplicates))


def _without_duplicates(rows: list[_Row], share: float) -> list[_Row]:
    """Drop repetitions of question and passage that are more than this share of the rows."""
    known: set[tuple[int, tuple[int, ...]]] = set()
    once: list[_Row] = []
    again: list[_Row] = []
    for row in rows:
        key = (row.question, row.sentences)
        (again if key in known else once).append(row)
        known.add(key)
    most = int(len(once) * share / (1 - share)) if share < 1 else len(again)
    return once + again[:most]


class _Page:
    """A question's document: its sentences and which are gold."""

    def __init__(self, bank: Bank, question: int) -> None:
        self.bank, self.question = bank, question
        document = bank.document[question]
        self.first, self.last = int(bank.sentence_at[document]), int(bank.sentence_at[document + 1])
        self.gold = set(bank.gold[bank.gold_at[question] : bank.gold_at[question + 1]].tolist())

    def row(self, sentences: Sequence[int] | range, *, title: bool) -> _Row:
        """A window of these sentences, of this document or others."""
        head = int(self.bank.title[self.bank.document[self.question]]) if title else -1
        gold = tuple(self.first <= s < self.last and s - self.first in self.gold for s in sentences)
        return _Row(self.question, head, tuple(sentences), gold)


class _Sampler:
    """Draws the windows of a question."""

    def __init__(self, bank: Bank, config: WindowConfig, rng: np.random.Generator, room: int) -> None:
        self._bank, self._config, self._rng, self._room = bank, config, rng, room
        self._lengths = np.diff(bank.token_at)
        self._of_source = {
            int(source): np.unique(bank.document[(bank.source == source) & ~bank.held])
            for source in np.unique(bank.source)
        }

    def windows(self, question: int) -> Iterator[_Row]:
        """Windows with gold, without gold from the same document, and from another document."""
        page, rng, config = _Page(self._bank, question), self._rng, self._config
        spans = [self._around(page, int(place)) for place in self._chosen(page)]
        spans += [span for _ in range(config.near) if (span := self._clear(page)) is not None]
        if rng.random() < config.far % 1 or config.far >= 1:
            spans += [self._elsewhere(page) for _ in range(max(1, int(config.far)))]
        for span in dict.fromkeys(spans):
            sentences: Sequence[int] = span
            if rng.random() < config.joined_share:
                sentences = self._joined(page, span)
            row = page.row(sentences, title=bool(rng.random() < config.title_share))
            yield _fitted(self._bank, row, self._room)

    def _chosen(self, page: _Page) -> Sequence[int]:
        """Gold sentences that get a window of their own."""
        gold = sorted(page.gold)
        most = min(self._config.gold_windows, len(gold))
        return sorted(self._rng.choice(gold, size=most, replace=False).tolist()) if gold else []

    def _around(self, page: _Page, place: int) -> range:
        """A passage that holds a sentence, at any place in it."""
        low = high = page.first + place
        left, tokens = self._size()
        total = int(self._lengths[low])
        while left > 1 and (low > page.first or high < page.last - 1):
            down = high >= page.last - 1 or (low > page.first and self._rng.random() < self._lean)
            following = low - 1 if down else high + 1
            total += int(self._lengths[following])
            if total > tokens:
                break
            low, high, left = min(low, following), max(high, following), left - 1
        return range(low, high + 1)

    def _size(self) -> tuple[int, int]:
        """Sentences and tokens of a passage at most; also draws how far to the end its seed lies."""
        self._lean = self._rng.random()
        if self._rng.random() < self._config.random_share:
            return int(self._rng.integers(1, _MOST_RANDOM + 1)), self._room
        return 1 << 30, self._config.passage_tokens

    def _clear(self, page: _Page) -> range | None:
        """A passage of the document without gold; None after a few vain tries."""
        for _ in range(4):
            place = int(self._rng.integers(page.last - page.first))
            if place in page.gold:
                continue
            span = self._around(page, place)
            free = [s for s in span if s - page.first not in page.gold]
            if len(free) == len(span) or not page.gold:
                return span
        return None

    def _elsewhere(self, page: _Page) -> range:
        """A passage of another document of the set."""
        others = self._of_source[int(self._bank.source[page.question])]
        document = int(others[self._rng.integers(len(others))]) if len(others) else 0
        first, last = int(self._bank.sentence_at[document]), int(self._bank.sentence_at[document + 1])
        other = _Page(self._bank, page.question)
        other.first, other.last = first, last
        return self._around(other, int(self._rng.integers(last - first)))

    def _joined(self, page: _Page, span: range) -> list[int]:
        """The passage with others before and after it, of the same document or of others, while there is room."""
        parts = [list(span)]
        for _ in range(int(self._rng.integers(1, 4))):
            same = page.last - page.first > 2 * len(span) and self._rng.random() < 0.5  # noqa: PLR2004
            other = (
                self._around(page, int(self._rng.integers(page.last - page.first))) if same else self._elsewhere(page)
            )
            used = {s for part in parts for s in part}
            fresh = [s for s in other if s not in used]
            if sum(int(self._lengths[s]) for s in [*used, *fresh]) <= self._room:
                parts.insert(int(self._rng.integers(len(parts) + 1)), fresh)
        return [s for part in parts for s in part]


def _fitted(bank: Bank, row: _Row, room: int) -> _Row:
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
    return _Row(row.question, title, row.sentences[low:high], row.gold[low:high])
