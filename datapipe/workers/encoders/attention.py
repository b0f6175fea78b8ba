"""Attention over packed texts: each token attends to the tokens of its own text.

softmax(Q K^T / sqrt(d)) V for each text and head (Vaswani et al., arXiv 1706.03762), computed one of three ways:

- CPU: texts of equal length that lie side by side share one call, without a mask. `pack` sorts by length.
- CUDA in bfloat16 or float16: one variable-length kernel over the whole batch.
- CUDA otherwise: padded to the longest text, with a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Int32

__all__ = ["Group", "Spans", "attend", "attend_grouped", "attend_padded"]


class Group(NamedTuple):
    """Neighbouring texts of one length: `texts` texts of `length` tokens from token `start`."""

    start: int
    texts: int
    length: int


@dataclass(frozen=True)
class Spans:
    """Where the texts of a batch lie in its packed tokens.

    Attributes:
        ids: Token ids, int32 (tokens,), on the device.
        places: Place of each token in its text, int32 (tokens,), on the device.
        bounds: Where each text begins, and the end, int32 (texts + 1,), on the device.
        lengths: Tokens of each text.
    """

    ids: torch.Tensor
    places: torch.Tensor
    bounds: torch.Tensor
    lengths: list[int]

    @classmethod
    def of(cls, batch: Sequence[Int32], device: torch.device) -> Spans:
        """Pack the token ids of a batch; one transfer to the device."""
        import torch

        lengths = [len(ids) for ids in batch]
        bounds = np.zeros(len(batch) + 1, dtype=np.int32)
        np.cumsum(lengths, out=bounds[1:])
        tokens = int(bounds[-1])
        places = np.arange(tokens, dtype=np.int32) - np.repeat(bounds[:-1], lengths)
        packed = torch.from_numpy(np.concatenate([*batch, places, bounds])).to(device)
        return cls(packed[:tokens], packed[tokens : 2 * tokens], packed[2 * tokens :], lengths)

    def groups(self) -> list[Group]:
        """Runs of neighbouring texts that have the same length."""
        groups: list[Group] = []
        start = 0
        for length, run in groupby(self.lengths):
            texts = sum(1 for _ in run)
            groups.append(Group(start, texts, length))
            start += texts * length
        return groups


def attend(qkv: torch.Tensor, spans: Spans, *, heads: int, out: torch.Tensor) -> torch.Tensor:
    """Attention within each text, (tokens, dim).

    Args:
        qkv: Queries, keys and values side by side, (tokens, 3 * dim).
        spans: Where the texts lie.
        heads: Heads that dim is split into.
        out: Memory that may hold the result, (tokens, dim).
    """
    import torch

    if qkv.device.type == "cpu":
        return attend_grouped(qkv, spans, heads=heads, out=out)
    if qkv.dtype in {torch.bfloat16, torch.float16}:
        return _attend_varlen(qkv, spans, heads=heads)
    return attend_padded(qkv, spans, heads=heads)


def attend_grouped(qkv: torch.Tensor, spans: Spans, *, heads: int, out: torch.Tensor) -> torch.Tensor:
    """One call for each run of equal lengths."""
    from torch.nn.functional import scaled_dot_product_attention

    dim = out.shape[1]
    groups = spans.groups()
    for start, texts, length in groups:
        rows = slice(start, start + texts * length)
        query, key, value = qkv[rows].view(texts, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2)
        if len(groups) == 1:
            return mixed.reshape(len(qkv), dim)
        out[rows].view(texts, length, heads, dim // heads).copy_(mixed)
    return out


def attend_padded(qkv: torch.Tensor, spans: Spans, *, heads: int) -> torch.Tensor:
    """One call over texts padded to the longest, keys of the padding masked."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    tokens, width = qkv.shape
    texts, longest, head = len(spans.lengths), max(spans.lengths), width // 3 // heads
    lengths = torch.tensor(spans.lengths, device=qkv.device)
    there = torch.arange(longest, device=qkv.device) < lengths.unsqueeze(1)
    wide = qkv.new_zeros((texts, longest, width))
    wide[there] = qkv
    query, key, value = wide.view(texts, longest, 3, heads, head).permute(2, 0, 3, 1, 4)
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=there[:, None, None, :])
    return mixed.transpose(1, 2)[there].reshape(tokens, heads * head)


def _attend_varlen(qkv: torch.Tensor, spans: Spans, *, heads: int) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    tokens, width = qkv.shape
    query, key, value = qkv.view(tokens, 3, heads, width // 3 // heads).unbind(1)
    longest = max(spans.lengths)
    mixed = cast("torch.Tensor", varlen_attn(query, key, value, spans.bounds, spans.bounds, longest, longest))
    return mixed.reshape(tokens, width // 3)
