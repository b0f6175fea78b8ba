"""A small residual network for images of 16 to 64 pixels that learns from its first step.

    (rows, channels, side, side) -> whitened patches of 2 x 2 -> three stages, each halving -> greatest value -> head

After airbench96 (Jordan 2024, arXiv 2404.00498): the first layer holds the principal components of image patches,
convolutions start as identities, batch norms have no scale, logits are a ninth of the head's output. Each stage is a
convolution with pooling and a residual pair. At width 64 an image of 32 x 32 costs 0.32 GFLOP forward, one of 28 x 28
a quarter less; ResNet-18 costs 1.1.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

_FORGETS = 0.4
"""Part of a batch in the running statistics: a short training moves fast."""
_TINY = 5e-4
"""Added to the variance of a patch's component before it is divided out."""
_LOGITS = 1 / 9


class ResNet(nn.Module):
    """The network; `features` is its length before the head.

    Args:
        channels: Of an image.
        classes: Outputs of the head.
        width: Channels of the first stage; the others have four times as many.
    """

    def __init__(self, channels: int, classes: int, *, width: int = 64) -> None:
        super().__init__()
        components = 2 * 4 * channels
        self.components: torch.Tensor
        self.register_buffer("components", torch.zeros(components, channels, 2, 2))
        self.bias = nn.Parameter(torch.zeros(components))
        sizes = (components, width, 4 * width, 4 * width)
        self.stages = nn.Sequential(*(_Stage(into, out) for into, out in pairwise(sizes)))
        self.features = sizes[-1]
        self.head = nn.Linear(self.features, classes, bias=False)

    def whiten(self, images: torch.Tensor) -> None:
        """Set the first layer to the principal components of the patches of some images, each of variance 1.

        Args:
            images: Normalised, float32 (rows, channels, side, side).
        """
        patches = functional.unfold(images, 2).transpose(1, 2).flatten(0, 1).double()
        values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).cpu())
        # Greatest first; the sign of a component is arbitrary, and both are held.
        scaled = (vectors / (values + _TINY).sqrt()).T.flip(0)
        self.components.copy_(torch.cat([scaled, -scaled]).reshape(self.components.shape))

    def body(self, images: torch.Tensor) -> torch.Tensor:
        """Return what enters the head, (rows, features)."""
        seen = functional.gelu(functional.conv2d(images, self.components, self.bias))
        found: torch.Tensor = self.stages(seen).amax((2, 3))
        return found

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, (rows, classes)."""
        logits: torch.Tensor = self.head(self.body(images)) * _LOGITS
        return logits

    def biases(self) -> list[nn.Parameter]:
        """Shifts of the batch norms, which learn faster than weights."""
        return [each.bias for each in self.modules() if isinstance(each, nn.BatchNorm2d)]


class _Stage(nn.Module):
    """Convolution, pooling, and a residual pair of convolutions."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(_convolution(size, out) for size in (into, out, out))
        self.norms = nn.ModuleList(_norm(out) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(self.convolutions[0](x), 2)
        x = functional.gelu(self.norms[0](x))
        inner = functional.gelu(self.norms[1](self.convolutions[1](x)))
        return functional.gelu(self.norms[2](self.convolutions[2](inner)) + x)


def _convolution(into: int, out: int) -> nn.Conv2d:
    made = nn.Conv2d(into, out, 3, padding="same", bias=False)
    with torch.no_grad():
        nn.init.dirac_(made.weight[: min(into, out)])
    return made


def _norm(size: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(size, eps=1e-5, momentum=_FORGETS)
    made.weight.requires_grad = False
    return made
