"""One network in training, whose whole course lies on the device before it starts.

    load(rows, labels, seed) -> order, crops, mirrors, holes and rates of all steps -> step() x steps -> averaged

A step reads its number from the device and adds one to it, so that on a GPU it is one recorded graph of kernels, played
again and again: nothing crosses the bus, nothing waits for the host. Lanes have streams of their own and overlap. What
a teacher says lies on the device too, with its weight, so arms of any weight share the recorded graph.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from datapipe.proof.heads import batches
from datapipe.proof.images import one_cycle
from datapipe.proof.resnet import ResNet

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.proof.images import ImageRecipe, SoftLabels
    from datapipe.storage.arrays import Int64

_WARM_STEPS = 3
_WHITENED_FROM = 2048
"""Images whose patches set the first layer."""


class Lane:
    """A network, its average, and the buffers of its course.

    Args:
        padded: All images with a border of `recipe.shift`, uint8 (rows, height, width, channels), on the device.
        normalised: From such pixels without border to what enters the network.
        classes: Their number.
        recipe: How to train.

    Attributes:
        model: The network as trained.
        averaged: The moving average of its weights and statistics, which predicts.
    """

    def __init__(
        self,
        padded: torch.Tensor,
        normalised: Callable[[torch.Tensor], torch.Tensor],
        *,
        classes: int,
        recipe: ImageRecipe,
    ) -> None:
        self._padded, self._normalised, self._recipe, self._classes = padded, normalised, recipe, classes
        self._place = padded.device
        self.model = self._fresh(seed=0)
        self.averaged = copy.deepcopy(self.model)
        fast = {id(each) for each in self.model.biases()}
        self._weights: list[torch.Tensor] = [each for each in self.model.parameters() if each.requires_grad]
        self._times = [recipe.bias_rate if id(each) in fast else 1.0 for each in self._weights]
        self._decays = [recipe.weight_decay if each.ndim > 1 else 0.0 for each in self._weights]
        self._velocity = [torch.zeros_like(each) for each in self._weights]
        self._moving = [_floats(each) for each in (self.averaged, self.model)]
        self._course = self._empty()
        self._labels = torch.zeros(len(padded), dtype=torch.int64, device=self._place)
        self._targets: torch.Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream: Any = None
        if self._place.type == "cuda":
            self._stream = torch.cuda.Stream(self._place)  # type: ignore[no-untyped-call]

    def load(
        self,
        rows: Int64,
        labels: Int64,
        *,
        seed: int,
        rate: float | None = None,
        soft: SoftLabels | None = None,
    ) -> None:
        """Set up a training: fresh weights, and what every step will do.

        Args:
            rows: Images to learn from.
            labels: Of all images, int64.
            seed: Of weights, order and augmentation.
            rate: Peak learning rate, in place of the recipe's.
            soft: What a teacher says of all images; None learns from the labels alone.
        """
        self._hear(soft)
        peak = self._recipe.learning_rate if rate is None else rate
        if self._stream is not None and self._graph is None:
            self._fill(rows, labels, seed, peak)
            self._capture()
        self._fill(rows, labels, seed, peak)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._place))

    def step(self) -> None:
        """Do the next step; on a GPU, ask for it."""
        if self._graph is None:
            self._update()
            return
        with torch.cuda.stream(self._stream):
            self._graph.replay()

    def wait(self) -> None:
        """Let what the caller asks for next come after the steps asked for so far."""
        if self._stream is not None:
            torch.cuda.current_stream(self._place).wait_stream(self._stream)

    def _hear(self, soft: SoftLabels | None) -> None:
        """Lay out what the teacher says. The first time the graph is recorded anew, with a term that it lacked."""
        course = self._course
        if soft is None:
            course["alpha"].zero_()
            return
        if self._targets is None:
            self._graph = None
            self._targets = torch.zeros(len(self._padded), self._classes, device=self._place)
        self._targets.copy_(torch.from_numpy(soft.targets))
        course["alpha"].fill_(soft.alpha)
        course["temperature"].fill_(soft.temperature)

    def _fresh(self, *, seed: int) -> ResNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = ResNet(self._padded.shape[3], self._classes, width=self._recipe.width)
        return made.to(self._place, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def _empty(self) -> dict[str, torch.Tensor]:
        steps, rows = self._recipe.steps, self._recipe.batch_rows
        whole: dict[str, Any] = {"dtype": torch.int64, "device": self._place}
        course = {name: torch.zeros(steps, rows, **whole) for name in ("rows", "down", "right", "top", "left")}
        course["mirrored"] = torch.zeros(steps, rows, dtype=torch.bool, device=self._place)
        course |= {name: torch.zeros(steps, device=self._place) for name in ("rate", "share")}
        course["step"] = torch.zeros(1, **whole)
        course["alpha"], course["temperature"] = (value.to(self._place) for value in (torch.zeros(1), torch.ones(1)))
        return course

    def _fill(self, rows: Int64, labels: Int64, seed: int, peak: float) -> None:
        recipe, course = self._recipe, self._course
        shape = (recipe.steps, recipe.batch_rows)
        draws = torch.Generator(self._place)
        draws.manual_seed(seed)

        def drawn(low: int, high: int, size: tuple[int, ...] = shape) -> torch.Tensor:
            return torch.randint(low, high, size, generator=draws, device=self._place)

        order = batches(rows, steps=recipe.steps, batch_rows=recipe.batch_rows, seed=seed)
        course["rows"].copy_(torch.from_numpy(order))
        for name in ("down", "right"):
            course[name].copy_(drawn(0, 2 * recipe.shift + 1))
        height, width = (int(side) - 2 * recipe.shift for side in self._padded.shape[1:3])
        for name, side in (("top", height), ("left", width)):
            course[name].copy_(drawn(-recipe.cutout // 2, side - recipe.cutout // 2))
        if recipe.flip:
            # Each pass shows the mirror of what the pass before showed.
            passes = torch.from_numpy(np.arange(order.size).reshape(shape) // len(rows)).to(self._place)
            first = drawn(0, 2, (len(self._padded),))
            course["mirrored"].copy_((first[course["rows"]] + passes) % 2 == 1)
        steps = range(recipe.steps)
        course["rate"].copy_(torch.tensor([peak * one_cycle(step, recipe.steps) for step in steps]))
        # Early weights are forgotten sooner, so that short trainings are not averaged with their start.
        course["share"].copy_(torch.tensor([1.0 - min(recipe.average, (step + 1) / (step + 10)) for step in steps]))
        course["step"].zero_()
        self._labels.copy_(torch.from_numpy(labels))
        self._restart(rows, seed)

    def _restart(self, rows: Int64, seed: int) -> None:
        fresh, shift = self._fresh(seed=seed), self._recipe.shift
        sample = self._padded[torch.from_numpy(rows[:: max(1, len(rows) // _WHITENED_FROM)]).to(self._place)]
        inside = sample[:, shift : sample.shape[1] - shift, shift : sample.shape[2] - shift]
        with torch.no_grad():
            fresh.whiten(self._normalised(inside))
            for model in (self.model, self.averaged):
                for own, new in zip(_tensors(model), _tensors(fresh), strict=True):
                    own.copy_(new)
            torch._foreach_zero_(self._velocity)

    def _capture(self) -> None:
        """Record a step. The warm-up lets libraries choose kernels and allocate; the weights are loaded anew after."""
        self._stream.wait_stream(torch.cuda.current_stream(self._place))
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_STEPS):
                    self._update()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                self._update()
        finally:
            torch.backends.cudnn.benchmark = before
        self._graph = graph

    def _update(self) -> None:
        """One step of SGD with Nesterov's momentum (Sutskever et al. 2013), and of the average."""
        course = self._course
        at = course["step"]
        rows = course["rows"].index_select(0, at)[0]
        loss = self._loss(self._logits(self._augmented(rows, at)), rows)
        slopes = torch.autograd.grad(loss, self._weights)
        with torch.no_grad():
            rate, share = (course[name].index_select(0, at)[0] for name in ("rate", "share"))
            momentum = self._recipe.momentum
            moves = torch._foreach_add(list(slopes), list(torch._foreach_mul(self._weights, self._decays)))  # noqa: SLF001
            torch._foreach_mul_(self._velocity, momentum)
            torch._foreach_add_(self._velocity, moves)
            torch._foreach_add_(moves, self._velocity, alpha=momentum)
            torch._foreach_mul_(moves, self._times)
            torch._foreach_mul_(moves, rate)
            torch._foreach_sub_(self._weights, list(moves))
            averaged, now = self._moving
            apart = torch._foreach_sub(now, averaged)  # noqa: SLF001
            torch._foreach_mul_(apart, share)
            torch._foreach_add_(averaged, apart)
            at.add_(1)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        # A cache of narrowed weights would outlive the recording.
        on_gpu = self._place.type == "cuda"
        narrow: Any = torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if on_gpu else nullcontext()
        with narrow:
            logits: torch.Tensor = self.model(images)
        return logits.float()

    def _loss(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Mean of (1 - alpha) CE + alpha T^2 KL(teacher || student), both softened by T (Hinton et al. 2015)."""
        told = functional.cross_entropy(logits, self._labels[rows], label_smoothing=self._recipe.smoothing)
        if self._targets is None:
            return told
        alpha, temperature = self._course["alpha"], self._course["temperature"]
        teacher = (self._targets[rows] / temperature).log_softmax(1)
        student = (logits / temperature).log_softmax(1)
        apart = (teacher.exp() * (teacher - student)).sum(1).mean()
        return ((1 - alpha) * told + alpha * temperature**2 * apart)[0]

    def _augmented(self, rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        recipe, course = self._recipe, self._course
        height, width = (int(side) - 2 * recipe.shift for side in self._padded.shape[1:3])
        down, right, top, left, mirrored = (
            course[name].index_select(0, at).T for name in ("down", "right", "top", "left", "mirrored")
        )
        line, column = (torch.arange(size, device=self._place) for size in (height, width))
        columns = torch.where(mirrored, width - 1 - column, column) + right
        seen = self._padded[rows[:, None, None], (line + down)[:, :, None], columns[:, None, :]]
        normal = self._normalised(seen)
        if not recipe.cutout:
            return normal
        inside = [(axis >= start) & (axis < start + recipe.cutout) for axis, start in ((line, top), (column, left))]
        return normal.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


def _tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _floats(model: torch.nn.Module) -> list[torch.Tensor]:
    """What is averaged: all but counters of batches."""
    return [each.detach() for each in _tensors(model) if each.is_floating_point()]
