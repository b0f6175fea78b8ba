"""How far two language models disagree about the next token, over the whole vocabulary, token by token.

    states of both -> heads, a chunk of tokens at a time, logits in two reused buffers -> one pass over rows -> numbers

With a = log p and b = log q the Jensen-Shannon divergence is sum_v p/2 (ln 2 - softplus(b - a)) + q/2 (ln 2 -
softplus(a - b)), in [0, ln 2] nats: one exponential and one logarithm an entry once the two normalisers are known.
Both Kullback-Leibler divergences, the first choices and the losses come out of the same pass. On a GPU the pass is one
Triton kernel. Nothing as large as tokens x vocabulary is ever held. Raises `MetricError`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

from datapipe.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

LN_2 = math.log(2.0)
_ENTRIES_AT_ONCE = 1 << 18
"""Logits of a model that the host works on at a time: they and all that is made of them stay in its cache."""


class Head(Protocol):
    """What gives logits of states: `datapipe.workers.encoders.causal.CausalModel`, or its like.

    Attributes:
        vocabulary: Columns of the logits.
        chunk_rows: Rows at a time.
    """

    vocabulary: int
    chunk_rows: int

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of the token after each state, float32 (rows, vocabulary), in memory that the next call reuses."""
        ...


@dataclass(frozen=True, eq=False)
class TokenDivergence:
    """Original o against pruned p, of each token; float32 (tokens,), in nats, on the device of the states.

    Attributes:
        jsd: Jensen-Shannon divergence, 0 ... ln 2.
        kl_op: KL(o || p).
        kl_po: KL(p || o).
        disagree: 1 where the most probable tokens differ, else 0.
        nll_o: Of the token that follows, by the original.
        nll_p: By the pruned.
    """

    jsd: torch.Tensor
    kl_op: torch.Tensor
    kl_po: torch.Tensor
    disagree: torch.Tensor
    nll_o: torch.Tensor
    nll_p: torch.Tensor


def token_divergence(
    original: Head, pruned: Head, states_o: torch.Tensor, states_p: torch.Tensor, targets: torch.Tensor
) -> TokenDivergence:
    """Compare what both models say after each state.

    Memory beyond the arguments: two buffers of logits (at most 512 MiB each on a GPU) and 24 bytes a token.

    Args:
        original: Head of the original.
        pruned: Head of the other.
        states_o: Hidden states of the original, (tokens, its dim).
        states_p: Of the other, (tokens, its dim), in the same order and on the same device.
        targets: Ids of the tokens that follow, int64 (tokens,), there too.

    Raises:
        MetricError: The numbers of tokens or the vocabularies differ, or a divergence is not finite, as with NaN
            weights; names the first such token.
    """
    import torch

    if not len(states_o) == len(states_p) == len(targets):
        raise MetricError(
            f"{len(states_o)} states of the original, {len(states_p)} of the pruned model and {len(targets)} tokens "
            "are of different texts"
        )
    if original.vocabulary != pruned.vocabulary:
        raise MetricError(
            f"the original knows {original.vocabulary:,} tokens and the pruned model {pruned.vocabulary:,}: models "
            "with different tokenizers cannot be compared token by token"
        )
    rows = min(original.chunk_rows, pruned.chunk_rows)
    parts = [torch.empty((0, len(columns())), device=states_o.device)]
    with torch.inference_mode():
        for start in range(0, len(targets), rows):
            chunk = slice(start, start + rows)
            parts.append(
                rows_divergence(original.logits(states_o[chunk]), pruned.logits(states_p[chunk]), targets[chunk])
            )
    found = torch.cat(parts)
    wrong = (~found.isfinite()).any(1).nonzero()
    if len(wrong):
        raise MetricError(
            f"the divergence at token {int(wrong[0])} is not a finite number: a model has NaN or infinite weights, or "
            "overflows in its precision"
        )
    return TokenDivergence(*found.unbind(1))


def rows_divergence(logits_o: torch.Tensor, logits_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Columns jsd, kl_op, kl_po, disagree, nll_o, nll_p of each row, float32 (rows, 6).

    Args:
        logits_o: float32 (rows, vocabulary).
        logits_p: float32 (rows, vocabulary).
        targets: int64 (rows,) in [0, vocabulary).
    """
    import torch

    if logits_o.is_cuda:
        from datapipe.paser.kernels import rows_divergence as on_gpu

        return on_gpu(logits_o, logits_p, targets)
    step = max(1, _ENTRIES_AT_ONCE // logits_o.shape[1])
    # New memory for every intermediate would cost more than what is computed in it.
    scratch = torch.empty((6, min(step, len(targets)), logits_o.shape[1]))
    pieces = [slice(at, at + step) for at in range(0, len(targets), step)]
    found = [_plain(logits_o[piece], logits_p[piece], targets[piece], scratch) for piece in pieces]
    return torch.cat([*found, torch.empty((0, len(columns())))])


def _plain(
    logits_o: torch.Tensor, logits_p: torch.Tensor, targets: torch.Tensor, scratch: torch.Tensor
) -> torch.Tensor:
    import torch

    a, b, p, q, apart, tail = scratch[:, : len(targets)]
    torch.log_softmax(logits_o, 1, out=a)
    torch.log_softmax(logits_p, 1, out=b)
    picked = targets.unsqueeze(1)
    losses = [-each.gather(1, picked).squeeze(1) for each in (a, b)]
    torch.exp(a, out=p)
    torch.exp(b, out=q)
    torch.sub(a, b, out=apart)
    # softplus(d) is max(d, 0) + log1p(exp(-|d|)), whose exponential does not overflow; a and b are free from here on.
    torch.abs(apart, out=tail).neg_().exp_().log1p_().neg_().add_(LN_2)
    torch.clamp_max(apart, 0.0, out=a).add_(tail).mul_(p)
    torch.clamp_min(apart, 0.0, out=b).neg_().add_(tail).mul_(q)
    return torch.stack(
        [
            (0.5 * (a.sum(1) + b.sum(1))).clamp_min(0.0),
            p.mul_(apart).sum(1),
            -q.mul_(apart).sum(1),
            (logits_o.argmax(1) != logits_p.argmax(1)).float(),
            *losses,
        ],
        dim=1,
    )


def columns() -> Sequence[str]:
    """Names of the numbers of a token, in the order of `TokenDivergence`."""
    return tuple(each.name for each in fields(TokenDivergence))
