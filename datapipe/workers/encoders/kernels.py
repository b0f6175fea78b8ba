# mypy: disable-error-code="import-not-found, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917 - a kernel takes everything that it reads as an argument
"""Triton kernels for the steps between products; `steps.FusedSteps` calls them, nothing else imports this module.

Sums, norms, activations and softmax are float32 whatever the precision of the tensors. Numbers of tokens are no part of
what is compiled, so one build serves all batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["add_norm", "attend_tiled", "gate", "rotate"]

_ROWS = 4
"""Tokens of one program of the row-wise kernels: one a warp."""

_GATED = 1024
"""Numbers of one program of the gate: 16 bytes for each of 128 threads."""

_MASKED = tl.constexpr(-1e30)
"""Score of a key that a query must not see: finite, so that a row that has met no key of its own yet stays finite."""


def add_norm(
    sums: Tensor,
    update: Tensor | None,
    index: tuple[Tensor, Tensor] | None,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    *,
    dtype: torch.dtype,
    keep_sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """Norm of the sum of two rows for each token; what is kept as float32, and the norm as `dtype`.

    Args:
        sums: (tokens, dim), or with `index` (anything, dim). Overwritten by what is kept if it is float32 and no table.
        update: The same, of any float type; None adds nothing.
        index: Which rows of `sums` and of `update` belong to each token, int32 (tokens,) each; None takes them in turn.
        weight: float32 (dim,).
        bias: float32 (dim,) or None.
        epsilon: Added to the variance.
        dtype: Of the second result.
        keep_sum: Whether the sum is kept rather than its norm.
    """
    dim = sums.shape[1]
    tokens = len(sums) if index is None else len(index[0])
    kept = sums if index is None else torch.empty((tokens, dim), device=sums.device, dtype=torch.float32)
    operand = torch.empty((tokens, dim), device=sums.device, dtype=dtype)
    places, rows = index if index is not None else (operand, operand)
    _add_norm[(triton.cdiv(tokens, _ROWS),)](
        sums,
        operand if update is None else update,
        places,
        rows,
        weight,
        weight if bias is None else bias,
        kept,
        operand,
        tokens,
        epsilon,
        dim=dim,
        block=triton.next_power_of_2(dim),
        rows_each=_ROWS,
        indexed=index is not None,
        added=update is not None,
        biased=bias is not None,
        keep_sum=keep_sum,
    )
    return kept, operand


@triton.jit(do_not_specialize=["tokens"])
def _add_norm(
    sums: tl.tensor,
    update: tl.tensor,
    sums_rows: tl.tensor,
    update_rows: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    kept: tl.tensor,
    operand: tl.tensor,
    tokens: tl.tensor,
    epsilon: tl.tensor,
    dim: tl.constexpr,
    block: tl.constexpr,
    rows_each: tl.constexpr,
    indexed: tl.constexpr,
    added: tl.constexpr,
    biased: tl.constexpr,
    keep_sum: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * rows_each + tl.arange(0, rows_each)
    columns = tl.arange(0, block)
    live = (rows < tokens)[:, None] & (columns < dim)[None, :]
    at = rows.to(tl.int64)[:, None] * dim + columns[None, :]
    from_sums, from_update = at, at
    if indexed:
        picked = tl.load(sums_rows + rows, mask=rows < tokens, other=0).to(tl.int64)
        from_sums = picked[:, None] * dim + columns[None, :]
    states = tl.load(sums + from_sums, mask=live, other=0.0).to(tl.float32)
    if added:
        if indexed:
            placed = tl.load(update_rows + rows, mask=rows < tokens, other=0).to(tl.int64)
            from_update = placed[:, None] * dim + columns[None, :]
        states += tl.load(update + from_update, mask=live, other=0.0).to(tl.float32)
    if keep_sum:
        tl.store(kept + at, states, mask=live)
    mean = tl.sum(states, axis=1) / dim
    centred = tl.where(live, states - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / dim + epsilon)
    normed = centred * scale[:, None] * tl.load(weight + columns, mask=columns < dim, other=0.0)[None, :]
    if biased:
        normed += tl.load(bias + columns, mask=columns < dim, other=0.0)[None, :]
    if not keep_sum:
        tl.store(kept + at, normed, mask=live)
    tl.store(operand + at, normed.to(operand.dtype.element_ty), mask=live)


def gate(wide: Tensor) -> Tensor:
    """GELU of the left half times the right half: (tokens, 2 * inner) to (tokens, inner)."""
    tokens, inner = len(wide), wide.shape[1] // 2
    out = torch.empty((tokens, inner), device=wide.device, dtype=wide.dtype)
    block = min(_GATED, inner & -inner)  # the largest power of two that divides it
    rows = _GATED // block
    _gate[triton.cdiv(tokens, rows), triton.cdiv(inner, block)](
        wide, out, tokens, inner=inner, block=block, rows_each=rows
    )
    return out


@triton.jit(do_not_specialize=["tokens"])
def _gate(
    wide: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    inner: tl.constexpr,
    block: tl.constexpr,
    rows_each: tl.constexpr,
) -> None:
    rows = (tl.program_id(0) * rows_each + tl.arange(0, rows_each)).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    live = (rows < tokens)[:, None] & (columns < inner)[None, :]
    at = rows[:, None] * (2 * inner) + columns[None, :]
    left = tl.load(wide + at, mask=live, other=0.0).to(tl.float32)
    right = tl.load(wide + at + inner, mask=live, other=0.0).to(tl.float32)
    gelu = 0.5 * left * (1.0 + tl.erf(left * 0.7071067811865476))
    at = rows[:, None] * inner + columns[None, :]
    tl.store(out + at, (gelu * right).to(out.dtype.element_ty), mask=live)


def rotate(qkv: Tensor, cosines: Tensor, sines: Tensor, places: Tensor, *, heads: int) -> Tensor:
    """Turn the halves of each head of queries and keys, in place.

    Args:
        qkv: Queries, keys and values side by side, (tokens, 3 * dim). Overwritten.
        cosines: Of the angle of each place and pair, float32 (positions, head / 2); head / 2 is a power of two.
        sines: The same.
        places: Place of each token in its text, int32 (tokens,).
        heads: Heads that dim is split into.
    """
    half = cosines.shape[1]
    block = triton.next_power_of_2(2 * heads)
    grid = (len(qkv),)
    _rotate[grid](qkv, cosines, sines, places, width=qkv.shape[1], twice=2 * heads, block=block, half=half)
    return qkv


@triton.jit
def _rotate(
    qkv: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    places: tl.tensor,
    width: tl.constexpr,
    twice: tl.constexpr,
    block: tl.constexpr,
    half: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(places + token)
    heads, columns = tl.arange(0, block), tl.arange(0, half)
    live = (heads < twice)[:, None] & (columns < half)[None, :]
    cosine = tl.load(cosines + place * half + columns)[None, :]
    sine = tl.load(sines + place * half + columns)[None, :]
    at = token * width + heads[:, None] * (2 * half) + columns[None, :]
    first = tl.load(qkv + at, mask=live, other=0.0).to(tl.float32)
    second = tl.load(qkv + at + half, mask=live, other=0.0).to(tl.float32)
    tl.store(qkv + at, (first * cosine - second * sine).to(qkv.dtype.element_ty), mask=live)
    tl.store(qkv + at + half, (second * cosine + first * sine).to(qkv.dtype.element_ty), mask=live)


def attend_tiled(
    qkv: Tensor, places: Tensor, tiles: Tensor, *, heads: int, window: int | None, tile: int, keys: int = 64
) -> Tensor:
    """Attention within each text, (tokens, dim); neighbouring texts share a tile, and a mask keeps them apart.

    The same sums as flash attention (Dao, arXiv 2307.08691), which gives each text tiles of its own: a text of 12
    tokens then costs as much as one of 128.

    Args:
        qkv: Queries, keys and values side by side, (tokens, 3 * dim).
        places: Place of each token in its text, int32 (tokens,).
        tiles: First key, and the end of the keys, that any query of a tile needs, int32 (tiles, 2).
        heads: Heads that dim is split into; the width of one is a power of two, at least 16.
        window: How far apart tokens may be that attend to each other; None is no limit.
        tile: Queries of a program.
        keys: Keys that it reads at a time.
    """
    tokens, dim = len(qkv), qkv.shape[1] // 3
    head = dim // heads
    out = torch.empty((tokens, dim), device=qkv.device, dtype=qkv.dtype)
    _attend_tiled[(triton.cdiv(tokens, tile), heads)](
        qkv,
        places,
        tiles,
        out,
        tokens,
        head**-0.5 * 1.4426950408889634,  # exp(x) = exp2(x log2(e))
        dim=dim,
        head=head,
        tile=tile,
        block=keys,
        window=-1 if window is None else window,
        num_warps=4,
        num_stages=2,
    )
    return out


@triton.jit(do_not_specialize=["tokens"])
def _attend_tiled(
    qkv: tl.tensor,
    places: tl.tensor,
    tiles: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    scale: tl.tensor,
    dim: tl.constexpr,
    head: tl.constexpr,
    tile: tl.constexpr,
    block: tl.constexpr,
    window: tl.constexpr,
) -> None:
    begin = tl.program_id(0) * tile
    rows, columns = begin + tl.arange(0, tile), tl.arange(0, head)
    live = (rows < tokens)[:, None]
    base = qkv + tl.program_id(1) * head
    query = tl.load(base + rows.to(tl.int64)[:, None] * (3 * dim) + columns[None, :], mask=live, other=0.0)
    text = rows - tl.load(places + rows, mask=rows < tokens, other=0)
    low, high = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    if window >= 0:
        low, high = tl.maximum(low, begin - window), tl.minimum(high, begin + tile + window)
    peak = tl.full((tile,), _MASKED, tl.float32)
    total = tl.zeros((tile,), tl.float32)
    mixed = tl.zeros((tile, head), tl.float32)
    for first in range(low, high, block):
        keys = first + tl.arange(0, block)
        there = keys < high
        at = keys.to(tl.int64)
        key = tl.load(base + dim + at[None, :] * (3 * dim) + columns[:, None], mask=there[None, :], other=0.0)
        scores = tl.dot(query, key) * scale
        theirs = keys - tl.load(places + keys, mask=there, other=0)
        seen = (text[:, None] == theirs[None, :]) & there[None, :]
        if window >= 0:
            apart = rows[:, None] - keys[None, :]
            seen = seen & (apart <= window) & (apart >= -window)
        scores = tl.where(seen, scores, _MASKED)
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        shrink = tl.exp2(peak - higher)
        weights = tl.exp2(scores - higher[:, None])
        value = tl.load(base + 2 * dim + at[:, None] * (3 * dim) + columns[None, :], mask=there[:, None], other=0.0)
        total = total * shrink + tl.sum(weights, axis=1)
        mixed = tl.dot(weights.to(value.dtype), value, mixed * shrink[:, None])
        peak = higher
    mixed = mixed / tl.where(total > 0.0, total, 1.0)[:, None]
    at = rows.to(tl.int64)[:, None] * dim + tl.program_id(1) * head + columns[None, :]
    tl.store(out + at, mixed.to(out.dtype.element_ty), mask=live)
