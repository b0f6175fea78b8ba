"""Nearest rows to points of a plane by L1, exactly, where both numbers of a row are bfloat16.

    bits -> ordered keys (uint16) -> strips of root n rows or more by the first number, inside them by the second
    -> a reach from the strips around the point -> all rows within that reach -> the nearest

Sorting is three counting sorts of 16-bit keys. A strip is a range of first numbers, so rows of one place lie side by
side; of those only as many are held as can be asked for. No row outside the reach is looked at: a search in n rows
takes time in the order of root n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32, Float64, Int64

_AT_ONCE = 1 << 18  # rows looked at in one step
_ROW = np.uint64(0xFFFFFFFF)
_SIGN = np.uint16(0x8000)
_LEAST, _MOST = 0x0080, 0xFF80  # keys of finite numbers, _LEAST <= key < _MOST


def ordered(bits: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Keys that ascend as the bfloat16 numbers with these bits do, equal for both zeros; uint16 of the same shape."""
    flipped = np.where(bits >> 15, ~bits, bits | _SIGN)
    keys: NDArray[np.uint16] = np.where(bits == _SIGN, _SIGN, flipped).astype(np.uint16)
    return keys


def value_of(keys: NDArray[np.uint16] | Int64) -> Float32:
    """The numbers that have these keys, float32 of the same shape."""
    key = keys.astype(np.uint16)
    bits = np.where(key >> 15, key & np.uint16(0x7FFF), ~key).astype("<u4")
    values: Float32 = np.left_shift(bits, 16, out=bits).view("<f4")
    return values


_VALUES = value_of(np.arange(_LEAST, _MOST)).astype(np.float64)


class Strips:
    """Rows of a plane, ready to be searched. Time rows; memory 40 bytes a row.

    Args:
        x: `ordered` keys of the first numbers, uint16 (rows,); 1 <= rows <= 2^32.
        y: Of the second.
        most: Neighbours that will be asked for at most, >= 1.
    """

    def __init__(self, x: NDArray[np.uint16], y: NDArray[np.uint16], *, most: int) -> None:
        counts = np.bincount(x, minlength=1 << 16)
        before = np.cumsum(counts) - counts
        # A strip holds whole values of x, and with the one before it at least `width` rows.
        width = max(round(len(x) ** 0.5), most)
        held = np.flatnonzero(counts)
        used, strips = np.unique(np.minimum(before[held], max(len(x) - width, 0)) // width, return_inverse=True)
        strip_of = np.zeros(1 << 16, np.uint16)
        strip_of[held] = strips
        rows = np.argsort(x, kind="stable")
        rows = rows[np.argsort(y[rows], kind="stable")]
        rows = rows[np.argsort(strip_of[x[rows]], kind="stable")]
        rows = rows[_lowest(x[rows], y[rows], most)]
        self._rows = rows.astype(np.uint64)
        x, y = x[rows], y[rows]
        self._x, self._y = value_of(x).astype(np.float64), value_of(y).astype(np.float64)
        self._code = (strip_of[x].astype(np.int64) << 16) | y
        first = np.searchsorted(strips, np.arange(len(used)))
        self._low = value_of(held[first]).astype(np.float64)
        self._high = value_of(held[np.append(first[1:], len(held)) - 1]).astype(np.float64)

    def nearest(self, points: Float64, count: int) -> tuple[Int64, Float64]:
        """The `count` rows nearest to each point, nearest first, int64, and their distances, float64 (points, count).

        Distances are compared as float32; ties go to the lower row.

        Args:
            points: float64 (points, 2).
            count: 1 <= count <= rows, and at most `most`.
        """
        best = np.empty((len(points), count), np.uint64)
        query, begin, end = self._spans(points, self._reach(points, count))
        found = np.bincount(query, end - begin, minlength=len(points)).astype(np.int64)
        pairs = np.searchsorted(query, np.arange(len(points) + 1))
        order = np.argsort(found, kind="stable")
        start = 0
        while start < len(order):
            # Each point takes the room of the last, which has the most rows.
            room_of = found[order[start:]] * np.arange(1, len(order) - start + 1)
            stop = start + max(int(np.searchsorted(room_of, _AT_ONCE, side="right")), 1)
            some = order[start:stop]
            spans = _within(pairs[some], pairs[some + 1])[1]
            owner, places = _within(begin[spans], end[spans])
            keys = self._keys(places, points[query[spans][owner]])
            room = np.full((len(some), int(found[some[-1]])), np.iinfo(np.uint64).max)
            room[np.arange(room.shape[1]) < found[some, None]] = keys
            best[some] = room.min(axis=1, keepdims=True) if count == 1 else np.sort(room, axis=1)[:, :count]
            start = stop
        return (best & _ROW).astype(np.int64), _distance_of(best)

    def _keys(self, places: Int64, points: Float64) -> NDArray[np.uint64]:
        """The distance of a place to a point, and below it the row, as one number that sorts by both."""
        apart = np.abs(self._x[places] - points[:, 0]) + np.abs(self._y[places] - points[:, 1])
        high = apart.astype("<f4").view("<u4").astype(np.uint64)
        keys: NDArray[np.uint64] = (high << np.uint64(32)) | self._rows[places]
        return keys

    def _reach(self, points: Float64, count: int) -> Float64:
        """A distance within which each point has `count` rows: that of the last of some rows around it."""
        own = np.maximum(np.searchsorted(self._low, points[:, 0], side="right") - 1, 0)
        height = np.searchsorted(_VALUES, points[:, 1]) + _LEAST
        width = count + 2
        apart = []
        for strip in (own - 1, own, own + 1):
            low, end = self._bounds(strip, 0), self._bounds(strip, _MOST)
            begin = np.clip(self._bounds(strip, height) - width // 2, low, np.maximum(end - width, low))
            places = begin[:, None] + np.arange(width)
            inside = places < end[:, None]
            places[~inside] = 0
            away = np.abs(self._x[places] - points[:, :1]) + np.abs(self._y[places] - points[:, 1:])
            apart.append(np.where(inside, away, np.inf))
        reach: Float64 = np.partition(np.concatenate(apart, axis=1), count - 1, axis=1)[:, count - 1]
        return reach

    def _spans(self, points: Float64, reach: Float64) -> tuple[Int64, Int64, Int64]:
        """Ranges of places that hold all rows within reach: the point of each, ascending, its begin and its end."""
        # A little further: distances are rounded sums, and equal as float32 within 2^-23 of themselves.
        reach = reach * (1 + 2.0**-22) + 1e-12 * np.abs(points).sum(axis=1) + 1e-44
        first = np.searchsorted(self._high, points[:, 0] - reach)
        last = np.searchsorted(self._low, points[:, 0] + reach, side="right")
        query, strip = _within(first, last)
        x, y = points[query].T
        left = reach[query] - np.maximum(np.maximum(self._low[strip] - x, x - self._high[strip]), 0.0)
        begin = self._bounds(strip, np.searchsorted(_VALUES, y - left) + _LEAST)
        end = self._bounds(strip, np.searchsorted(_VALUES, y + left, side="right") + _LEAST)
        return query, begin, end

    def _bounds(self, strip: Int64, key: Int64 | int) -> Int64:
        """The first place of each strip whose second number has this key or a greater one."""
        return np.searchsorted(self._code, (strip << 16) | key).astype(np.int64)


def _distance_of(keys: NDArray[np.uint64]) -> Float64:
    return (keys >> np.uint64(32)).astype("<u4").view("<f4").astype(np.float64)


def _lowest(x: NDArray[np.uint16], y: NDArray[np.uint16], most: int) -> Int64:
    """Places of the first `most` of equal neighbours, int64 (n,)."""
    new = np.append(True, (x[1:] != x[:-1]) | (y[1:] != y[:-1]))
    starts = np.flatnonzero(new)
    return np.flatnonzero(np.arange(len(x)) - starts[np.cumsum(new) - 1] < most)


def _within(begin: Int64, end: Int64) -> tuple[Int64, Int64]:
    """All whole numbers of some ranges in turn: the range that each is of, and the number, int64 (n,)."""
    sizes = np.maximum(end - begin, 0)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes - begin, sizes)
