"""Hidden states of a text to its vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from datapipe.workers.encoders.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["POOLING_MODES", "PoolingMode", "pool"]

PoolingMode = Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens"]
POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)


def pool(hidden: torch.Tensor, lengths: Sequence[int], *, mode: PoolingMode, normalised: bool) -> torch.Tensor:
    """Return one vector a text, float32 (texts, dim), on the device of `hidden`.

    Means are summed in float32, token after token, so they do not depend on what else is in the batch. A vector of
    length 0 stays 0.

    Args:
        hidden: Hidden states, (sum of lengths, dim), text after text.
        lengths: Tokens of each text, at least 1.
        mode: `mean`, `cls` (first token), `lasttoken`, `max`, or `mean_sqrt_len_tokens` (sum over root of the length).
        normalised: Whether to scale to unit length.
    """
    import torch

    counts = to_device(np.asarray(lengths, dtype=np.int64), hidden.device)
    ends = counts.cumsum(0)
    if mode == "cls":
        vectors = hidden[ends - counts].float()
    elif mode == "lasttoken":
        vectors = hidden[ends - 1].float()
    else:
        reduce = "max" if mode == "max" else "sum"
        offsets = torch.cat([ends.new_zeros(1), ends])
        vectors = torch.segment_reduce(hidden.float(), reduce, offsets=offsets, axis=0, unsafe=True)
        if mode == "mean":
            vectors /= counts.unsqueeze(1)
        elif mode == "mean_sqrt_len_tokens":
            vectors /= counts.unsqueeze(1).sqrt()
    return torch.nn.functional.normalize(vectors, dim=1) if normalised else vectors
