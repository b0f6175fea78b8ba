"""What one set of predictions says of each row: label probability, margin, error, gap and entropy.

    logits, labels -> probabilities -> Predicted, one number a row each

EL2N is `error` early in training (Paul et al. 2021, arXiv 2107.07075); GraNd of the last layer is `error` times the
length of what enters that layer, the bias's 1 included, since the gradient is the outer product of the two; `margin`
is the term whose mean over the epochs is AUM (Pleiss et al. 2020, arXiv 2001.10528), here of probabilities; `gap` and
`entropy` need no label. Torch, in whatever precision and on whatever device the input is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Predicted(NamedTuple):
    """One number a row each, tensors (rows,).

    Attributes:
        probability: Of the label, in [0, 1].
        margin: Probability of the label minus the greatest of the other classes, in [-1, 1].
        error: Length of probabilities minus one-hot label, in [0, sqrt 2].
        gap: Greatest probability minus the second, in [0, 1].
        entropy: Of the probabilities, in nats, in [0, ln classes].
    """

    probability: torch.Tensor
    margin: torch.Tensor
    error: torch.Tensor
    gap: torch.Tensor
    entropy: torch.Tensor


def predicted(probabilities: torch.Tensor, labels: torch.Tensor) -> Predicted:
    """Reduce probabilities (rows, classes >= 2), each row summing to 1, by labels int64 (rows,) in [0, classes)."""
    import torch

    wanted = labels.unsqueeze(1)
    own = probabilities.gather(1, wanted).squeeze(1)
    top = probabilities.topk(2, dim=1).values
    others = probabilities.scatter(1, wanted, 0.0)
    # The label's own term apart: from the sum of squares it would cancel where the prediction is nearly right.
    error = ((1.0 - own).square() + others.square().sum(1)).sqrt()
    entropy = torch.special.entr(probabilities).sum(1)
    return Predicted(own, own - others.amax(1), error, top[:, 0] - top[:, 1], entropy)


def last_layer_gradient(error: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """GraNd of a linear last layer with a bias: ||p - y|| sqrt(||h||^2 + 1).

    Args:
        error: ||p - y||, (rows,).
        features: h, what enters the layer, (rows, width).
    """
    return error * (features.square().sum(1) + 1.0).sqrt()
