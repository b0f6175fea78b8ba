"""What a pruner is trained on: keep probabilities of the document's tokens, and the score of the window.

    L = mean over sentences of (mean over a sentence's tokens of BCE(keep logit, target)) + lambda * score loss

Provence (Chirkova et al., arXiv 2501.16214, section 3) takes cross entropy over all tokens, so that long sentences
weigh more and question and padding are learnt too, plus lambda * MSE to the starting reranker's score. Here each
sentence weighs the same, as it does where its mean decides, and only tokens of the document count. Targets may be soft.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["gold_score_loss", "keep_loss", "teacher_score_loss", "unit_means"]


def unit_means(values: torch.Tensor, unit: torch.Tensor, units: int) -> torch.Tensor:
    """Mean of the values of each unit's tokens, float32 (units,); 0 for a unit without tokens.

    Args:
        values: Of all tokens, float32, any shape.
        unit: Unit of each token, of the same shape, int64; `units` for tokens of none.
        units: How many there are.
    """
    flat, owner = values.reshape(-1), unit.reshape(-1)
    none = torch.zeros(units + 1, dtype=values.dtype, device=values.device)
    counts = none.index_add(0, owner, torch.ones_like(flat)).clamp(min=1)
    return (none.index_add(0, owner, flat) / counts)[:units]


def keep_loss(logits: torch.Tensor, unit: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first term of the module's formula, a scalar.

    Args:
        logits: Keep logits, float32 (windows, longest).
        unit: Unit of each token, int64 (windows, longest); len(target) for question, title, special tokens and padding.
        target: Probability that each unit is to be kept, float32 (units,), 0-1; at least one unit.
    """
    wanted = functional.pad(target, (0, 1))[unit]
    each = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return unit_means(each, unit, len(target)).mean()


def gold_score_loss(logits: torch.Tensor, holds_gold: torch.Tensor) -> torch.Tensor:
    """BCE between score logits and whether windows hold gold, both float32 (windows,); where there is no teacher."""
    return functional.binary_cross_entropy_with_logits(logits, holds_gold)


def teacher_score_loss(logits: torch.Tensor, scores: Sequence[float] | torch.Tensor) -> torch.Tensor:
    """MSE between score logits and the raw scores of a teacher or the starting reranker, both float32 (windows,)."""
    return functional.mse_loss(logits, torch.as_tensor(scores, dtype=logits.dtype, device=logits.device))
