"""The rows of the pool, checked and reduced to the few numbers that a selection needs, on scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from datapipe.errors import SelectionError
from datapipe.selection.keys import hard_keys
from datapipe.selection.spool import Spool
from datapipe.storage.order import hash_order
from datapipe.storage.rowid import ids_to_hex

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from datapipe.selection.keys import UInt32
    from datapipe.selection.result import ScoreBatch
    from datapipe.storage.arrays import Bool, Float32, Ids, Int32, Int64, UInt64

_HASH_ROWS = 1 << 16  # rows hashed at once: a hash passes through a few Python objects


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a plan and a budget ask of the batches.

    Attributes:
        groups: Number of group names, where the plan has strata by group.
        exclusions: Number of exclusion slugs.
        tokens: The budget counts tokens.
        weights: Scores are sampling weights, so none is negative.
        places: The batches bring places.
    """

    groups: int | None
    exclusions: int
    tokens: bool
    weights: bool
    places: bool = False


class Chunk(NamedTuple):
    """Rows of the pool: number of all rows, key, hash, group (0 without), weight (1, or tokens), place (0 without)."""

    rows: Int64
    keys: UInt32
    hashes: UInt64
    groups: Int32
    weights: Int64
    places: Float32

    def where(self, mask: Bool) -> Chunk:
        """Return the rows where `mask`, bool (rows,), holds."""
        rows, keys, hashes, groups, weights, places = self
        return Chunk(rows[mask], keys[mask], hashes[mask], groups[mask], weights[mask], places[mask])


class Pool:
    """The rows not excluded, on scratch; a context manager.

    Attributes:
        ends: Rows up to the end of each batch, excluded ones too.
        excluded: Rows by exclusion.
    """

    def __init__(self, folder: Path, needs: Needs) -> None:
        columns: dict[str, Any] = {"rows": np.int64, "keys": np.uint32, "hashes": np.uint64}
        if needs.groups is not None:
            columns["groups"] = np.int32
        if needs.tokens:
            columns["weights"] = np.int32
        if needs.places:
            columns["places"] = np.float32
        self._needs = needs
        self.spool = Spool(folder, columns)
        self.ends: list[int] = []
        self.excluded = np.zeros(needs.exclusions, np.int64)
        self._last: Ids | None = None

    def __enter__(self) -> Self:
        self.spool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.spool.__exit__(kind, error, trace)

    @property
    def size(self) -> int:
        """Rows of the pool."""
        return self.spool.rows

    def fill(self, batches: Iterable[ScoreBatch], *, seed: int) -> None:
        """Take all batches in.

        Raises:
            SelectionError: A score is not finite (or negative where it is a weight), a code names nothing, an array is
                missing or of another length, or row ids do not ascend; names the row.
        """
        for batch in batches:
            in_pool = self._checked(batch)
            start = self.ends[-1] if self.ends else 0
            self.ends.append(start + len(batch.ids))
            columns: dict[str, Any] = {
                "rows": start + np.flatnonzero(in_pool),
                "keys": hard_keys(batch.scores[in_pool]),
                "hashes": _hashes(batch.ids[in_pool], seed=seed),
            }
            if self._needs.groups is not None and batch.groups is not None:
                columns["groups"] = batch.groups[in_pool]
            if self._needs.tokens and batch.tokens is not None:
                columns["weights"] = batch.tokens[in_pool]
            if self._needs.places and batch.places is not None:
                columns["places"] = batch.places[in_pool]
            self.spool.add(columns)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the pool in the order of rows."""
        names = ["rows", "keys", "hashes", *(["groups"] if self._needs.groups is not None else [])]
        names += [name for name in ("weights", "places") if name in self.spool.names]
        for columns in self.spool.chunks(*names):
            named = dict(zip(names, columns, strict=True))
            count = len(named["rows"])
            yield Chunk(
                named["rows"],
                named["keys"],
                named["hashes"],
                named.get("groups", np.zeros(count, np.int32)),
                named.get("weights", np.ones(count, np.int64)).astype(np.int64, copy=False),
                named.get("places", np.zeros(count, np.float32)),
            )

    def _checked(self, batch: ScoreBatch) -> Bool:
        """Tell which rows are in the pool, bool (rows,), once the batch has been found usable."""
        ids, needs = batch.ids, self._needs
        self._check_columns(batch)
        self._check_order(ids)
        in_pool: Bool
        if batch.excluded is None:
            in_pool = np.ones(len(ids), np.bool_)
        else:
            _refuse(ids, (batch.excluded < -1) | (batch.excluded >= needs.exclusions), "names no exclusion")
            in_pool = batch.excluded < 0
            self.excluded += np.bincount(batch.excluded[~in_pool], minlength=needs.exclusions)
        _refuse(ids, in_pool & ~np.isfinite(batch.scores), "has a score that is not finite")
        if needs.weights:
            _refuse(ids, in_pool & (batch.scores < 0), "has a negative score, which cannot be a sampling weight")
        if needs.groups is not None and batch.groups is not None:
            _refuse(ids, in_pool & ((batch.groups < 0) | (batch.groups >= needs.groups)), "names no group")
        if needs.tokens and batch.tokens is not None:
            _refuse(ids, in_pool & (batch.tokens < 0), "has a negative number of tokens")
        if needs.places and batch.places is not None:
            _refuse(ids, in_pool & ~((batch.places >= 0) & (batch.places <= 1)), "has a place outside of 0 to 1")
        return in_pool

    def _check_columns(self, batch: ScoreBatch) -> None:
        for name in ("scores", "groups", "excluded", "tokens", "places"):
            column = getattr(batch, name)
            if column is not None and len(column) != len(batch.ids):
                raise SelectionError(f"A batch has {len(batch.ids)} row ids and {len(column)} {name}.")
        if self._needs.groups is not None and batch.groups is None:
            raise SelectionError("The plan's strata are groups, but a batch has none.")
        if self._needs.tokens and batch.tokens is None:
            raise SelectionError("The budget counts tokens, but a batch has none.")
        if self._needs.places and batch.places is None:
            raise SelectionError("The density is taken at the rows' places, but a batch has none.")

    def _check_order(self, ids: Ids) -> None:
        if self._last is not None:
            ids = np.concatenate([self._last, ids])
        high, low = ids[:, 0], ids[:, 1]
        falls = (high[1:] < high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] <= low[:-1]))
        _refuse(ids[1:], falls, "does not come after the row before it; batches are sorted by row id, each row once")
        self._last = ids[-1:].copy() if len(ids) else self._last


def _hashes(ids: Ids, *, seed: int) -> UInt64:
    hashes = np.empty(len(ids), np.uint64)
    for start in range(0, len(ids), _HASH_ROWS):
        hashes[start : start + _HASH_ROWS] = hash_order(ids[start : start + _HASH_ROWS], seed=seed)
    return hashes


def _refuse(ids: Ids, wrong: Bool, fault: str) -> None:
    if wrong.any():
        at = int(np.argmax(wrong))
        raise SelectionError(f"Row {ids_to_hex(ids[at : at + 1])[0]} {fault}.")
