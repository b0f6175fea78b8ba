"""Exact cuts through more rows than memory holds, by radix: 16 bits a pass, no sort.

`cuts_at` finds the rows at given positions of the difficulty order (key, then hash); `hash_cut` finds how far a budget
reaches in hash order. Both read the rows several times and keep one histogram of 65,536 counts a cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from datapipe.selection.keys import UInt32
    from datapipe.storage.arrays import Bool, Float64, Int64, UInt64

_DIGITS = 1 << 16
_GROUP = 64  # cuts refined at once: 32 MiB of histograms
_KEY_DIGITS, _HASH_DIGITS = 2, 4


class Cut(NamedTuple):
    """A place in the difficulty order: the row with this key and hash stands there."""

    key: int
    hash: int

    def reached_by(self, keys: UInt32, hashes: UInt64) -> Bool:
        """Tell of each row whether it stands at the cut or after it, bool (rows,)."""
        here = (keys == np.uint32(self.key)) & (hashes >= np.uint64(self.hash))
        reached: Bool = here | (keys > np.uint32(self.key))
        return reached


def cuts_at(rows: Callable[[], Iterator[tuple[UInt32, UInt64]]], positions: Sequence[int]) -> list[Cut]:
    """Return the row at each position of the order (key, hash).

    Six passes for every 64 positions; time rows * positions at worst, where all keys are equal.

    Args:
        rows: Starts a pass over (keys, hashes), uint32 and uint64 of equal length.
        positions: 0-based, each below the number of rows.
    """
    found: list[Cut] = []
    for start in range(0, len(positions), _GROUP):
        found += _refine(rows, list(positions[start : start + _GROUP]))
    return found


def _refine(rows: Callable[[], Iterator[tuple[UInt32, UInt64]]], positions: list[int]) -> list[Cut]:
    prefixes, offsets = [Cut(0, 0)] * len(positions), positions
    for depth in range(_KEY_DIGITS + _HASH_DIGITS):
        wanted = sorted(set(prefixes))
        counts = {prefix: np.zeros(_DIGITS, np.int64) for prefix in wanted}
        for keys, hashes in rows():
            _count(counts, keys, hashes, depth)
        ends = {prefix: np.cumsum(counts[prefix]) for prefix in wanted}
        for at, (prefix, offset) in enumerate(zip(prefixes, offsets, strict=True)):
            digit = int(np.searchsorted(ends[prefix], offset, side="right"))
            before = int(ends[prefix][digit - 1]) if digit else 0
            prefixes[at] = _extended(prefix, digit, depth)
            offsets[at] = offset - before
    return prefixes


def _extended(prefix: Cut, digit: int, depth: int) -> Cut:
    if depth < _KEY_DIGITS:
        return Cut(prefix.key << 16 | digit, 0)
    return Cut(prefix.key, prefix.hash << 16 | digit)


def _count(counts: dict[Cut, Int64], keys: UInt32, hashes: UInt64, depth: int) -> None:
    """Add the histogram of the next 16 bits of the rows that share each prefix."""
    if depth < _KEY_DIGITS:
        seen = keys >> np.uint32(32 - 16 * depth) if depth else np.zeros_like(keys)
        digits = (keys >> np.uint32(16 - 16 * depth)) & np.uint32(_DIGITS - 1)
        for prefix in counts:
            counts[prefix] += np.bincount(digits[seen == np.uint32(prefix.key)], minlength=_DIGITS)
        return
    step = depth - _KEY_DIGITS
    tied = np.isin(keys, np.array([prefix.key for prefix in counts], np.uint32))
    keys, hashes = keys[tied], hashes[tied]
    seen_hashes = hashes >> np.uint64(64 - 16 * step) if step else np.zeros_like(hashes)
    digits_of_hash = ((hashes >> np.uint64(48 - 16 * step)) & np.uint64(_DIGITS - 1)).astype(np.int64)
    for prefix in counts:
        same = (keys == np.uint32(prefix.key)) & (seen_hashes == np.uint64(prefix.hash))
        counts[prefix] += np.bincount(digits_of_hash[same], minlength=_DIGITS)


def hash_cut(rows: Callable[[], Iterator[tuple[UInt64, Float64]]], limit: int) -> int:
    """Return the least hash h such that the rows of smaller hash and the row of h weigh more than `limit` together.

    The rows of smaller hash than h are then the longest start of the hash order that weighs at most `limit`; 2^64
    where all rows fit. Four passes.

    Args:
        rows: Starts a pass over (hashes, weights), uint64 and float64 whole numbers of equal length.
        limit: Weight that the start may have, >= 0.
    """
    prefix, left = 0, float(limit)
    for depth in range(_HASH_DIGITS):
        weight_of = np.zeros(_DIGITS)
        for hashes, weights in rows():
            same = (
                (hashes >> np.uint64(64 - 16 * depth)) == np.uint64(prefix) if depth else np.ones(len(hashes), np.bool_)
            )
            digits = (hashes[same] >> np.uint64(48 - 16 * depth)) & np.uint64(_DIGITS - 1)
            weight_of += np.bincount(digits.astype(np.int64), weights[same], minlength=_DIGITS)
        ends = np.cumsum(weight_of)
        digit = int(np.searchsorted(ends, left, side="right"))
        if digit == _DIGITS:
            return 1 << 64
        left -= float(ends[digit - 1]) if digit else 0.0
        prefix = prefix << 16 | digit
    return prefix
