"""Training rows whose vector lies near that of an evaluation row: every one, without most of the products.

    vectors of the evaluation set -> near_index (sketches) -> protect_near (bound -> candidates -> cosines in float64)

A sketch of a unit vector x is its part in a few directions, B x, and the length r(x) of what is left. By Cauchy and
Schwarz x.y <= Bx.By + r(x) r(y): a product of sketches, a few numbers long, so bounds the cosine from above, and only
pairs whose bound reaches the threshold are computed in full. With the directions in which the evaluation set varies
most, 31 of 384, one pair in 3,000 is left at 0.98 (all-MiniLM-L6-v2, texts of many kinds). The bound loses no pair, so
no match is missed and none is added. Raises `ConfigError`, `VectorError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError, VectorError

if TYPE_CHECKING:
    from datapipe.storage.arrays import Bool, Float32, Float64, Int64

__all__ = ["NEAR", "NearIndex", "near_index", "protect_near"]

NEAR = 0.98
"""Default cosine of `near_index`, from pairs across the splits of real sets (all-MiniLM-L6-v2), 18 a band, by eye.

BANKING77, short questions: one sentence with a word or two changed in 18 of 18 pairs at 0.98, about 13 at 0.97, 6 at
0.95 (the others ask the same in words of their own), 2 at 0.92. In TREC "When was ..." meets "Who ..." at 0.96. Longer
texts (AG News) are copies from 0.95 on, and those `protect_contained` finds.
"""
_DIRECTIONS = (15, 31, 63, 127)
_CHECKED = 5000  # multiplications in a product of blocks that take as long as one pair computed in full
_SAMPLE = 1024  # evaluation rows by which the directions are counted; fewer are compared in full
_FITTED = 8192  # evaluation rows from which the directions come
_SLACK = 1e-5  # by which a float32 product may miss a cosine
_MANY = 1 / 64  # share of a block's pairs from which the product in full is cheaper than checking them
_RESCORED = 1 << 13  # pairs whose vectors are held in float64 at once


@dataclass(frozen=True, eq=False)
class NearIndex:
    """Vectors of an evaluation set, for `protect_near`.

    Attributes:
        units: The different ones, unit length or zero, float32 (n, dim).
        places: The evaluation row that each is, of equal ones the first, ascending, int64 (n,).
        threshold: Cosine from which a row is near.
        basis: Directions of the sketches, orthonormal columns, float32 (dim, d); d = 0 where sketches would not pay.
        sketches: The part in these directions and the length of the rest, float32 (n, d + 1).
    """

    units: Float32
    places: Int64
    threshold: float
    basis: Float32
    sketches: Float32


def near_index(protected: Float32, *, threshold: float = NEAR) -> NearIndex:
    """Prepare the vectors of an evaluation set. Time m * dim * (log m + 127); memory 2 copies of `protected`.

    Args:
        protected: Evaluation rows, float32 (m, dim), of any length; a row of zeros is near nothing.
        threshold: Cosine, 0 < threshold <= 1. A lower one takes out paraphrases too: at 0.95 15 % of the training
            split of BANKING77 goes, at 0.98 4 %.

    Raises:
        ConfigError: `threshold` is out of range.
        VectorError: They are no matrix, or a value is not finite; names the first such row.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold is a cosine, 0 < threshold <= 1; got {threshold}")
    if protected.ndim != 2:  # noqa: PLR2004
        raise VectorError(f"protected {protected.shape} must be (rows, dim)")
    units = _unit(protected, "protected", start=0)
    # Of equal rows the first is named.
    places = np.sort(np.unique(units, axis=0, return_index=True)[1]).astype(np.int64)
    units = units[places]
    basis = _basis(units, threshold)
    return NearIndex(units, places, threshold, basis, _sketches(units, basis))


def protect_near(vectors: Float32, index: NearIndex, *, chunk: int = 2048) -> tuple[Bool, Int64, Float32]:
    """Find rows whose nearest evaluation row has a cosine at or above the threshold.

    Whether a pair is near, and which is nearest, is decided by its cosine in float64, summed in a fixed order; so the
    result hangs on the vectors alone. Time rows * m * d, where d is the length of a sketch; memory 5 * chunk^2 bytes.
    Blocks of 16 MiB are given out again by the allocator; larger ones are new pages each time, four times as slow.

    Args:
        vectors: Training rows, float32 (rows, dim), of any length; a row of zeros is near nothing.
        index: The evaluation set.
        chunk: Rows of a block on either side, >= 1.

    Returns:
        Whether each row is near one, bool (rows,); its nearest evaluation row, int64 (rows,); their cosine, float32
        (rows,). The latter two are -1 where no evaluation row is as near as the threshold.

    Raises:
        ConfigError: `chunk` is out of range.
        VectorError: Dims differ, or a value is not finite; names the first such row.
    """
    if chunk < 1:
        raise ConfigError(f"chunk counts rows, chunk >= 1; got {chunk}")
    if vectors.ndim != 2 or vectors.shape[1] != index.units.shape[1]:  # noqa: PLR2004
        raise VectorError(f"vectors {vectors.shape} and protected {index.units.shape} must be (rows, dim) with one dim")
    place = np.full(len(vectors), -1, np.int64)
    cosine = np.full(len(vectors), -1.0)
    for start in range(0, len(vectors), chunk):
        units = _unit(vectors[start : start + chunk], "vectors", start=start)
        sketches = _sketches(units, index.basis)
        for first in range(0, len(index.units), chunk):
            block = slice(first, first + chunk)
            row, other = _candidates(units, sketches, index, block)
            values = _cosines(units, row, index.units, other)
            near = values.astype(np.float32) >= np.float32(index.threshold)
            _keep_best(place[start:], cosine[start:], row[near], other[near], values[near])
    found: Bool = place >= 0
    named = np.where(found, index.places[np.maximum(place, 0)] if len(index.places) else -1, -1)
    return found, named, np.clip(cosine, -1, 1).astype(np.float32)


def _candidates(units: Float32, sketches: Float32, index: NearIndex, block: slice) -> tuple[Int64, Int64]:
    """Rows and evaluation rows of a block whose cosine may reach the threshold and be the row's greatest there."""
    import torch

    left = torch.from_numpy(units)
    least = index.threshold - _SLACK
    columns = len(index.units[block])
    if index.basis.shape[1]:
        bounds = torch.from_numpy(sketches) @ torch.from_numpy(index.sketches[block]).T
        flat = np.flatnonzero(bounds.numpy() >= np.float32(least))
        if len(flat) <= _MANY * bounds.numel():
            return flat // columns, flat % columns + block.start
    cosines = left @ torch.from_numpy(index.units[block]).T
    greatest = cosines.amax(dim=1, keepdim=True)
    flat = np.flatnonzero((cosines >= (greatest - _SLACK).clamp(min=least)).numpy())
    return flat // columns, flat % columns + block.start


def _keep_best(place: Int64, cosine: Float64, rows: Int64, others: Int64, values: Float64) -> None:
    """Write the greatest cosine of each row, of equal ones the first evaluation row, where it beats what is there."""
    order = np.lexsort((others, -values, rows))
    rows, others, values = rows[order], others[order], values[order]
    first = np.append(True, rows[1:] != rows[:-1])[: len(rows)]
    rows, others, values = rows[first], others[first], values[first]
    better = values > cosine[rows]
    place[rows[better]], cosine[rows[better]] = others[better], values[better]


def _basis(units: Float32, threshold: float) -> Float32:
    """As many of the directions in which the rows vary most as make the search among themselves cheapest."""
    dim = units.shape[1]
    none = np.empty((dim, 0), np.float32)
    if len(units) < _SAMPLE:
        return none
    wide = _spread(units, _FITTED).astype(np.float64)
    directions = np.ascontiguousarray(np.linalg.eigh(wide.T @ wide)[1][:, ::-1], np.float32)
    sample = _spread(units, _SAMPLE)
    best, cost = none, float(dim)
    for count in _DIRECTIONS:
        if count >= min(dim, cost):
            break
        basis = np.ascontiguousarray(directions[:, :count])
        sketches = _sketches(sample, basis)
        left = float((sketches @ sketches.T >= threshold - _SLACK).mean()) - 1 / len(sample)
        now = count + 1 + _CHECKED * left
        if left < _MANY and now < cost:
            best, cost = basis, now
    return best


def _spread(units: Float32, rows: int) -> Float32:
    """At most so many rows, evenly spread."""
    return units[np.linspace(0, len(units) - 1, min(rows, len(units))).astype(np.int64)]


def _sketches(units: Float32, basis: Float32) -> Float32:
    """The part of each row in the directions of `basis` and the length of the rest, float32 (rows, d + 1)."""
    part = units @ basis
    rest = np.asarray(units - part @ basis.T, np.float32)
    return np.concatenate([part, np.sqrt(_dots(rest, rest))[:, None].astype(np.float32)], axis=1)


def _unit(vectors: Float32, name: str, *, start: int) -> Float32:
    """Rows scaled to unit length, zeros left as they are."""
    lengths = np.sqrt(_dots(vectors, vectors))
    if not np.isfinite(lengths).all():
        row = start + int(np.flatnonzero(~np.isfinite(lengths))[0])
        raise VectorError(f"{name}: row {row} holds a value that is not finite")
    scaled: Float32 = (vectors / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
    return scaled


def _cosines(left: Float32, rows: Int64, right: Float32, others: Int64) -> Float64:
    """The cosine of each pair of unit rows, float64 (pairs,)."""
    cosines = np.empty(len(rows))
    for start in range(0, len(rows), _RESCORED):
        part = slice(start, start + _RESCORED)
        cosines[part] = _dots(left[rows[part]], right[others[part]])
    return cosines


def _dots(left: Float32, right: Float32) -> Float64:
    """The product of each pair of rows, each summed in float64 in an order that its place cannot change."""
    products: Float64 = (left.astype(np.float64) * right).sum(axis=1)
    return products
