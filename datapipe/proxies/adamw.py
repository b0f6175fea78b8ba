"""One step of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), written out for the few tensors of a head.

Autograd and torch.optim cost more than the arithmetic of so small a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class AdamW:
    """The moments of some tensors, and the steps that move them.

    Args:
        values: Tensors to be moved, of any shape; they are changed in place.
        decays: Decoupled weight decay of each; 0 for a bias.
    """

    def __init__(self, values: list[torch.Tensor], decays: list[float]) -> None:
        import torch

        self._values, self._decays, self._steps = values, decays, 0
        self._means = [torch.zeros_like(each) for each in values]
        self._squares = [torch.zeros_like(each) for each in values]

    def move(self, slopes: list[torch.Tensor], *, rate: float) -> None:
        """Take one step down.

        Args:
            slopes: Gradient of each tensor, of its shape.
            rate: Learning rate of this step.
        """
        self._steps += 1
        first, second = (1.0 - beta**self._steps for beta in _BETAS)
        each = zip(self._values, self._decays, slopes, self._means, self._squares, strict=True)
        for value, decay, slope, mean, square in each:
            mean.lerp_(slope, 1.0 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(slope, slope, value=1.0 - _BETAS[1])
            if decay:
                value.mul_(1.0 - rate * decay)
            value.addcdiv_(mean, (square / second).sqrt_().add_(_EPSILON), value=-rate / first)
