"""A small, fast ResNet for images of 28 to 64 pixels, trained from scratch with a fixed number of steps.

    uint8 images on the device -> flip, shifted crop, cutout -> ResNet-9 (channels last, bf16) -> SGD, EMA -> classes

The loop is of the kind that trains CIFAR-10 in seconds (Page 2018, "How to train your ResNet"; Jordan 2024, arXiv
2404.00498): everything lies on the device, augmentation included, so that no loader is needed. Every arm gets the same
steps and batch. On a GPU the bits depend on its kernels; results are compared over seeds, not by bits. Raises
`MetricError` for arms from which nothing can be learnt.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import MetricError
from datapipe.proof.heads import batches, check_arms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32, Int64

    Watch = Callable[[int, Float32], None]
    """Called with the round and the probabilities of every training row, float32 (rows, classes)."""

_PREDICTED_AT_ONCE = 2048
_SMALLEST = 8


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """How the network learns; the same for every arm.

    Attributes:
        steps: Updates, >= 1, whatever the number of rows.
        batch_rows: Images of an update.
        learning_rate: Peak of the one-cycle schedule, for the mean loss of a batch.
        weight_decay: Of the weights of convolutions and of the head.
        momentum: Nesterov's.
        smoothing: Mass of the label that is spread over all classes.
        width: Channels of the first block; 64 is ResNet-9.
        shift: Pixels of the random crop's greatest shift.
        flip: Whether images are mirrored at random; not for digits or letters.
        cutout: Side of the square that is blanked, 0 for none.
        average: Decay of the weights' moving average a step; the average predicts.
    """

    steps: int = 1000
    batch_rows: int = 512
    learning_rate: float = 0.4
    weight_decay: float = 5e-4
    momentum: float = 0.9
    smoothing: float = 0.1
    width: int = 64
    shift: int = 4
    flip: bool = True
    cutout: int = 8
    average: float = 0.99


def resnet9(channels: int, classes: int, *, width: int = 64) -> torch.nn.Module:
    """ResNet-9: stem, three halving stages of 2, 4 and 8 widths with residual pairs in the first and last, a head."""
    from torch import nn

    def block(into: int, out: int, *, pool: bool = False) -> nn.Sequential:
        layers = [nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))

    class Residual(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.inner = nn.Sequential(block(size, size), block(size, size))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.inner(x)  # type: ignore[no-any-return]

    return nn.Sequential(
        block(channels, width),
        block(width, 2 * width, pool=True),
        Residual(2 * width),
        block(2 * width, 4 * width, pool=True),
        block(4 * width, 8 * width, pool=True),
        Residual(8 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


class ImageTrainer:
    """Images on a device, and trainings of the same recipe on parts of them.

    Args:
        images: uint8 (rows, height, width, channels), at least 8 pixels a side.
        labels: int64 (rows,) in [0, classes).
        test: uint8 (test rows, height, width, channels).
        classes: Their number.
        recipe: How to train.
        device: Where.

    Raises:
        MetricError: Images are not uint8 with four axes, or differ in shape between training and test.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: Int64,
        test: NDArray[np.uint8],
        *,
        classes: int,
        recipe: ImageRecipe,
        device: str = "cpu",
    ) -> None:
        import torch

        for name, array in (("training", images), ("test", test)):
            if array.dtype != np.uint8 or array.ndim != 4 or min(array.shape[1:3]) < _SMALLEST:  # noqa: PLR2004
                raise MetricError(
                    f"the {name} images have shape {array.shape} and type {array.dtype}; needed is uint8 (rows, "
                    f"height, width, channels) with sides of at least {_SMALLEST}"
                )
        if images.shape[1:] != test.shape[1:]:
            raise MetricError(f"training images have shape {images.shape[1:]}, test images {test.shape[1:]}")
        self.recipe, self._classes = recipe, classes
        self._place = torch.device(device)
        self._kind = torch.bfloat16 if self._place.type == "cuda" else torch.float32
        self._labels = labels
        whole = torch.from_numpy(images)
        # A sample suffices for the channels' mean and spread, and bounds memory.
        sample = whole[:: max(1, len(whole) // 4096)].float() / 255
        self._mean = sample.mean((0, 1, 2)).to(self._place).view(1, -1, 1, 1)
        self._spread = (sample.std((0, 1, 2)) + 1e-3).to(self._place).view(1, -1, 1, 1)
        self._images, self._test = (self._load(array) for array in (images, test))

    def train(self, rows: Int64, *, seed: int, watch: Watch | None = None, rounds: int = 0) -> Int64:
        """Train on some rows and return the predicted class of every test image, int64 (test rows,).

        Args:
            rows: Images to learn from.
            seed: Of weights, order and augmentation.
            watch: Is shown the probabilities of every training image at `rounds` equal parts of the steps.
            rounds: How often it is shown.

        Raises:
            MetricError: The rows have fewer than two classes.
        """
        import torch

        check_arms(self._labels, [rows], [seed])
        with torch.random.fork_rng(devices=[self._place] if self._place.type == "cuda" else []):
            torch.manual_seed(seed)
            model = resnet9(self._images.shape[1], self._classes, width=self.recipe.width)
            model = model.to(self._place, memory_format=torch.channels_last)  # type: ignore[call-overload]
            averaged = self._fit(model, rows, seed, watch, rounds)
            predicted: Int64 = self._probabilities(averaged, self._test).argmax(1).astype(np.int64)
            return predicted

    def _load(self, images: NDArray[np.uint8]) -> torch.Tensor:
        import torch

        return torch.from_numpy(images).to(self._place).permute(0, 3, 1, 2)

    def _fit(self, model: torch.nn.Module, rows: Int64, seed: int, watch: Watch | None, rounds: int) -> torch.nn.Module:
        import torch

        recipe = self.recipe
        averaged = copy.deepcopy(model)
        weights: list[torch.Tensor] = list(model.parameters())
        velocity = [torch.zeros_like(weight) for weight in weights]
        decays = [recipe.weight_decay if weight.ndim > 1 else 0.0 for weight in weights]
        drawn = batches(rows, steps=recipe.steps, batch_rows=recipe.batch_rows, seed=seed)
        labels = torch.tensor(self._labels, device=self._place)
        shown = {-(-recipe.steps * (at + 1) // rounds) - 1: at for at in range(rounds)} if watch is not None else {}
        for step in range(recipe.steps):
            at = torch.from_numpy(drawn[step]).to(self._place, non_blocking=True)
            model.train()
            with torch.autocast(self._place.type, self._kind, enabled=self._place.type == "cuda"):
                logits = model(self._augmented(at))
            loss = torch.nn.functional.cross_entropy(logits.float(), labels[at], label_smoothing=recipe.smoothing)
            slopes = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                rate = recipe.learning_rate * one_cycle(step, recipe.steps)
                self._move(weights, slopes, velocity, decays, rate)
                # Early weights are forgotten sooner, so that short trainings are not averaged with their start.
                _average(averaged, model, share=1.0 - min(recipe.average, (step + 1) / (step + 10)))
            if watch is not None and step in shown:
                watch(shown[step], self._probabilities(model, self._images))
        return averaged

    def _move(
        self,
        weights: list[torch.Tensor],
        slopes: Sequence[torch.Tensor],
        velocity: list[torch.Tensor],
        decays: list[float],
        rate: float,
    ) -> None:
        """One step of SGD with Nesterov's momentum (Sutskever et al. 2013)."""
        import torch

        momentum = self.recipe.momentum
        decayed = torch._foreach_add(list(slopes), torch._foreach_mul(weights, decays))  # noqa: SLF001
        torch._foreach_mul_(velocity, momentum)
        torch._foreach_add_(velocity, decayed)
        torch._foreach_add_(decayed, velocity, alpha=momentum)
        torch._foreach_add_(weights, decayed, alpha=-rate)

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        import torch

        scaled = (images.float() / 255 - self._mean) / self._spread
        return scaled.contiguous(memory_format=torch.channels_last)

    def _augmented(self, rows: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn import functional

        recipe, images = self.recipe, self._images[rows]
        count, _, height, width = images.shape
        shift = recipe.shift
        draws: Any = {"device": self._place}
        padded = functional.pad(images.float(), [shift] * 4, mode="reflect") if shift else images.float()
        down, right = (torch.randint(0, 2 * shift + 1, (count, 1), **draws) for _ in range(2))
        lines = torch.arange(height, **draws) + down
        columns = torch.arange(width, **draws) + right
        if recipe.flip:
            mirrored = torch.rand(count, 1, **draws) < 0.5  # noqa: PLR2004 - a coin
            columns = torch.where(mirrored, columns.flip(1), columns)
        which = torch.arange(count, **draws)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[which, lines[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        normal = self._normalised(images)
        if recipe.cutout:
            top = torch.randint(-recipe.cutout // 2, height - recipe.cutout // 2, (count, 1), **draws)
            left = torch.randint(-recipe.cutout // 2, width - recipe.cutout // 2, (count, 1), **draws)
            inside = [
                (torch.arange(size, **draws) >= start) & (torch.arange(size, **draws) < start + recipe.cutout)
                for size, start in ((height, top), (width, left))
            ]
            normal = normal.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)
        return normal

    def _probabilities(self, model: torch.nn.Module, images: torch.Tensor) -> Float32:
        import torch

        model.eval()
        found = []
        with torch.inference_mode(), torch.autocast(self._place.type, self._kind, enabled=self._place.type == "cuda"):
            for start in range(0, len(images), _PREDICTED_AT_ONCE):
                part = self._normalised(images[start : start + _PREDICTED_AT_ONCE])
                both = (
                    model(part).float().softmax(1) + model(part.flip(3)).float().softmax(1)
                    if self.recipe.flip
                    else None
                )
                found.append(both / 2 if both is not None else model(part).float().softmax(1))
        whole: Float32 = torch.cat(found).cpu().numpy()
        return whole


def _average(averaged: torch.nn.Module, model: torch.nn.Module, *, share: float) -> None:
    """Move the averaged network towards the trained one by a share; counters of batches are copied."""
    for mean, now in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, share)
        else:
            mean.copy_(now)


def one_cycle(step: int, steps: int, *, warm: float = 0.2) -> float:
    """Share of the peak learning rate at a step: up in a line over the first `warm` of the steps, then down to zero."""
    rise = max(1.0, warm * steps)
    return (step + 1) / rise if step < rise else max(0.0, (steps - step) / max(1.0, steps - rise))
