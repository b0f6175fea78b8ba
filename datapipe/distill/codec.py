"""What a teacher says of a position, cut down to what is stored: whole, the most probable classes, or draws.

logits (positions, classes) -> log_softmax in float64 -> encode -> DenseLabels | TopLabels | SampledLabels

A position is a row, or one scored token of a row. Log probabilities are in nats, at temperature 1, and float16; where a
class has none (-inf), float16's least number stands. Bits do not depend on threads, nor on how positions are cut into
calls. Raises `SoftLabelError` for logits that are not numbers, or of another class count than the header's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from datapipe.errors import SoftLabelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.distill.header import SoftLabelHeader
    from datapipe.storage.arrays import Float32, Float64, Ids, Int32, Int64, UInt64

__all__ = [
    "DenseLabels",
    "SampledLabels",
    "SoftLabels",
    "TopLabels",
    "concatenate",
    "draw_points",
    "encode",
    "entropies",
    "log_softmax",
]

Float16: TypeAlias = NDArray[np.float16]
UInt16: TypeAlias = NDArray[np.uint16]
UInt32: TypeAlias = NDArray[np.uint32]

LEAST = float(np.finfo(np.float16).min)
"""Stands for the logarithm of 0: exp(LEAST) is 0, and 0 * LEAST is no NaN."""
_BLOCK_VALUES = 1 << 22
"""Values that are worked on at once: 32 MiB in float64."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class DenseLabels:
    """Whole distributions.

    Attributes:
        log_probabilities: float16 (positions, classes).
    """

    log_probabilities: Float16

    def __len__(self) -> int:
        return len(self.log_probabilities)

    def take(self, at: Int64) -> DenseLabels:
        """Return the positions `at`, in that order."""
        return DenseLabels(self.log_probabilities[at])


@dataclass(frozen=True, slots=True)
class TopLabels:
    """The k most probable classes of each position, most probable first; equal ones by lower id.

    Attributes:
        ids: uint32 (positions, k).
        log_probabilities: float16 (positions, k).
        tail: Logarithm of the mass of all other classes, float16 (positions,); the least number if there is none.
    """

    ids: UInt32
    log_probabilities: Float16
    tail: Float16

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, at: Int64) -> TopLabels:
        """Return the positions `at`, in that order."""
        return TopLabels(self.ids[at], self.log_probabilities[at], self.tail[at])


@dataclass(frozen=True, slots=True)
class SampledLabels:
    """Classes drawn from the teacher's distribution, each once with its count, by ascending id.

    Count / draws estimates a class's probability without bias (random sampling KD, arXiv 2503.16870), while the k most
    probable alone are biased.

    Attributes:
        ids: uint32 (all,); those of position p are offsets[p] ... offsets[p + 1].
        counts: How often each was drawn, >= 1, uint16 (all,).
        offsets: int64 (positions + 1,).
        entropy: Of the whole distribution, in nats, float16 (positions,).
    """

    ids: UInt32
    counts: UInt16
    offsets: Int64
    entropy: Float16

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, at: Int64) -> SampledLabels:
        """Return the positions `at`, in that order."""
        sizes = np.diff(self.offsets)[at]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][at] - offsets[:-1], sizes)
        return SampledLabels(self.ids[places], self.counts[places], offsets, self.entropy[at])

    @classmethod
    def of_draws(cls, drawn: Int64 | Int32 | UInt32, entropy: Float32 | Float64 | Float16) -> SampledLabels:
        """Count draws.

        Args:
            drawn: Ids in any order, integers (positions, draws).
            entropy: Of the whole distribution, in nats, (positions,).
        """
        positions = len(drawn)
        ordered = np.sort(drawn, axis=1)
        fresh = np.ones(ordered.shape, np.bool_)
        fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        begins = np.flatnonzero(fresh)
        counts = np.diff(np.append(begins, ordered.size))
        offsets = np.concatenate([[0], np.cumsum(fresh.sum(axis=1))]).astype(np.int64)
        if positions != len(entropy):
            raise SoftLabelError(f"there are draws for {positions} positions and entropies for {len(entropy)}")
        ids = ordered.reshape(-1)[begins]
        return cls(ids.astype(np.uint32), counts.astype(np.uint16), offsets, entropy.astype(np.float16))


SoftLabels: TypeAlias = DenseLabels | TopLabels | SampledLabels


def concatenate(parts: Sequence[SoftLabels]) -> SoftLabels:
    """Join labels of one mode, at least one part, in order. Raises `SoftLabelError` for parts of different modes."""
    kinds = {type(part) for part in parts}
    if len(kinds) != 1:
        raise SoftLabelError(f"labels of one mode are wanted. Got {sorted(kind.__name__ for kind in kinds)}")
    dense = [part for part in parts if isinstance(part, DenseLabels)]
    if dense:
        return DenseLabels(np.concatenate([part.log_probabilities for part in dense]))
    top = [part for part in parts if isinstance(part, TopLabels)]
    if top:
        return TopLabels(
            np.concatenate([part.ids for part in top]),
            np.concatenate([part.log_probabilities for part in top]),
            np.concatenate([part.tail for part in top]),
        )
    sampled = [part for part in parts if isinstance(part, SampledLabels)]
    sizes = np.concatenate([np.diff(part.offsets) for part in sampled])
    return SampledLabels(
        np.concatenate([part.ids for part in sampled]),
        np.concatenate([part.counts for part in sampled]),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate([part.entropy for part in sampled]),
    )


def encode(
    logits: Float32 | Float64 | Float16, header: SoftLabelHeader, *, row_ids: Ids, places: Int64 | None = None
) -> SoftLabels:
    """Cut distributions down to what `header` says is stored.

    Memory beside input and result: about 5 * 32 MiB. Time positions * classes.

    Args:
        logits: Or log probabilities; (positions, classes). -inf is a class without probability.
        header: Mode, classes, k or draws, seed.
        row_ids: Row of each position, uint64 (positions, 2).
        places: Which scored token of its row each position is, int64 (positions,); None for labels of rows.

    Raises:
        SoftLabelError: Another class count than the header's, a NaN, +inf, or no class with a probability; names the
            row.
    """
    if logits.ndim != 2 or logits.shape[1] != header.classes or len(row_ids) != len(logits):  # noqa: PLR2004 - a matrix has two axes
        raise SoftLabelError(
            f"the teacher gave logits of shape {logits.shape} for {len(row_ids):,} positions of {header.classes:,} "
            "classes: is it a model of these classes?"
        )
    step = max(1, _BLOCK_VALUES // header.classes)
    pieces = [slice(start, start + step) for start in range(0, max(1, len(logits)), step)]
    wheres = np.zeros(len(logits), np.int64) if places is None else places
    return concatenate([_encoded(logits[at], header, row_ids[at], wheres[at]) for at in pieces])


def log_softmax(logits: Float32 | Float64 | Float16) -> Float64:
    """Return log probabilities, float64 (positions, classes), of logits or log probabilities."""
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    return exact


def entropies(log_probabilities: Float64) -> Float64:
    """Return the entropy of each distribution in nats, float64 (positions,); a class at -inf adds nothing."""
    terms = np.exp(log_probabilities) * np.maximum(log_probabilities, LEAST)
    found: Float64 = -terms.sum(axis=1)
    return found


def draw_points(row_ids: Ids, places: Int64, *, draws: int, seed: int) -> Float64:
    """Return where on the unit interval each position draws, float64 (positions, draws), ascending, in [0, 1).

    One point in each of `draws` equal stretches, so a class of probability p is drawn draws * p times on average, as
    in free draws, and never with a greater variance. A class is drawn where the running sum of the probabilities, in
    the order of ids, first exceeds the point. Points follow from blake2b-64(seed, row id, place) alone: neither the
    order of the rows nor their cut into batches changes them.

    Args:
        row_ids: Row of each position, uint64 (positions, 2).
        places: Its place among the scored tokens of its row, int64 (positions,); 0 for labels of rows.
        draws: Points of a position.
        seed: Of the draws.
    """
    words = _words(row_ids, places, seed)[:, None] + np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    within = (_mixed(words) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (np.arange(draws) + within) / draws


def _encoded(logits: Float32 | Float64 | Float16, header: SoftLabelHeader, row_ids: Ids, places: Int64) -> SoftLabels:
    _check(logits, row_ids)
    exact = log_softmax(logits)
    if header.k is not None:
        return _top(exact, header.k)
    if header.draws is not None:
        return _sampled(exact, draw_points(row_ids, places, draws=header.draws, seed=header.seed))
    return DenseLabels(_half(exact))


def _check(logits: Float32 | Float64 | Float16, row_ids: Ids) -> None:
    best = logits.max(axis=1)  # a NaN is its row's maximum
    wrong = ~np.isfinite(best)
    if wrong.any():
        at = int(np.argmax(wrong))
        row = row_ids[at].astype(">u8").tobytes().hex()
        raise SoftLabelError(
            f"the teacher's logits for row {row} are no distribution: the greatest of them is {best[at]}; "
            f"{int(wrong.sum())} positions of this batch are like that. Does the teacher overflow in float16?"
        )


def _half(log_probabilities: Float64) -> Float16:
    return np.maximum(log_probabilities, LEAST).astype(np.float16)


def _top(exact: Float64, k: int) -> TopLabels:
    """The k greatest; of equal ones at the edge the lower ids."""
    positions, classes = exact.shape
    edge = np.partition(exact, classes - k, axis=1)[:, classes - k, None]
    above, level = exact > edge, exact == edge
    missing = k - above.sum(axis=1, keepdims=True)
    chosen = above | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= missing))
    ids = np.nonzero(chosen)[1].reshape(positions, k)
    values = np.take_along_axis(exact, ids, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    rest = np.exp(exact)
    rest[chosen] = 0.0
    with np.errstate(divide="ignore"):
        tail = np.log(rest.sum(axis=1))
    kept = np.take_along_axis(ids, order, axis=1).astype(np.uint32)
    return TopLabels(kept, _half(np.take_along_axis(values, order, axis=1)), _half(tail))


def _sampled(exact: Float64, points: Float64) -> SampledLabels:
    running = np.cumsum(np.exp(exact), axis=1)
    drawn = np.empty(points.shape, np.uint32)
    for position, (sums, wanted) in enumerate(zip(running, points, strict=True)):
        total = sums[-1]
        drawn[position] = np.searchsorted(sums, np.minimum(wanted * total, np.nextafter(total, 0.0)), side="right")
    return SampledLabels.of_draws(drawn, entropies(exact))


def _words(row_ids: Ids, places: Int64, seed: int) -> UInt64:
    start = hashlib.blake2b(str(seed).encode() + b"\0", digest_size=8).copy
    messages = np.empty((len(row_ids), 24), np.uint8)
    messages[:, :16] = row_ids.astype(">u8", order="C").view(np.uint8).reshape(-1, 16)
    messages[:, 16:] = places.astype("<i8").view(np.uint8).reshape(-1, 8)
    words = []
    for message in messages:
        state = start()
        state.update(message.tobytes())
        words.append(state.digest())
    return np.frombuffer(b"".join(words), "<u8").astype(np.uint64)


def _mixed(words: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): a counter becomes bits without visible order."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
