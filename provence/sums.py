"""The forward pass over the windows of a batch, with the sums a unit computed where the probabilities are.

    PreparedText -> windows, longest first, in chunks -> heads -> sums a unit (device) -> one copy -> RawScores

So what comes back is a number or two a unit and a score a window, however long the texts are. Raises
`FloatingPointError` where the model's output is not finite.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from datapipe.workers.encoders.transfer import to_device, to_host
from datapipe.workers.pack import pack
from provence.prepare import RawScores

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Float32, Float64, Int64
    from provence.families.base import PrunerModel
    from provence.prepare import PreparedText
    from provence.windows import Window

__all__ = ["CHUNK_TOKENS", "score_texts"]

CHUNK_TOKENS = {"cpu": 2048, "cuda": 65_536}
"""Tokens of windows computed at once; a batch holds more only where one text alone is longer."""


def score_texts(model: PrunerModel, batch: Sequence[PreparedText], *, chunk_tokens: int) -> list[RawScores]:
    """Mean keep probability of each unit, the share of its tokens above the text's threshold, and the best score.

    Args:
        model: On its device.
        batch: Texts.
        chunk_tokens: Tokens of windows that are computed at once.

    Raises:
        FloatingPointError: A probability or a score is not finite; names the text's place in the batch.
    """
    import torch

    windows = [window for text in batch for window in text.windows]
    owners = np.repeat(np.arange(len(batch)), [len(text.windows) for text in batch])
    lengths = [len(window.ids) for window in windows]
    chunks = pack(lengths, token_budget=chunk_tokens, max_items=len(windows), padded=model.padded)
    shares = model.conduct.rule == "share"
    with torch.inference_mode():
        parts = [
            part
            for places in chunks
            for part in _sums(
                model,
                [windows[place] for place in places],
                [batch[owners[place]].share_at for place in places] if shares else None,
            )
        ]
        flat: Float32 = to_host(torch.cat(parts))
    pieces = iter(np.split(flat, list(accumulate(len(part) for part in parts))[:-1]))
    units = list(accumulate((len(text.text.kinds) for text in batch), initial=0))
    sums, above, scores = np.zeros(units[-1]), np.zeros(units[-1]), np.empty(len(windows), np.float32)
    for places in chunks:
        owned = [(units[owners[place]], windows[place]) for place in places]
        where = np.concatenate([base + window.first + np.arange(len(window.lengths)) for base, window in owned])
        scored = _scored([window for _, window in owned])
        _add(sums, where, next(pieces)[scored])
        if shares:
            _add(above, where, next(pieces)[scored])
        scores[places] = next(pieces)
    return _by_text(batch, sums, above if shares else None, scores)


def _sums(model: PrunerModel, windows: Sequence[Window], share_at: Sequence[float] | None) -> list[torch.Tensor]:
    """Sums of each segment's probabilities, counts of its tokens above the threshold if asked for, and scores."""
    import torch

    keep, scores = model.heads([window.ids for window in windows])
    lengths = to_device(_segments(windows), keep.device)
    found = [torch.segment_reduce(keep, "sum", lengths=lengths, unsafe=True)]
    if share_at is not None:
        limits = to_device(np.array(share_at, np.float32), keep.device)
        counts = to_device(np.array([len(window.ids) for window in windows], np.int64), keep.device)
        above = keep > torch.repeat_interleave(limits, counts, output_size=len(keep))
        found.append(torch.segment_reduce(above.float(), "sum", lengths=lengths, unsafe=True))
    return [*found, scores]


def _segments(windows: Sequence[Window]) -> Int64:
    """Lengths of what a window consists of: what stands before its scored units, those, and what follows; int64."""
    bounds = _segment_bounds(windows)
    found = np.empty(bounds[-1], np.int64)
    for window, begin, end in zip(windows, bounds, bounds[1:], strict=False):
        found[begin], found[begin + 1 : end - 1] = window.start, window.lengths
        found[end - 1] = len(window.ids) - window.start - int(window.lengths.sum())
    return found


def _scored(windows: Sequence[Window]) -> Int64:
    """Places of the scored units among the segments."""
    bounds = np.array(_segment_bounds(windows))
    return np.delete(np.arange(bounds[-1]), np.concatenate([bounds[:-1], bounds[1:] - 1]))


def _segment_bounds(windows: Sequence[Window]) -> list[int]:
    return list(accumulate((len(window.lengths) + 2 for window in windows), initial=0))


def _add(total: Float64, where: Int64, values: Float32) -> None:
    """A unit cut over several windows has a sum in each."""
    total += np.bincount(where, weights=values, minlength=len(total))


def _by_text(batch: Sequence[PreparedText], sums: Float64, above: Float64 | None, scores: Float32) -> list[RawScores]:
    tokens = np.maximum(np.concatenate([text.text.lengths for text in batch]), 1)
    probabilities = np.clip(sums / tokens, 0, 1).astype(np.float32)
    shares = None if above is None else (above / tokens).astype(np.float32)
    windows = list(accumulate((len(text.windows) for text in batch), initial=0))
    best = np.maximum.reduceat(scores, windows[:-1])
    units = list(accumulate((len(text.text.kinds) for text in batch), initial=0))
    if not (np.isfinite(probabilities).all() and np.isfinite(best).all()):
        _refuse(probabilities, best, units)
    return [
        RawScores(probabilities[a:b], None if shares is None else shares[a:b], float(score))
        for (a, b), score in zip(pairwise(units), best, strict=True)
    ]


def _refuse(probabilities: Float32, best: Float32, units: Sequence[int]) -> NoReturn:
    for place, (a, b) in enumerate(pairwise(units)):
        if not (np.isfinite(probabilities[a:b]).all() and np.isfinite(best[place])):
            break
    raise FloatingPointError(f"a probability or the score of text {place} of the batch is not finite")
