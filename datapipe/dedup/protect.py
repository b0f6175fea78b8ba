"""Training rows that an evaluation set holds already, found by three rules, each with its evidence.

    exact      protect_exact       equal text keys (see `datapipe.dedup.exact`)
    contained  protect_contained   the row quotes the evaluation text (see `datapipe.dedup.contained`)
    near       protect_near        cosine of the two vectors at or above a threshold

The rules see different things. Vectors find a reworded copy of the same length and miss an evaluation text inside a
longer row, whose vector speaks of all the rest; runs of words find the quotation and miss the rewording. Each rule
names, for each row, the evaluation row and the similarity; `combine_matches` makes one list of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError, VectorError

if TYPE_CHECKING:
    from datapipe.storage.arrays import Bool, Float32, Float64, Ids, Int64, UInt64

__all__ = [
    "RULES",
    "Matches",
    "combine_matches",
    "protect_exact",
    "protect_near",
    "sort_keys",
]

RULES = ("exact", "contained", "near")
"""Names of the rules, the strictest first."""

NEAR = 0.98
"""Default cosine of `protect_near`, from pairs across the splits of real sets (all-MiniLM-L6-v2), 18 a band, by eye.

BANKING77, short questions: one sentence with a word or two changed in 18 of 18 pairs at 0.98, about 13 at 0.97, 6 at
0.95 (the others ask the same in words of their own), 2 at 0.92. In TREC "When was ..." meets "Who ..." at 0.96. Longer
texts (AG News) are copies from 0.95 on, and those `protect_contained` finds.
"""


def sort_keys(keys: Ids) -> tuple[Ids, Int64]:
    """Return text keys in ascending order, and for each its place in `keys`; equal keys stay in order."""
    order = np.lexsort((keys[:, 1], keys[:, 0])).astype(np.int64)
    return keys[order], order


def protect_exact(keys: Ids, protected: Ids) -> tuple[Bool, Int64]:
    """Find rows whose text key is among the protected ones. Time rows * log protected.

    Args:
        keys: Text keys of the training rows, uint64 (rows, 2), in any order.
        protected: Text keys of the evaluation rows, uint64 (m, 2), ascending (`sort_keys`).

    Returns:
        Whether each row is protected, bool (rows,); the first place of its key in `protected`, int64 (rows,), else -1.

    Raises:
        ConfigError: `protected` is not sorted.
    """
    hi, lo = protected[:, 0], protected[:, 1]
    if not bool(np.all((hi[1:] > hi[:-1]) | ((hi[1:] == hi[:-1]) & (lo[1:] >= lo[:-1])))):
        raise ConfigError("protected keys must ascend; pass them through sort_keys first")
    place = np.searchsorted(hi, keys[:, 0], side="left").astype(np.int64)
    end = np.searchsorted(hi, keys[:, 0], side="right")
    # Equal first words are one evaluation text said twice, or a chance of 2^-64: the loop runs once or twice.
    while (behind := np.flatnonzero((place < end) & (_at(lo, place) < keys[:, 1]))).size:
        place[behind] += 1
    found: Bool = (place < end) & (_at(lo, place) == keys[:, 1])
    return found, np.where(found, place, -1)


def protect_near(
    vectors: Float32, protected: Float32, *, threshold: float = NEAR, chunk: int = 4096, device: str = "cpu"
) -> tuple[Bool, Int64, Float32]:
    """Find rows whose nearest evaluation row has a cosine at or above `threshold`.

    The search multiplies blocks of `chunk` rows by `chunk` evaluation rows; the cosine of the pair it finds in each is
    computed again in float64 in a fixed order, so what is compared with the threshold hangs on that pair alone. Vectors
    need not be of unit length; a row of zeros is near nothing. Time rows * m * dim; memory 4 * chunk^2 bytes and a copy
    of `protected`.

    Args:
        vectors: Training rows, float32 (rows, dim).
        protected: Evaluation rows, float32 (m, dim).
        threshold: Cosine, 0 < threshold <= 1. A lower one takes out paraphrases too: at 0.95 15 % of the training
            split of BANKING77 goes, at 0.98 4 %.
        chunk: Rows of a block on either side, >= 1.
        device: Torch device of the search.

    Returns:
        Whether each row is protected, bool (rows,); its nearest evaluation row, int64 (rows,), -1 where m = 0; their
        cosine, float32 (rows,) in [-1, 1], -1 where m = 0.

    Raises:
        ConfigError: `threshold` or `chunk` is out of range.
        VectorError: Dims differ, or a value is not finite; names the first such row.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold is a cosine, 0 < threshold <= 1; got {threshold}")
    if chunk < 1:
        raise ConfigError(f"chunk counts rows, chunk >= 1; got {chunk}")
    if vectors.ndim != 2 or protected.ndim != 2 or vectors.shape[1] != protected.shape[1]:  # noqa: PLR2004
        raise VectorError(f"vectors {vectors.shape} and protected {protected.shape} must be (rows, dim) with one dim")
    if not len(protected):
        none = np.full(len(vectors), -1)
        return np.zeros(len(vectors), np.bool_), none.astype(np.int64), none.astype(np.float32)
    units = _unit(protected, "protected", start=0)
    # Equal rows would tie, and which of them a product finds hangs on the blocking of the machine.
    distinct = np.sort(np.unique(units, axis=0, return_index=True)[1]).astype(np.int64)
    units = units[distinct]
    best = np.zeros(len(vectors), np.int64)
    cosine = np.zeros(len(vectors), np.float64)
    for start in range(0, len(vectors), chunk):
        rows = slice(start, start + chunk)
        found, cosine[rows] = _nearest(_unit(vectors[rows], "vectors", start=start), units, chunk=chunk, device=device)
        best[rows] = distinct[found]
    similarity = np.clip(cosine, -1, 1).astype(np.float32)
    return similarity >= np.float32(threshold), best, similarity


@dataclass(frozen=True, eq=False)
class Matches:
    """One training row an entry, in ascending order of `rows`, under the strictest rule that found it.

    Attributes:
        rows: Training rows, int64 (n,).
        evaluation: The evaluation row behind each, int64 (n,).
        similarity: 1 for exact, share of the evaluation text for contained, cosine for near; float32 (n,).
        rules: Index into `RULES`, int64 (n,).
    """

    rows: Int64
    evaluation: Int64
    similarity: Float32
    rules: Int64

    def __len__(self) -> int:
        return len(self.rows)


def combine_matches(
    *,
    exact: tuple[Bool, Int64] | None = None,
    contained: tuple[Bool, Int64, Float32] | None = None,
    near: tuple[Bool, Int64, Float32] | None = None,
) -> Matches:
    """Join what the rules returned for the same rows; a row found by several stands once, under the first rule."""
    found = [(*exact, np.ones(len(exact[0]), np.float32)) if exact else None, contained, near]
    parts = [
        (np.flatnonzero(hit), evaluation[hit], similarity[hit], rule)
        for rule, part in enumerate(found)
        if part is not None
        for hit, evaluation, similarity in [part]
    ]
    rows = np.concatenate([np.empty(0, np.int64), *(part[0] for part in parts)])
    evaluation = np.concatenate([np.empty(0, np.int64), *(part[1] for part in parts)])
    similarity = np.concatenate([np.empty(0, np.float32), *(part[2] for part in parts)])
    rules = np.concatenate([np.empty(0, np.int64), *(np.full(len(part[0]), part[3], np.int64) for part in parts)])
    _, first = np.unique(rows, return_index=True)
    return Matches(rows=rows[first], evaluation=evaluation[first], similarity=similarity[first], rules=rules[first])


def _at(values: UInt64, places: Int64) -> UInt64:
    """Return `values` at `places`, the last value for a place beyond the end."""
    if not len(values):
        return np.zeros(len(places), np.uint64)
    taken: UInt64 = values[np.minimum(places, len(values) - 1)]
    return taken


def _unit(vectors: Float32, name: str, *, start: int) -> Float32:
    """Return rows scaled to unit length, zeros left as they are."""
    lengths = np.sqrt(_cosine(vectors, vectors))
    if not np.isfinite(lengths).all():
        row = start + int(np.flatnonzero(~np.isfinite(lengths))[0])
        raise VectorError(f"{name}: row {row} holds a value that is not finite")
    scaled: Float32 = (vectors / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
    return scaled


def _nearest(rows: Float32, units: Float32, *, chunk: int, device: str) -> tuple[Int64, Float64]:
    """Return the place in `units` of the largest cosine of each row, and that cosine in float64."""
    import torch

    left = torch.from_numpy(rows).to(device)
    place = np.zeros(len(rows), np.int64)
    cosine = np.full(len(rows), -np.inf)
    for start in range(0, len(units), chunk):
        block = left @ torch.from_numpy(units[start : start + chunk]).to(device).T
        nearest = block.argmax(dim=1).cpu().numpy() + start
        exact = _cosine(rows, units[nearest])
        better = exact > cosine
        place[better], cosine[better] = nearest[better], exact[better]
    return place, cosine


def _cosine(left: Float32, right: Float32) -> Float64:
    """Return the cosine of each pair of unit rows, each summed in float64 in an order that its place cannot change."""
    products: Float64 = (left.astype(np.float64) * right).sum(axis=1)
    return products
