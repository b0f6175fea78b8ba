"""Attention over packed texts: each token attends to the tokens of its own text, in some layers to the near ones only.

softmax(Q K^T / sqrt(d)) V for each text and head (Vaswani et al., arXiv 1706.03762), computed one of three ways:

- CPU: texts of equal length that lie side by side share one call, without a mask. `pack` sorts by length.
- CUDA in bfloat16 or float16: one variable-length kernel over the whole batch.
- CUDA otherwise: padded to the longest text, with a mask.

With a window w, token i attends to token j where |i - j| <= w (Beltagy et al., arXiv 2004.05150).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from datapipe.workers.encoders.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Int32

__all__ = ["TILE", "Group", "Room", "Spans", "attend", "attend_grouped", "attend_padded", "lay_out"]

TILE = 64
"""Neighbouring tokens whose queries share one program of the tiled kernel."""

_QUERIES = 256
"""Queries of a text that one call on the CPU takes where a window makes most of its keys superfluous."""

_ALIGNED = 4
"""Sections begin at multiples of so many int32, so that kernels may read 16 bytes at a time."""


_FLASH_MULTIPLE = 8
"""What the width of a head must be a multiple of for the variable-length kernel."""


class Group(NamedTuple):
    """Neighbouring texts of one length: `texts` texts of `length` tokens from token `start`."""

    start: int
    texts: int
    length: int


class Room(NamedTuple):
    """How many tokens and texts a batch's arrays have room for; what is over stands for no text."""

    tokens: int
    texts: int

    def sections(self) -> list[int]:
        """Lengths of ids, places, rows, bounds and tiles in one array of int32."""
        needs = (self.tokens, self.tokens, self.tokens, self.texts + 1, 2 * -(-self.tokens // TILE))
        return [-(-need // _ALIGNED) * _ALIGNED for need in needs]


@dataclass(frozen=True)
class Spans:
    """Where the texts of a batch lie in its packed tokens; all tensors int32, on the device.

    Attributes:
        ids: Token ids, (tokens,).
        places: Place of each token in its text, (tokens,).
        rows: Row of the position table of each token, (tokens,).
        bounds: Where each text begins, and the end, (texts + 1,).
        tiles: First key, and the end of the keys, that any query of a tile needs, (tiles, 2).
        lengths: Tokens of each text; empty where only the device knows them.
        longest: At least the tokens of the longest text.
    """

    ids: torch.Tensor
    places: torch.Tensor
    rows: torch.Tensor
    bounds: torch.Tensor
    tiles: torch.Tensor
    lengths: list[int]
    longest: int

    @classmethod
    def of(cls, batch: Sequence[Int32], device: torch.device, *, padding: int | None = None) -> Spans:
        """Pack the token ids of a batch; one transfer to the device. See `lay_out` for `padding`."""
        lengths = [len(ids) for ids in batch]
        room = Room(sum(lengths), len(lengths))
        return cls.over(to_device(lay_out(batch, room, padding=padding), device), room, lengths, longest=max(lengths))

    @classmethod
    def over(cls, arrays: torch.Tensor, room: Room, lengths: list[int], *, longest: int) -> Spans:
        """The same from what `lay_out` returned, on its device already."""
        import torch

        ids, places, rows, bounds, tiles = torch.split(arrays, room.sections())
        tokens = room.tokens
        pairs = tiles[: 2 * -(-tokens // TILE)].view(-1, 2)
        return cls(ids[:tokens], places[:tokens], rows[:tokens], bounds[: room.texts + 1], pairs, lengths, longest)

    def groups(self) -> list[Group]:
        """Runs of neighbouring texts that have the same length."""
        groups: list[Group] = []
        start = 0
        for length, run in groupby(self.lengths):
            texts = sum(1 for _ in run)
            groups.append(Group(start, texts, length))
            start += texts * length
        return groups


def lay_out(batch: Sequence[Int32], room: Room, *, padding: int | None = None) -> Int32:
    """A batch as one array of int32: ids, places, rows, bounds and tiles (see `Spans`), each of its section's length.

    Args:
        batch: Token ids of each text, at least one token each.
        room: What the sections are made for, at least the batch. Tokens over belong to no text, texts over are empty.
        padding: A token id that the position table counts as none: its row is 0, and the first other token of a text
            has row 1 (`create_position_ids_from_input_ids` of transformers). None counts every token, from row 0.
    """
    lengths = np.array([len(ids) for ids in batch], dtype=np.int32)
    sections = room.sections()
    whole = np.zeros(sum(sections), dtype=np.int32)
    ids, places, rows, bounds, tiles = np.split(whole, np.cumsum(sections)[:-1])
    np.cumsum(lengths, dtype=np.int32, out=bounds[1 : len(batch) + 1])
    tokens = int(bounds[len(batch)])
    bounds[len(batch) + 1 :] = tokens
    np.concatenate(batch, out=ids[:tokens])
    starts = np.repeat(bounds[: len(batch)], lengths)
    places[:tokens] = np.arange(tokens, dtype=np.int32) - starts
    rows[:tokens] = places[:tokens] if padding is None else _counted(ids[:tokens], starts, padding)
    first = np.arange(0, tokens, TILE)
    last = np.minimum(first + TILE, tokens) - 1
    tiles[0 : 2 * len(first) : 2] = starts[first]
    tiles[1 : 2 * len(first) : 2] = starts[last] + np.repeat(lengths, lengths)[last]
    return whole


def _counted(ids: Int32, starts: Int32, padding: int) -> Int32:
    real = (ids != padding).astype(np.int32)
    counted = np.cumsum(real, dtype=np.int32)
    before = (counted - real)[starts]
    rows: Int32 = (counted - before) * real
    return rows


def attend(
    qkv: torch.Tensor, spans: Spans, *, heads: int, out: torch.Tensor | None = None, window: int | None = None
) -> torch.Tensor:
    """Attention within each text, (tokens, dim).

    Args:
        qkv: Queries, keys and values side by side, (tokens, 3 * dim).
        spans: Where the texts lie.
        heads: Heads that dim is split into.
        out: Memory that may hold the result, (tokens, dim).
        window: How far apart tokens may be that attend to each other; None is no limit.
    """
    import torch

    if qkv.device.type == "cpu":
        if out is None:
            out = qkv.new_empty((len(qkv), qkv.shape[1] // 3))
        return attend_grouped(qkv, spans, heads=heads, out=out, window=window)
    if qkv.dtype in {torch.bfloat16, torch.float16} and qkv.shape[1] // 3 // heads % _FLASH_MULTIPLE == 0:
        return _attend_varlen(qkv, spans, heads=heads, window=window)
    return attend_padded(qkv, spans, heads=heads, window=window)


def attend_grouped(
    qkv: torch.Tensor, spans: Spans, *, heads: int, out: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """One call for each run of equal lengths."""
    dim = out.shape[1]
    groups = spans.groups()
    for start, texts, length in groups:
        rows = slice(start, start + texts * length)
        query, key, value = qkv[rows].view(texts, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        mixed = _attend_equal(query, key, value, window=window).transpose(1, 2)
        if len(groups) == 1:
            return mixed.reshape(len(qkv), dim)
        out[rows].view(texts, length, heads, dim // heads).copy_(mixed)
    return out


def _attend_equal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, window: int | None) -> torch.Tensor:
    """Attention within texts of one length, all (texts, heads, length, head dim); with a window, a part at a time."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    length = query.shape[2]
    if window is None or length - 1 <= window:
        return scaled_dot_product_attention(query, key, value)
    parts = []
    for begin in range(0, length, _QUERIES):
        end = min(begin + _QUERIES, length)
        low, high = max(0, begin - window), min(length, end + window)
        distance = torch.arange(begin, end).unsqueeze(1) - torch.arange(low, high)
        near = distance.abs() <= window
        keys, values = key[:, :, low:high], value[:, :, low:high]
        parts.append(scaled_dot_product_attention(query[:, :, begin:end], keys, values, attn_mask=near))
    return torch.cat(parts, dim=2)


def attend_padded(qkv: torch.Tensor, spans: Spans, *, heads: int, window: int | None = None) -> torch.Tensor:
    """One call over texts padded to the longest, keys of the padding masked."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    tokens, width = qkv.shape
    texts, longest, head = len(spans.lengths), max(spans.lengths), width // 3 // heads
    place = torch.arange(longest, device=qkv.device)
    there = place < to_device(np.array(spans.lengths), qkv.device).unsqueeze(1)
    wide = qkv.new_zeros((texts, longest, width))
    wide[there] = qkv
    query, key, value = wide.view(texts, longest, 3, heads, head).permute(2, 0, 3, 1, 4)
    mask = there[:, None, None, :]
    if window is not None:
        # A query of the padding may be far from every token: it attends to itself, so that no row is without a key.
        near = (place.unsqueeze(1) - place).abs() <= window
        mask = (mask & near) | torch.eye(longest, dtype=torch.bool, device=qkv.device)
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.transpose(1, 2)[there].reshape(tokens, heads * head)


def _attend_varlen(qkv: torch.Tensor, spans: Spans, *, heads: int, window: int | None) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    tokens, width = qkv.shape
    query, key, value = qkv.view(tokens, 3, heads, width // 3 // heads).unbind(1)
    reach = -1 if window is None else window
    mixed = varlen_attn(
        query, key, value, spans.bounds, spans.bounds, spans.longest, spans.longest, window_size=(reach, reach)
    )
    return cast("torch.Tensor", mixed).reshape(tokens, width // 3)
