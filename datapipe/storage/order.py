"""Hash order: the random order of rows that depends on nothing but their ids and a seed.

key(row) = blake2b-64(row_id, key = seed), read big-endian; the smaller key comes first, equal keys by row id.
Independent of the order, cut and place of the rows, and nested: the first 10 % lie within the first 30 %.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError
from datapipe.storage.rowid import ids_to_arrow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datapipe.storage.arrays import Ids, UInt64

_SEEDS = 2**64


def hash_order(ids: Ids, *, seed: int) -> UInt64:
    """Key of each row in the random order of `seed`, uint64 (rows,); smaller is earlier. One blake2b call a row.

    Args:
        ids: Row ids, uint64 (rows, 2).
        seed: 0 <= seed < 2**64; the key of the hash as 8 bytes, big-endian.

    Raises:
        ConfigError: The seed is out of range.
    """
    if not 0 <= seed < _SEEDS:
        raise ConfigError(f"a seed lies between 0 and 2**64 - 1; got {seed}")
    start = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "big")).copy
    keys = []
    for row_id in ids_to_arrow(ids).to_pylist():
        row = start()
        row.update(row_id)
        keys.append(row.digest())
    return np.frombuffer(b"".join(keys), ">u8").astype(np.uint64)


def seed_for(purpose: str, seed: int) -> int:
    """Return the seed of another random order for a purpose, 0 <= it < 2**64.

    Two draws from one order are nested: a sample drawn by the run's own seed would be the very rows that a random
    choice keeps. A sample that is to stand for all rows takes an order of its own.
    """
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8, key=seed.to_bytes(8, "big")).digest(), "big")


def smallest(ids: Iterable[Ids], n: int, seed: int) -> Ids:
    """Return the `n` first rows in the random order of `seed`, first one first, uint64 (min(n, rows), 2).

    Streams: memory grows with n and the largest array of `ids`, not with their number.

    Args:
        ids: Arrays of row ids, uint64 (rows, 2) each; no id occurs twice.
        n: How many, >= 0.
        seed: As in `hash_order`.

    Raises:
        ConfigError: `n` is negative, or the seed is out of range.
    """
    if n < 0:
        raise ConfigError(f"the number of rows to take is at least 0; got {n}")
    first = np.empty((0, 3), np.uint64)
    waiting: list[UInt64] = []
    for part in ids:
        waiting.append(np.column_stack([hash_order(part, seed=seed), part]))
        if sum(map(len, waiting)) > n:
            first = _first([first, *waiting], n)
            waiting = []
    return _first([first, *waiting], n)[:, 1:].copy()


def _first(parts: list[UInt64], n: int) -> UInt64:
    """The n first rows of (key, hi, lo)."""
    rows = np.concatenate(parts)
    if len(rows) > n:
        rows = rows[rows[:, 0] <= np.partition(rows[:, 0], n)[n]]
    return rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))][:n]
