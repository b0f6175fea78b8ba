"""Training rows that quote an evaluation text: shared runs of 13 words, or all of a shorter text.

texts of the evaluation set -> gram_index (sorted hashes of runs of words) -> protect_contained (share of a text's runs)

The 13-word run is that of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C), which takes out a row for any one of
them; here a row must hold a share of one evaluation text, for stock phrases and names of works are runs of words too.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.dedup.exact import normalise_text
from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapipe.storage.arrays import Bool, Float32, Int64, UInt64

__all__ = ["GramIndex", "gram_index", "protect_contained"]

GRAM_WORDS = 13
"""Words in a run."""
MIN_WORDS = 8
"""Evaluation texts of fewer words are left to the other rules: everyday phrases stand in many an innocent row."""
COMMON_TEXTS = 16
"""A run of words that more evaluation texts than this share is boilerplate of the set and proves nothing."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")  # a CJK character is a word
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_HINT_SHIFT = np.uint64(44)  # leaves 20 bits
_CHUNK_ROWS = 2048  # texts hashed at once: their runs stay in the processor's cache


@dataclass(frozen=True, eq=False)
class GramIndex:
    """Runs of words of an evaluation set, for `protect_contained`.

    Attributes:
        grams: Hashes of the runs, ascending, uint64 (g,); a run that k evaluation texts share stands k times.
        owners: The evaluation row of each run, int64 (g,).
        totals: Different runs of each evaluation row, int64 (m,); 0 for those this rule cannot judge.
        sizes: The lengths of run in use, in words: `GRAM_WORDS` and the lengths of shorter texts, ascending.
        hints: Whether any run's hash begins with these bits, bool (2^20,): spares most searches.
    """

    grams: UInt64
    owners: Int64
    totals: Int64
    sizes: tuple[int, ...]
    hints: Bool


def gram_index(texts: Sequence[str]) -> GramIndex:
    """Index the runs of 13 words of evaluation texts, and whole texts of 8 to 12 words; 16 bytes a word.

    Runs that more than `COMMON_TEXTS` texts share are left out. Texts are compared as `normalise_text` leaves them,
    without their punctuation; a CJK character counts as a word.
    """
    words, lengths = _word_hashes(texts)
    own = np.minimum(lengths, GRAM_WORDS)
    sizes = tuple(int(size) for size in np.unique(own[own >= MIN_WORDS]))
    parts = [(grams[own[rows] == size], rows[own[rows] == size]) for size, grams, rows in _runs(words, lengths, sizes)]
    grams = np.concatenate([np.empty(0, np.uint64), *(part[0] for part in parts)])
    owners = np.concatenate([np.empty(0, np.int64), *(part[1] for part in parts)])
    order = np.lexsort((owners, grams))
    grams, owners = grams[order], owners[order]
    fresh = np.ones(len(grams), np.bool_)
    fresh[1:] = (grams[1:] != grams[:-1]) | (owners[1:] != owners[:-1])
    grams, owners = grams[fresh], owners[fresh]
    _, inverse, counts = np.unique(grams, return_inverse=True, return_counts=True)
    rare = counts[inverse] <= COMMON_TEXTS
    hints = np.zeros(1 << 20, np.bool_)
    hints[(grams[rare] >> _HINT_SHIFT).astype(np.int64)] = True
    totals = np.bincount(owners[rare], minlength=len(lengths)).astype(np.int64)
    return GramIndex(grams=grams[rare], owners=owners[rare], totals=totals, sizes=sizes, hints=hints)


def protect_contained(texts: Sequence[str], index: GramIndex, *, share: float = 0.5) -> tuple[Bool, Int64, Float32]:
    """Find rows that quote an evaluation text. Time words * 13.

    Args:
        texts: Training rows.
        index: The evaluation set, see `gram_index`.
        share: Part of an evaluation text's runs that the row must hold, 0 < share <= 1. One changed word breaks 13
            runs, so 0.5 lets one word differ in a text of about 40; a tiny share is the rule of GPT-3, any one run.

    Returns:
        Whether each row is protected, bool (rows,); the evaluation row that it holds most of (the first of equals),
        int64 (rows,), -1 if it shares no run; that share, float32 (rows,) in [0, 1].

    Raises:
        ConfigError: `share` is out of range.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is a part of a text's runs of words, 0 < share <= 1; got {share}")
    best = np.full(len(texts), -1, np.int64)
    similarity = np.zeros(len(texts), np.float32)
    for start in range(0, len(texts), _CHUNK_ROWS):
        words, lengths = _word_hashes(texts[start : start + _CHUNK_ROWS])
        runs = _runs(words, lengths, index.sizes)
        pairs = [_shared(grams, rows, index) for _, grams, rows in runs]
        found = np.unique(np.concatenate([np.empty((0, 3), np.int64), *pairs]), axis=0)
        if len(found):
            couples, held = np.unique(found[:, :2], axis=0, return_counts=True)
            shares = (held / index.totals[couples[:, 1]]).astype(np.float32)
            order = np.lexsort((couples[:, 1], -shares, couples[:, 0]))
            rows, first = np.unique(couples[order, 0], return_index=True)
            best[start + rows] = couples[order, 1][first]
            similarity[start + rows] = shares[order][first]
    return similarity >= np.float32(share), best, similarity


def _word_hashes(texts: Sequence[str]) -> tuple[UInt64, Int64]:
    """Return 64-bit hashes of all words in order, and the number of words of each text."""
    known: dict[str, int] = {}
    values: list[int] = []
    lengths = np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        words = _WORD.findall(normalise_text(text))
        lengths[row] = len(words)
        for word in words:
            value = known.get(word)
            if value is None:
                digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                value = known[word] = int.from_bytes(digest, "big")
            values.append(value)
    return np.array(values, dtype=np.uint64), lengths


def _runs(words: UInt64, lengths: Int64, sizes: tuple[int, ...]) -> Iterator[tuple[int, UInt64, Int64]]:
    """Yield, for each size, the hash of every run of so many words inside a text, and the place of that text."""
    texts = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    hashes = np.zeros(len(words), np.uint64)
    for size in range(1, max(sizes, default=0) + 1):
        count = len(words) - size + 1
        if count < 1:
            return
        hashes = (hashes[:count] ^ words[size - 1 :]) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
        if size in sizes:
            inside = texts[:count] == texts[size - 1 :]
            yield size, hashes[inside] + np.uint64(size), texts[:count][inside]


def _shared(grams: UInt64, texts: Int64, index: GramIndex) -> Int64:
    """Return (row, evaluation row, place of the run in the index) of every run that both hold, int64 (pairs, 3)."""
    likely = index.hints[(grams >> _HINT_SHIFT).astype(np.int64)]
    grams, texts = grams[likely], texts[likely]
    left = np.searchsorted(index.grams, grams, side="left")
    counts = np.searchsorted(index.grams, grams, side="right") - left
    rows = np.repeat(texts, counts)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts - left, counts)
    return np.column_stack([rows, index.owners[places], places]).astype(np.int64)
