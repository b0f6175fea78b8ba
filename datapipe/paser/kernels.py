# mypy: disable-error-code="import-not-found, untyped-decorator"

"""The Triton kernel behind `divergence.rows_divergence`; nothing else imports this module.

One program a row reads the two rows of logits twice: for the normalisers and first choices, then for the sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["rows_divergence"]

_BLOCK = 4096
_WARPS = 8
_LN_2 = tl.constexpr(0.6931471805599453)
_COLUMNS = 6


def rows_divergence(logits_o: Tensor, logits_p: Tensor, targets: Tensor) -> Tensor:
    """As `divergence.rows_divergence`, float32 (rows, 6)."""
    rows, vocabulary = logits_o.shape
    out = torch.empty((rows, _COLUMNS), device=logits_o.device, dtype=torch.float32)
    if rows:
        _rows[(rows,)](
            logits_o, logits_p, targets, out, logits_o.stride(0), logits_p.stride(0), vocabulary,
            block=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
    return out


@triton.jit
def _rows(original, pruned, targets, out, stride_o, stride_p, vocabulary, block: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    row = tl.program_id(0).to(tl.int64)
    original += row * stride_o
    pruned += row * stride_p
    offsets = tl.arange(0, block)
    top_o = tl.full((), -float("inf"), tl.float32)
    top_p = tl.full((), -float("inf"), tl.float32)
    mass_o = tl.full((), 0.0, tl.float32)
    mass_p = tl.full((), 0.0, tl.float32)
    first_o = tl.full((), 0, tl.int32)
    first_p = tl.full((), 0, tl.int32)
    for start in range(0, vocabulary, block):
        here = start + offsets < vocabulary
        o = tl.load(original + start + offsets, mask=here, other=-float("inf"), eviction_policy="evict_last")
        p = tl.load(pruned + start + offsets, mask=here, other=-float("inf"), eviction_policy="evict_last")
        own_o, at_o = tl.max(o, 0, return_indices=True)
        own_p, at_p = tl.max(p, 0, return_indices=True)
        next_o, next_p = tl.maximum(top_o, own_o), tl.maximum(top_p, own_p)
        first_o = tl.where(own_o > top_o, start + at_o, first_o)
        first_p = tl.where(own_p > top_p, start + at_p, first_p)
        mass_o = mass_o * tl.exp(top_o - next_o) + tl.sum(tl.exp(o - next_o), 0)
        mass_p = mass_p * tl.exp(top_p - next_p) + tl.sum(tl.exp(p - next_p), 0)
        top_o, top_p = next_o, next_p
    whole_o, whole_p = top_o + tl.log(mass_o), top_p + tl.log(mass_p)
    jsd = tl.full((), 0.0, tl.float32)
    forward = tl.full((), 0.0, tl.float32)
    backward = tl.full((), 0.0, tl.float32)
    for start in range(0, vocabulary, block):
        here = start + offsets < vocabulary
        a = tl.load(original + start + offsets, mask=here, other=0.0) - whole_o
        b = tl.load(pruned + start + offsets, mask=here, other=0.0) - whole_p
        apart = tl.where(here, a - b, 0.0)
        p = tl.where(here, tl.exp(a), 0.0)
        q = tl.where(here, tl.exp(b), 0.0)
        tail = tl.log(1.0 + tl.exp(-tl.abs(apart)))
        left = p * (_LN_2 - tail - tl.maximum(-apart, 0.0))
        right = q * (_LN_2 - tail - tl.maximum(apart, 0.0))
        jsd += tl.sum(0.5 * (left + right), 0)
        forward += tl.sum(p * apart, 0)
        backward -= tl.sum(q * apart, 0)
    target = tl.load(targets + row)
    out += row * 6
    tl.store(out, tl.maximum(jsd, 0.0))
    tl.store(out + 1, forward)
    tl.store(out + 2, backward)
    tl.store(out + 3, tl.where(first_o != first_p, 1.0, 0.0))
    tl.store(out + 4, whole_o - tl.load(original + target))
    tl.store(out + 5, whole_p - tl.load(pruned + target))
