"""A small, fast ResNet for images of 16 to 64 pixels, trained from scratch with a fixed number of steps.

    arms, seeds -> lanes (`datapipe.proof.lane`) -> averaged networks -> class of each test image, int64

The loop is of the kind that trains CIFAR-10 in seconds (Page 2018, "How to train your ResNet"; Jordan 2024, arXiv
2404.00498): everything lies on the device, augmentation included, so that no loader is needed. Every arm gets the same
steps and batch. A teacher's soft labels may stand beside the labels (knowledge distillation), and noisy labels in their
place. On a GPU the bits depend on its kernels; results are compared over seeds, not by bits. Raises `MetricError` for
arms from which nothing can be learnt, and for a network that is no number in the end.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import MetricError
from datapipe.proof.heads import check_arms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from numpy.typing import NDArray

    from datapipe.proof.lane import Lane
    from datapipe.storage.arrays import Float32, Int64

    Watch = Callable[[int, Float32], None]
    """Called with the round and the probabilities of every training row, float32 (rows, classes)."""

_PREDICTED_AT_ONCE = 2048
_SMALLEST = 16
_SAMPLE = 4096
_LEAST = 1e-12
"""Probability below which a teacher's is not told apart from it, so that every log-probability is finite."""


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """How the network learns; the same for every arm.

    Attributes:
        steps: Updates, >= 1, whatever the number of rows.
        batch_rows: Images of an update.
        learning_rate: Peak of the one-cycle schedule, for the mean loss of a batch.
        weight_decay: Of the weights of convolutions and of the head.
        momentum: Nesterov's.
        bias_rate: Times the learning rate at which the shifts of batch norms learn.
        smoothing: Mass of the label that is spread over all classes.
        width: Channels of the first stage.
        shift: Pixels of the random crop's greatest shift.
        flip: Whether images are mirrored, every second time they are seen; not for digits or letters.
        cutout: Side of the square that is blanked, 0 for none.
        average: Decay of the weights' moving average a step; the average predicts.
    """

    steps: int = 1000
    batch_rows: int = 512
    learning_rate: float = 0.6
    weight_decay: float = 1.3e-3
    momentum: float = 0.85
    bias_rate: float = 64.0
    smoothing: float = 0.2
    width: int = 64
    shift: int = 2
    flip: bool = True
    cutout: int = 8
    average: float = 0.99


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """What a teacher says of every training image, and how much it counts.

    Attributes:
        targets: Log-probabilities at temperature 1, float32 (training rows, classes).
        alpha: Weight of the teacher in [0, 1]; the labels have the rest.
        temperature: T > 0, of teacher and student in the distillation term, which is multiplied by T^2.
    """

    targets: Float32
    alpha: float
    temperature: float = 1.0


class ImageTrainer:
    """Images on a device, and trainings of the same recipe on parts of them.

    Args:
        images: uint8 (rows, height, width, channels), at least 16 pixels a side.
        labels: int64 (rows,) in [0, classes).
        test: uint8 (test rows, height, width, channels).
        classes: Their number.
        recipe: How to train.
        device: Where.
        lanes: Networks that a GPU trains side by side, so that one fills the gaps of another.

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
        lanes: int = 1,
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
        self.recipe, self._classes, self._labels = recipe, classes, labels
        self._place = torch.device(device)
        self._images, self._test = (torch.from_numpy(array).to(self._place) for array in (images, test))
        # A sample suffices for the channels' mean and spread, and bounds memory.
        sample = self._images[:: max(1, len(images) // _SAMPLE)].float()
        self._mean, self._spread = sample.mean((0, 1, 2)), sample.std((0, 1, 2)) + 0.25
        self._lanes = self._open(lanes if self._place.type == "cuda" else 1)

    def train(
        self, rows: Int64, *, seed: int, labels: Int64 | None = None, watch: Watch | None = None, rounds: int = 0
    ) -> Int64:
        """Train on some rows and return the predicted class of every test image, int64 (test rows,).

        Args:
            rows: Images to learn from.
            seed: Of weights, order and augmentation.
            labels: Of all training images, in place of their own, int64 in [0, classes).
            watch: Is shown the probabilities of every training image at `rounds` equal parts of the steps.
            rounds: How often it is shown.

        Raises:
            MetricError: The rows have fewer than two classes, or the network's outputs are not finite.
        """
        return self._predicted(self._trained(rows, seed, labels, watch, rounds))

    def teach(
        self, rows: Int64, *, seed: int, labels: Int64 | None = None, watch: Watch | None = None, rounds: int = 0
    ) -> tuple[Int64, Float32]:
        """Train as `train` does, and return its prediction and what the network says of every training image.

        The second is the log of the mean probability over the clean image and, where the recipe mirrors, its mirror,
        float32 (training rows, classes).
        """
        lane = self._trained(rows, seed, labels, watch, rounds)
        said = np.log(np.maximum(self._probabilities(lane.averaged, self._images), _LEAST))
        return self._predicted(lane), said

    def train_many(
        self,
        arms: Sequence[Int64],
        seeds: Sequence[int],
        *,
        rates: Sequence[float] | None = None,
        labels: Sequence[Int64] | None = None,
        soft: Sequence[SoftLabels | None] | None = None,
    ) -> Int64:
        """Train once an arm, as many at a time as there are lanes; the predictions, int64 (arms, test rows).

        Args:
            arms: Images to learn from, one array a training.
            seeds: One a training.
            rates: Peak learning rates, one a training, in place of the recipe's.
            labels: Of all training images, one array a training, in place of their own.
            soft: What each training's teacher says; None for a training without one.

        Raises:
            MetricError: Rows have fewer than two classes, what is one a training differs in number, soft labels have
                another shape or are not finite, or a network's outputs are not finite.
        """
        count = len(arms)
        if labels is None:
            check_arms(self._labels, arms, seeds)
            labels = [self._labels] * count
        soft = [None] * count if soft is None else soft
        rated = [self.recipe.learning_rate] * count if rates is None else rates
        if len({count, len(labels), len(soft), len(rated)}) > 1:
            raise MetricError(
                f"{count} arms, {len(labels)} arrays of labels, {len(soft)} soft labels and {len(rated)} learning "
                "rates: one of each is needed for every training"
            )
        for arm, own, said, seed in zip(arms, labels, soft, seeds, strict=True):
            check_arms(own, [arm], [seed])
            self._check_soft(said)
        found = []
        for start in range(0, count, len(self._lanes)):
            busy = self._lanes[: count - start]
            for place, lane in enumerate(busy, start):
                lane.load(arms[place], labels[place], seed=seeds[place], rate=rated[place], soft=soft[place])
            for _ in range(self.recipe.steps):
                for lane in busy:
                    lane.step()
            for lane in busy:
                lane.wait()
                found.append(self._predicted(lane))
        return np.stack(found)

    def _check_soft(self, soft: SoftLabels | None) -> None:
        if soft is None:
            return
        wanted, own = (len(self._images), self._classes), soft.targets
        if own.shape != wanted or own.dtype != np.float32 or not np.isfinite(own).all():
            raise MetricError(
                f"soft labels of shape {own.shape} and type {own.dtype}, {int((~np.isfinite(own)).sum())} of them not "
                f"finite; needed are log-probabilities, float32 {wanted}, one row for every training image"
            )
        if not (0 <= soft.alpha <= 1 and soft.temperature > 0):
            raise MetricError(
                f"alpha {soft.alpha} and temperature {soft.temperature}: needed are 0 <= alpha <= 1, temperature > 0"
            )

    def _trained(self, rows: Int64, seed: int, labels: Int64 | None, watch: Watch | None, rounds: int) -> Lane:
        labels = self._labels if labels is None else labels
        check_arms(labels, [rows], [seed])
        steps, rounds = self.recipe.steps, rounds if watch is not None else 0
        shown = {-(-steps * (at + 1) // rounds) - 1: at for at in range(rounds)}
        lane = self._lanes[0]
        lane.load(rows, labels, seed=seed)
        for step in range(steps):
            lane.step()
            if watch is not None and step in shown:
                lane.wait()
                watch(shown[step], self._probabilities(lane.model, self._images))
        lane.wait()
        return lane

    def _open(self, count: int) -> list[Lane]:
        import torch
        from torch.nn import functional

        from datapipe.proof.lane import Lane

        shift = self.recipe.shift
        images = self._images.permute(0, 3, 1, 2)
        if shift:
            parts = (functional.pad(part.float(), [shift] * 4, mode="reflect") for part in torch.split(images, _SAMPLE))
            images = torch.cat([part.to(torch.uint8) for part in parts])
        padded = images.permute(0, 2, 3, 1).contiguous()
        return [Lane(padded, self._normalised, classes=self._classes, recipe=self.recipe) for _ in range(count)]

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Float32 (rows, channels, height, width), channels last in memory, of (rows, height, width, channels)."""
        return ((images.float() - self._mean) / self._spread).permute(0, 3, 1, 2)

    def _predicted(self, lane: Lane) -> Int64:
        predicted: Int64 = self._probabilities(lane.averaged, self._test).argmax(1).astype(np.int64)
        return predicted

    def _probabilities(self, model: torch.nn.Module, images: torch.Tensor) -> Float32:
        import torch

        on_gpu = self._place.type == "cuda"
        narrow: Any = torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext()
        model.eval()
        found = []
        with torch.inference_mode(), narrow:
            for part in torch.split(images, _PREDICTED_AT_ONCE):
                seen = self._normalised(part)
                views = (seen, seen.flip(3)) if self.recipe.flip else (seen,)
                found.append(torch.stack([model(view).float().softmax(1) for view in views]).mean(0))
        model.train()
        whole: Float32 = torch.cat(found).cpu().numpy()
        # A weight that is no number makes these so too, and its argmax would pass for a bad network's prediction.
        if failed := int((~np.isfinite(whole)).any(1).sum()):
            raise MetricError(
                f"the network's outputs are not finite for {failed} of {len(whole)} images: its training diverged; "
                f"lower the learning rate (the recipe's is {self.recipe.learning_rate})"
            )
        return whole


def one_cycle(step: int, steps: int, *, warm: float = 0.2) -> float:
    """Share of the peak learning rate at a step: up in a line over the first `warm` of the steps, then down to zero."""
    rise = max(1.0, warm * steps)
    return (step + 1) / rise if step < rise else max(0.0, (steps - step) / max(1.0, steps - rise))
