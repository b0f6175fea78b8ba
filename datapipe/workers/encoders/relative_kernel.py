# mypy: disable-error-code="import-not-found, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917 - a kernel takes everything that it reads as an argument
"""A Triton kernel for attention that knows how far tokens are apart; `steps.FusedSteps` calls it, nothing else does.

    queries x keys of positions, keys x queries of positions (two products, a row for each token)
        -> tiles of queries x blocks of keys: both terms picked by i - j, softmax as it goes -> mixed values

The sums of `relative.attend_relative` without its (n, n) matrices. Softmax is float32 whatever the precision of the
tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

    from datapipe.workers.encoders.attention import Spans
    from datapipe.workers.encoders.relative import Reach, Relative

__all__ = ["attend_relative_tiled"]

_PRODUCT_BYTES = 1 << 25
"""Memory of a product of tokens with positions; where it would be more, some heads are computed at a time. Two such
products about fill a cache of 50 MB, from which the kernel then reads them."""

_MASKED = tl.constexpr(-1e30)
"""Score of a key that a query must not see: finite, so that a row that has met no key of its own yet stays finite."""

_LOG2E = tl.constexpr(1.4426950408889634)
"""exp(x) = exp2(x log2(e))"""


def attend_relative_tiled(
    qkv: Tensor, spans: Spans, relative: Relative, *, heads: int, tile: int, keys: int = 64
) -> Tensor:
    """Attention within each text, (tokens, dim); neighbouring texts share a tile, and a mask keeps them apart.

    Args:
        qkv: Queries, keys and values side by side, (tokens, 3 * dim), bfloat16 or float16.
        spans: Where the texts lie; their lengths may be unknown.
        relative: What distances add.
        heads: Heads that dim is split into; the width of one is a power of two, at least 16.
        tile: Queries of a program, as `spans.tiles` means.
        keys: Keys that it reads at a time.
    """
    tokens, dim = len(qkv), qkv.shape[1] // 3
    out = torch.empty((tokens, dim), device=qkv.device, dtype=qkv.dtype)
    reach = relative.distances.needed(spans.longest)
    width = reach.high - reach.low
    some = min(heads, max(1, _PRODUCT_BYTES // (tokens * width * qkv.element_size())))
    parts = qkv.view(tokens, 3, heads, dim // heads).permute(1, 2, 0, 3)
    for first in range(0, heads, some):
        those = slice(first, min(first + some, heads))
        to_keys = _product(parts[0, those], relative.keys, those, reach)
        to_queries = _product(parts[1, those], relative.queries, those, reach)
        _attend_relative[(triton.cdiv(tokens, tile), those.stop - first)](
            qkv,
            qkv if to_keys is None else to_keys,
            qkv if to_queries is None else to_queries,
            relative.distances.rows,
            relative.distances.turned,
            spans.places,
            spans.tiles,
            out,
            tokens,
            relative.scale,
            first,
            reach.low,
            width,
            relative.distances.reach,
            min(spans.longest - 1, relative.distances.reach),
            dim=dim,
            head=dim // heads,
            tile=tile,
            block=keys,
            by_query=to_keys is not None,
            by_key=to_queries is not None,
            num_warps=4,
            num_stages=2,
        )
    return out


def _product(part: Tensor, table: Tensor | None, heads: slice, reach: Reach) -> Tensor | None:
    """Queries or keys of some heads times the rows of the positions that can occur, (heads, tokens, rows)."""
    return None if table is None else torch.bmm(part, table[heads, reach.low : reach.high].transpose(1, 2))


@triton.jit(do_not_specialize=["tokens", "first_head", "low_row", "far"])
def _attend_relative(
    qkv: tl.tensor,
    to_keys: tl.tensor,
    to_queries: tl.tensor,
    rows_of: tl.tensor,
    turned: tl.tensor,
    places: tl.tensor,
    tiles: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    scale: tl.tensor,
    first_head: tl.tensor,
    low_row: tl.tensor,
    width: tl.tensor,
    reach: tl.tensor,
    far: tl.tensor,
    dim: tl.constexpr,
    head: tl.constexpr,
    tile: tl.constexpr,
    block: tl.constexpr,
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
    # A product is (heads, tokens, width); rows of the table before `low_row` have no column in it.
    before = tl.program_id(1).to(tl.int64) * tokens
    pairs = tl.arange(0, tile * block)
    low, high = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    peak = tl.full((tile,), _MASKED, tl.float32)
    total = tl.zeros((tile,), tl.float32)
    mixed = tl.zeros((tile, head), tl.float32)
    for first in range(low, high, block):
        keys = first + tl.arange(0, block)
        there = keys < high
        at = keys.to(tl.int64)
        key = tl.load(base + dim + at[None, :] * (3 * dim) + columns[:, None], mask=there[None, :], other=0.0)
        # Tokens of different texts may be further apart than any of one text: what they read is masked below. Pairs of
        # a query and a key are read in a row, the queries' terms key after key, the keys' query after query: as they
        # lie in memory. As what the product adds to, they take its layout.
        terms = tl.zeros((tile, block), tl.float32)
        if by_query:
            apart = tl.minimum(tl.maximum(first - begin + pairs % block - pairs // block, -far), far)
            column = tl.minimum(pairs // block, tokens - 1 - begin) * width + tl.load(turned + reach + apart)
            read = tl.load(to_keys + (before + begin) * width - low_row + column)
            terms += tl.reshape(read, (tile, block)).to(tl.float32)
        if by_key:
            apart = tl.minimum(tl.maximum(begin - first + pairs % tile - pairs // tile, -far), far)
            column = tl.minimum(pairs // tile, tokens - 1 - first) * width + tl.load(rows_of + reach + apart)
            read = tl.load(to_queries + (before + first) * width - low_row + column)
            terms += tl.trans(tl.reshape(read, (block, tile))).to(tl.float32)
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
