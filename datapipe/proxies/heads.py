"""Linear heads and heads with one hidden layer, trained on frozen unit vectors by AdamW, and watched while they learn.

    bfloat16 vectors, labels -> batches in a seeded order -> head -> after each epoch: what it predicts for every row

One head is trained by one thread with one intra-op thread, and threads share out whole heads, so the bits depend on
rows, labels, config, seed and kind of device, not on the number of threads. The vectors may be memory-mapped: beside
them a head holds its weights, one batch and one chunk. Gradients are written out; there are two layers at most.
Raises `MetricError` for labels from which nothing can be learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError
from datapipe.metrics.errors_of_heads import last_layer_gradient, predicted
from datapipe.metrics.pool import ChunkPool
from datapipe.proxies.adamw import AdamW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from numpy.typing import NDArray

    from datapipe.metrics.errors_of_heads import Predicted
    from datapipe.storage.arrays import Int32, Int64

    Watch = Callable[[int, slice, Predicted, torch.Tensor], None]
    """Called with epoch, rows, what was predicted for them, and their last-layer gradient."""

CHUNK_ROWS = 8192
"""Rows predicted at once."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How a head learns.

    Attributes:
        hidden: Width of the hidden layer; 0 for a linear head.
        epochs: Passes over the rows, >= 1.
        batch_rows: Rows in a step; the last of an epoch may have fewer.
        learning_rate: Of AdamW at the start; it falls to zero in a straight line.
        weight_decay: Decoupled, of the weights and not of the biases.
    """

    hidden: int = 256
    epochs: int = 20
    batch_rows: int = 128
    learning_rate: float = 0.003
    weight_decay: float = 0.01


@dataclass(frozen=True, eq=False)
class HeadData:
    """What heads learn from.

    Attributes:
        codes: Unit vectors as bfloat16 bits, uint16 (rows, dim); may be memory-mapped.
        labels: Class of each row, int32 (rows,), in [0, classes); -1 for none.
        trained: Places of the rows to learn from, int64, ascending; all have a label.
        classes: Their number.

    Raises:
        MetricError: Fewer than two classes are among the rows to learn from.
    """

    codes: NDArray[np.uint16]
    labels: Int32
    trained: Int64
    classes: int

    def __post_init__(self) -> None:
        present = len(np.unique(self.labels[self.trained]))
        if present < 2:  # noqa: PLR2004 - one class is predicted without looking
            raise MetricError(
                f"a proxy learns from at least two classes, the {len(self.trained)} labelled rows have {present}: "
                "take a metric that needs no labels"
            )

    def vectors(self, rows: Int64 | slice, device: torch.device) -> torch.Tensor:
        """Decode some rows, float32 (rows, dim), on the device."""
        import torch

        bits = np.array(self.codes[rows], np.uint16, order="C").view(np.int16)
        return torch.from_numpy(bits).view(torch.bfloat16).to(device).float()


class Head:
    """One head and the descent that trains it.

    Args:
        dim: Numbers in a vector.
        classes: Their number.
        config: Shape and rates.
        seed: Of the first weights.
        device: Where.
    """

    def __init__(self, dim: int, classes: int, config: HeadConfig, *, seed: int, device: torch.device) -> None:
        import torch

        draws = np.random.Generator(np.random.Philox(seed))
        sizes = [(dim, config.hidden), (config.hidden, classes)] if config.hidden else [(dim, classes)]
        self._weights: list[torch.Tensor] = []
        for into, out in sizes:
            # Unit vectors have entries of about 1 / sqrt(dim), so the first layer takes weights of about 1.
            bound = 1.0 if into == dim else into**-0.5
            weights = draws.uniform(-bound, bound, (into, out)).astype(np.float32)
            self._weights += [torch.from_numpy(weights).to(device), torch.zeros(out, device=device)]
        decays = [config.weight_decay if each.ndim > 1 else 0.0 for each in self._weights]
        self._config, self._descent = config, AdamW(self._weights, decays)

    def features(self, vectors: torch.Tensor) -> torch.Tensor:
        """What enters the last layer, (rows, hidden or dim)."""
        if not self._config.hidden:
            return vectors
        import torch

        return torch.addmm(self._weights[1], vectors, self._weights[0]).relu_()

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """Softmax over the classes, (rows, classes)."""
        import torch

        return torch.addmm(self._weights[-1], features, self._weights[-2]).softmax(1)

    def step(self, vectors: torch.Tensor, labels: torch.Tensor, *, rate: float) -> None:
        """One step of AdamW down the mean cross-entropy of a batch."""
        features = self.features(vectors)
        error = self.probabilities(features)
        error[_range(labels), labels] -= 1.0
        error /= len(labels)
        slopes = [features.t() @ error, error.sum(0)]
        if self._config.hidden:
            inner = (error @ self._weights[2].t()).mul_(features > 0)
            slopes = [vectors.t() @ inner, inner.sum(0), *slopes]
        self._descent.move(slopes, rate=rate)


def _range(labels: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.arange(len(labels), device=labels.device)


def train_head(data: HeadData, config: HeadConfig, *, seed: int, device: str = "cpu", watch: Watch | None) -> Head:
    """Train one head, and show `watch` after each epoch what it predicts for every row.

    Rows without a label are shown as if theirs were class 0; what is shown for them means nothing.

    Args:
        data: Rows, labels, and which rows to learn from.
        config: How.
        seed: Of the first weights and of the order of the batches.
        device: Where.
        watch: Is shown the predictions; None to predict nothing.
    """
    import torch

    place = torch.device(device)
    with torch.inference_mode():
        head = Head(data.codes.shape[1], data.classes, config, seed=seed, device=place)
        done, steps = 0, config.epochs * -(-len(data.trained) // config.batch_rows)
        for epoch in range(config.epochs):
            order = np.random.Generator(np.random.Philox(key=[seed, epoch + 1])).permutation(len(data.trained))
            for start in range(0, len(order), config.batch_rows):
                rows = data.trained[order[start : start + config.batch_rows]]
                labels = torch.from_numpy(data.labels[rows]).to(place, torch.int64)
                head.step(data.vectors(rows, place), labels, rate=config.learning_rate * (1.0 - done / steps))
                done += 1
            if watch is not None:
                for rows_, found, gradient in predictions(head, data, place):
                    watch(epoch, rows_, found, gradient)
    return head


def predictions(head: Head, data: HeadData, device: torch.device) -> Iterator[tuple[slice, Predicted, torch.Tensor]]:
    """What a head predicts for all rows, a chunk at a time, with each row's last-layer gradient."""
    import torch

    for start in range(0, len(data.labels), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        labels = torch.from_numpy(data.labels[rows]).to(device, torch.int64).clamp_(min=0)
        features = head.features(data.vectors(rows, device))
        found = predicted(head.probabilities(features), labels)
        yield rows, found, last_layer_gradient(found.error, features)


def each_head(work: Callable[[int], None], heads: int, *, device: str, threads: int | None) -> None:
    """Call `work` with 0 ... heads - 1: on the host in threads of one intra-op thread, on a device one by one."""
    if device != "cpu":
        for head in range(heads):
            work(head)
        return
    pool = ChunkPool(threads)
    try:
        pool.map(work, range(heads))
    finally:
        pool.close()
