"""An epoch of windows: passages of many shapes in which gold stands at any place.

    Bank, WindowConfig, seed -> training_windows -> Windows

Passages of random length; passages of the same document without gold, and of other documents of the set; several
passages in one window, so that evidence lies in several places; a share of windows with the title in front, which is
not scored. No more than a share `duplicates` of an epoch repeats question and passage: repeated passages teach a pruner
to keep everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from provence.training.windows import Page, Row, Windows, fitted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from provence.training.bank import Bank
    from provence.training.config import WindowConfig

__all__ = ["training_windows"]

_MOST_RANDOM = 10
"""Sentences of a passage of random length, at most (Chirkova et al., arXiv 2501.16214, section 3)."""

_MOST_JOINED = 3
"""Passages that join a passage in its window, at most."""

_TRIES = 4
"""Places that are tried for a passage without gold."""


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
    rows: list[Row] = []
    for question in np.flatnonzero(~bank.held).tolist():
        for _ in range(repeats[bank.source[question]] if len(repeats) else 1):
            rows += sampler.windows(question)
    return Windows.of(_without_duplicates(rows, config.duplicates))


def _without_duplicates(rows: list[Row], share: float) -> list[Row]:
    """Drop repetitions of question and passage that are more than this share of the rows."""
    known: set[tuple[int, tuple[int, ...]]] = set()
    once: list[Row] = []
    again: list[Row] = []
    for row in rows:
        key = (row.question, row.sentences)
        (again if key in known else once).append(row)
        known.add(key)
    most = int(len(once) * share / (1 - share)) if share < 1 else len(again)
    return once + again[:most]


class _Sampler:
    """Draws the windows of a question."""

    def __init__(self, bank: Bank, config: WindowConfig, rng: np.random.Generator, room: int) -> None:
        self._bank, self._config, self._rng, self._room = bank, config, rng, room
        self._lengths = np.diff(bank.token_at)
        self._lean = 0.5
        self._of_source = {
            int(source): np.unique(bank.document[(bank.source == source) & ~bank.held])
            for source in np.unique(bank.source)
        }

    def windows(self, question: int) -> Iterator[Row]:
        """Windows with gold, without gold from the same document, and from another document."""
        page, rng, config = Page(self._bank, question), self._rng, self._config
        spans = [self._around(page, int(place)) for place in self._chosen(page)]
        spans += [span for _ in range(config.near) if (span := self._clear(page)) is not None]
        far = int(config.far) + int(rng.random() < config.far % 1)
        spans += [self._elsewhere(page) for _ in range(far)]
        for span in dict.fromkeys(spans):
            sentences: Sequence[int] = span
            if rng.random() < config.joined_share:
                sentences = self._joined(page, span)
            row = page.row(sentences, title=bool(rng.random() < config.title_share))
            yield fitted(self._bank, row, self._room)

    def _chosen(self, page: Page) -> Sequence[int]:
        """Gold sentences that get a window of their own."""
        gold = sorted(page.gold)
        most = min(self._config.gold_windows, len(gold))
        return sorted(self._rng.choice(gold, size=most, replace=False).tolist()) if gold else []

    def _around(self, page: Page, place: int) -> range:
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
        """Sentences and tokens of a passage at most; also draws how often it grows towards the front."""
        self._lean = self._rng.random()
        if self._rng.random() < self._config.random_share:
            return int(self._rng.integers(1, _MOST_RANDOM + 1)), self._room
        return 1 << 30, self._config.passage_tokens

    def _clear(self, page: Page) -> range | None:
        """A passage of the document without gold; None after a few vain tries."""
        for _ in range(_TRIES):
            place = int(self._rng.integers(page.last - page.first))
            if place in page.gold:
                continue
            span = self._around(page, place)
            free = [s for s in span if s - page.first not in page.gold]
            if len(free) == len(span) or not page.gold:
                return span
        return None

    def _elsewhere(self, page: Page) -> range:
        """A passage of another document of the set."""
        others = self._of_source[int(self._bank.source[page.question])]
        document = int(others[self._rng.integers(len(others))]) if len(others) else 0
        first, last = int(self._bank.sentence_at[document]), int(self._bank.sentence_at[document + 1])
        other = Page(self._bank, page.question)
        other.first, other.last = first, last
        return self._around(other, int(self._rng.integers(last - first)))

    def _joined(self, page: Page, span: range) -> list[int]:
        """The passage with others before and after it, of the same document or of others, while there is room."""
        parts = [list(span)]
        sentences = page.last - page.first
        for _ in range(int(self._rng.integers(1, _MOST_JOINED + 1))):
            same = sentences > 2 * len(span) and self._rng.random() < 0.5  # noqa: PLR2004 - one of two
            other = self._around(page, int(self._rng.integers(sentences))) if same else self._elsewhere(page)
            used = {s for part in parts for s in part}
            fresh = [s for s in other if s not in used]
            if sum(int(self._lengths[s]) for s in [*used, *fresh]) <= self._room:
                parts.insert(int(self._rng.integers(len(parts) + 1)), fresh)
        return [s for part in parts for s in part]
