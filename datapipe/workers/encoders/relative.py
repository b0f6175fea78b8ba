"""Attention that also knows how far tokens are apart: the disentangled attention of DeBERTa, over packed texts.

Token i attends to token j of its text by (He et al., arXiv 2006.03654, eq. 2 and 4, without its last term)

    (Q_i . K_j + Q_i . KP_r + K_j . QP_r) / sqrt(head * terms),    r = row(i - j)

where KP and QP are keys and queries of a table of relative positions, a row for each distance or, far away, for a range
of distances. Both extra terms take the same row r, which hangs on i - j alone: so a product with the rows of all
distances in turn, (n, 2n - 1), holds the term of every pair, and a view of it with strides of one less is the (n, n)
matrix. Nothing is gathered an element at a time. `relative_kernel` reads the same products on CUDA, for all texts of a
batch at once and without that matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

    from datapipe.storage.arrays import Int32
    from datapipe.workers.encoders.attention import Spans

__all__ = ["Columns", "Distances", "Relative", "attend_relative"]

_CELLS = 1 << 22
"""Numbers of a product with the rows of all distances: 16 MB in float32, about what caches hold."""

_ALIGNED = 16
"""Columns of a product on CUDA are made a multiple of so many, which Triton knows by itself of a number it is given."""

_MARGIN = 32
"""Distances beyond those that occur, so that every product on CUDA finds the columns that round it up."""


class Columns(NamedTuple):
    """How a product of tokens with the rows of all distances lies in memory.

    Attributes:
        width: Columns; all distances of a text, and some more.
        middle: Column of distance 0 for a token whose place is a multiple of `spaced`.
        spaced: A token whose place exceeds such a multiple by r has everything r columns further on. So in the matrix
            of pairs each row begins at a multiple of `spaced` numbers, and that many are read at once.
    """

    width: int
    middle: int
    spaced: int


class Distances:
    """Which row of the table each distance has.

    Args:
        rows: Row of each distance from -reach to reach in turn, int32 (2 * reach + 1,), never falling. What is
            further away has the first or the last of them.
        device: Where attention is computed.

    Attributes:
        rows: The same on the device.
        turned: The same from reach to -reach.
        reach: See `rows`; at least 32 more than a text has tokens.
    """

    def __init__(self, rows: Int32, device: torch.device) -> None:
        import torch

        self._rows = rows
        self.rows = torch.from_numpy(rows).to(device)
        self.turned = self.rows.flip(0)
        self.reach = len(rows) // 2

    @classmethod
    def of(cls, *, buckets: int, furthest: int, positions: int, device: torch.device) -> Distances:
        """The rows of DeBERTa: one a distance up to half the buckets, then ranges that grow (make_log_bucket_position).

        Args:
            buckets: Rows on each side, an even number; 0 gives every distance up to `furthest` a row of its own.
            furthest: Distance at which the last row is reached.
            positions: Tokens that a text may have.
            device: Where attention is computed.
        """
        import torch

        reach = max(positions, furthest) + _MARGIN
        apart = torch.arange(-reach, reach + 1)
        side = buckets or furthest
        if buckets:
            middle = buckets // 2
            # In float32 and this order, as transformers: where a range begins hangs on the rounding.
            base = torch.log(torch.tensor((furthest - 1) / middle))
            far = torch.ceil(torch.log(apart.abs().clamp_min(middle) / middle) / base * (middle - 1)) + middle
            apart = torch.where(apart.abs() <= middle, apart, far.long() * apart.sign())
        return cls((apart + side).clamp(0, 2 * side - 1).to(torch.int32).numpy(), device)

    def columns(self, longest: int, *, spaced: int) -> Columns:
        """How products are to lie for texts of at most so many tokens; `spaced` is a power of two, at most 16."""
        most = min(longest, self.reach - _MARGIN)
        middle = -(-(most - 1) // _ALIGNED) * _ALIGNED
        return Columns(-(-(middle + most + spaced) // _ALIGNED) * _ALIGNED, middle, spaced)

    def picked(self, columns: Columns, *, turned: bool) -> torch.Tensor:
        """Rows of the distances that the columns stand for, int32 (width + spaced - 1,), on the device.

        From the last `spaced - 1 - r` on they are those of a token that exceeds a multiple of `spaced` by r.

        Args:
            columns: As `columns` gave them.
            turned: Whether distances fall from column to column.
        """
        begin = self.reach - columns.middle - (columns.spaced - 1)
        return (self.turned if turned else self.rows)[begin : begin + columns.width + columns.spaced - 1]

    def between(self, length: int) -> torch.Tensor:
        """Rows of the distances -(length - 1) ... length - 1, int32 (2 * length - 1,), on the device."""
        import torch

        if length - 1 <= self.reach:
            return self.rows[self.reach - (length - 1) : self.reach + length]
        apart = np.clip(np.arange(-(length - 1), length), -self.reach, self.reach)
        return torch.from_numpy(self._rows[apart + self.reach]).to(self.rows.device)


@dataclass(frozen=True)
class Relative:
    """What a layer's attention needs besides queries, keys and values; tensors in the encoder's precision.

    Attributes:
        distances: Rows of the tables.
        keys: Keys of the relative positions times `scale`, (heads, rows, head): content to position; None adds none.
        queries: Queries of the relative positions times `scale`, the same: position to content; None adds none.
        scale: What the products of queries and keys are multiplied by, 1 / sqrt(head * terms).
    """

    distances: Distances
    keys: torch.Tensor | None
    queries: torch.Tensor | None
    scale: float


def attend_relative(
    qkv: torch.Tensor, spans: Spans, relative: Relative, *, heads: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention within each text, (tokens, dim); neighbouring texts of one length share a call.

    Args:
        qkv: Queries, keys and values side by side, (tokens, 3 * dim).
        spans: Where the texts lie; their lengths must be known.
        relative: What distances add.
        heads: Heads that dim is split into.
        out: Memory that may hold the result, (tokens, dim).
    """
    if out is None:
        out = qkv.new_empty((len(qkv), qkv.shape[1] // 3))
    parts, mixed = qkv.view(len(qkv), 3, heads, -1), out.view(len(qkv), heads, -1)
    for start, texts, length in spans.groups():
        cells = length * (2 * length - 1)
        some = max(1, _CELLS // (heads * cells))
        few = min(heads, max(1, _CELLS // (some * cells)))
        for first in range(start, start + texts * length, some * length):
            rows = slice(first, min(first + some * length, start + texts * length))
            for head in range(0, heads, few):
                those = slice(head, head + few)
                _attend_equal(parts[rows, :, those], relative, those, length=length, out=mixed[rows, those])
    return out


def _attend_equal(parts: torch.Tensor, relative: Relative, heads: slice, *, length: int, out: torch.Tensor) -> None:
    """Attention of some heads within texts of one length.

    Args:
        parts: Queries, keys and values, (texts * length, 3, heads, head).
        relative: What distances add.
        heads: Which of its heads these are.
        length: Of each text.
        out: Where the result goes, (texts * length, heads, head).
    """
    from torch.nn.functional import scaled_dot_product_attention

    query, key, value = parts.permute(1, 2, 0, 3)  # each (heads, texts * length, head)
    rows, bias = relative.distances.between(length), None
    if relative.keys is not None:
        # (i, j) stands in column length - 1 - i + j, so columns run from the largest distance to the least.
        bias = _turned(query @ relative.keys[heads].index_select(1, rows.flip(0)).transpose(1, 2), length)
    if relative.queries is not None:
        other = _turned(key @ relative.queries[heads].index_select(1, rows).transpose(1, 2), length).transpose(2, 3)
        bias = other if bias is None else bias.add(other)
    bias = None if bias is None else bias.contiguous()  # CUDA's kernels refuse views that begin anywhere
    query, key, value = parts.view(-1, length, *parts.shape[1:]).permute(2, 0, 3, 1, 4)
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=relative.scale)
    out.view(-1, length, *out.shape[1:]).copy_(mixed.transpose(1, 2))


def _turned(wide: torch.Tensor, length: int) -> torch.Tensor:
    """The view [t, h, i, j] = wide[h, t * length + i, length - 1 - i + j] of (heads, texts * length, 2 length - 1)."""
    heads, rows, width = wide.shape
    shape = (rows // length, heads, length, length)
    return wide.as_strided(shape, (length * width, rows * width, width - 1, 1), length - 1)
