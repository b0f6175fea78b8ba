# mypy: disable-error-code="import-not-found, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917 - a kernel takes everything that it reads as an argument
"""A Triton kernel for attention that knows how far tokens are apart; `steps.FusedSteps` calls it, nothing else does.

    queries x keys of all distances, keys x queries of all distances (products, a row for each token)
        -> tiles of queries x blocks of keys: both terms read along their diagonals, softmax as it goes -> mixed values

The sums of `relative.attend_relative` without its (n, n) matrices. A product has a column for each distance, not for
each row of the table, so the terms of a query lie side by side in the order of its keys: a tile of them is read like
any matrix, 16 bytes at a time, without a look at which row a distance has. What that costs is bytes of the products;
what it saves is most of the kernel's instructions. Softmax is float32 whatever the precision of the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

    from datapipe.workers.encoders.attention import Spans
    from datapipe.workers.encoders.relative import Columns, Relative

__all__ = ["TILING", "Tiling", "attend_relative_tiled"]

_PRODUCT_BYTES = 1 << 29
"""Memory of a product of tokens with distances; where it would be more, some heads are computed at a time."""

_MANY = 8192
"""Tokens from which a product is computed in parts of its own alignment; fewer are not worth that many calls."""

_MASKED = tl.constexpr(-1e30)
"""Score of a key that a query must not see: finite, so that a row that has met no key of its own yet stays finite."""

_LOG2E = tl.constexpr(1.4426950408889634)
"""exp(x) = exp2(x log2(e))"""


@dataclass(frozen=True)
class Tiling:
    """How the kernel divides its work; decides speed, and the last bits.

    Attributes:
        tiles: Tiles of `spans.tiles` in a program, a power of two.
        keys: Keys that it reads at a time, a power of two, at least 16.
        spaced: See `relative.Columns`; for batches of many tokens.
        warps: Warps of a program.
        stages: Blocks of keys that are on their way at a time.
    """

    tiles: int = 1
    keys: int = 64
    spaced: int = 1
    warps: int = 4
    stages: int = 1


TILING = Tiling()


def attend_relative_tiled(
    qkv: Tensor, spans: Spans, relative: Relative, *, heads: int, tile: int, tiling: Tiling | None = None
) -> Tensor:
    """Attention within each text, (tokens, dim); neighbouring texts share a tile, and a mask keeps them apart.

    Args:
        qkv: Queries, keys and values side by side, (tokens, 3 * dim), bfloat16 or float16.
        spans: Where the texts lie; their lengths may be unknown.
        relative: What distances add.
        heads: Heads that dim is split into; the width of one is a power of two, at least 16.
        tile: Queries of one of `spans.tiles`.
        tiling: None takes `TILING`.
    """
    tiling = tiling or TILING
    tokens, dim = len(qkv), qkv.shape[1] // 3
    queries = tile * tiling.tiles
    out = torch.empty((tokens, dim), device=qkv.device, dtype=qkv.dtype)
    columns = relative.distances.columns(spans.longest, spaced=tiling.spaced if tokens >= _MANY else 1)
    some = min(heads, max(1, _PRODUCT_BYTES // (tokens * columns.width * qkv.element_size())))
    parts = qkv.view(tokens, 3, heads, dim // heads).permute(1, 2, 0, 3)
    falling, rising = (relative.distances.picked(columns, turned=turned) for turned in (True, False))
    for first in range(0, heads, some):
        those = slice(first, min(first + some, heads))
        # Read for tokens after the last too: those of a whole tile, and of a whole block.
        to_keys = _product(parts[0, those], relative.keys, those, falling, columns, over=tiling.keys)
        to_queries = _product(parts[1, those], relative.queries, those, rising, columns, over=queries)
        _attend_relative[(triton.cdiv(tokens, queries), those.stop - first)](
            qkv,
            qkv if to_keys is None else to_keys,
            qkv if to_queries is None else to_queries,
            spans.places,
            spans.tiles,
            out,
            tokens,
            relative.scale,
            first,
            columns.width,
            columns.middle,
            len(spans.tiles) - 1,
            dim=dim,
            head=dim // heads,
            tile=queries,
            several=tiling.tiles,
            block=tiling.keys,
            spaced=columns.spaced,
            by_query=to_keys is not None,
            by_key=to_queries is not None,
            num_warps=tiling.warps,
            num_stages=tiling.stages,
        )
    return out


def _product(
    part: Tensor, table: Tensor | None, heads: slice, picked: Tensor, columns: Columns, *, over: int
) -> Tensor | None:
    """Queries or keys of some heads times the rows of all distances, (heads, tokens, width) and `over` numbers more.

    Args:
        part: Queries or keys, (heads, tokens, head).
        table: Of all heads, (all heads, rows, head); None gives None.
        heads: Which these are.
        picked: Rows of the distances, from `Distances.picked`.
        columns: How the product lies.
        over: Numbers after it, never written.
    """
    if table is None:
        return None
    some, tokens, _ = part.shape
    memory = part.new_empty(some * tokens * columns.width + over)
    product = memory[: len(memory) - over].view(some, tokens, columns.width)
    rows = table[heads].index_select(1, picked).transpose(1, 2)
    for rest in range(min(columns.spaced, tokens)):
        begin = columns.spaced - 1 - rest
        own = slice(rest, None, columns.spaced)
        torch.bmm(part[:, own], rows[:, :, begin : begin + columns.width], out=product[:, own])
    return memory


@triton.jit(do_not_specialize=["tokens", "first_head", "last_tile"])
def _attend_relative(
    qkv: tl.tensor,
    to_keys: tl.tensor,
    to_queries: tl.tensor,
    places: tl.tensor,
    tiles: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    scale: tl.tensor,
    first_head: tl.tensor,
    width: tl.tensor,
    middle: tl.tensor,
    last_tile: tl.tensor,
    dim: tl.constexpr,
    head: tl.constexpr,
    tile: tl.constexpr,
    several: tl.constexpr,
    block: tl.constexpr,
    spaced: tl.constexpr,
    by_query: tl.constexpr,
    by_key: tl.constexpr,
) -> None:
    begin = tl.program_id(0) * tile
    rows, columns = begin + tl.arange(0, tile), tl.arange(0, head)
    live = rows < tokens
    at_head = (first_head + tl.program_id(1)) * head
    base = qkv + at_head
    query = tl.load(base + rows.to(tl.int64)[:, None] * (3 * dim) + columns[None, :], mask=live[:, None], other=0.0)
    text = rows - tl.load(places + rows, mask=live, other=0)
    # The term of query i and key j stands in column middle + j - i + i % spaced of row i of one product, and in column
    # middle + i - j + j % spaced of row j of the other. For tokens of different texts that may be in another row, but
    # never outside of the product: it is read without a mask, which would cost the reading of 16 bytes at a time.
    before = tl.program_id(1).to(tl.int64) * tokens * width
    near = tl.minimum(rows, tokens - 1)
    of_query = to_keys + before + (near * width + middle - near // spaced * spaced)[:, None]
    of_key = to_queries + before + (middle + rows)[None, :]
    low = tl.load(tiles + 2 * several * tl.program_id(0)) // spaced * spaced
    high = tl.load(tiles + 2 * tl.minimum(several * tl.program_id(0) + several - 1, last_tile) + 1)
    peak = tl.full((tile,), _MASKED, tl.float32)
    total = tl.zeros((tile,), tl.float32)
    mixed = tl.zeros((tile, head), tl.float32)
    for start in range(low, high, block):
        first = tl.multiple_of(start, spaced)
        keys = first + tl.arange(0, block)
        there = keys < high
        at = keys.to(tl.int64)
        key = tl.load(base + dim + at[None, :] * (3 * dim) + columns[:, None], mask=there[None, :], other=0.0)
        # As what the product of queries and keys adds to, the terms take its layout.
        terms = tl.zeros((tile, block), tl.float32)
        if by_query:
            terms += tl.load(of_query + keys[None, :]).to(tl.float32)
        if by_key:
            held = tl.minimum(keys, tokens - 1)
            read = tl.load(of_key + (held * width - held // spaced * spaced)[:, None])
            terms += tl.trans(read).to(tl.float32)
        scores = tl.dot(query, key, terms * (1.0 / scale)) * (scale * _LOG2E)
        other_text = keys - tl.load(places + keys, mask=there, other=0)
        seen = (text[:, None] == other_text[None, :]) & there[None, :]
        scores = tl.where(seen, scores, _MASKED)
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        shrink = tl.exp2(peak - higher)
        weights = tl.exp2(scores - higher[:, None])
        value = tl.load(base + 2 * dim + at[:, None] * (3 * dim) + columns[None, :], mask=there[:, None], other=0.0)
        total = total * shrink + tl.sum(weights, axis=1)
        mixed = tl.dot(weights.to(value.dtype), value, mixed * shrink[:, None])
        peak = higher
    mixed = mixed / tl.where(total > 0.0, total, 1.0)[:, None]
    at = rows.to(tl.int64)[:, None] * dim + at_head + columns[None, :]
    tl.store(out + at, mixed.to(out.dtype.element_ty), mask=live[:, None])
