"""Heads in numbers: training dynamics of several seeds, what halves memorise, margins under cluster labels.

    HeadData -> heads of several seeds -> per head: each row's course, on scratch -> metrics -> mean over the heads

A row without a label has NaN. Means are float64 sums in the order of the heads. Raises `MetricError` as `HeadData`
does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError
from datapipe.metrics.dynamics import DYNAMICS, early_epoch, metrics_of
from datapipe.metrics.memorization import memorization
from datapipe.proxies.heads import HeadConfig, HeadData, each_head, train_head

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from datapipe.metrics.errors_of_heads import Predicted
    from datapipe.storage.arrays import Bool, Float32

_METRIC_ROWS = 65_536  # rows whose courses are read in float64 at once


def default_batch(rows: int) -> int:
    """Rows in a step: 128, and from 65,536 rows on 1 in 512, at most 1,024."""
    return min(1024, max(128, rows // 512))


class Course:
    """What one head said of each row after each epoch: rows * epochs * 4 bytes on scratch, rows * 16 in memory."""

    def __init__(self, path: Path, *, rows: int, epochs: int) -> None:
        self._path = path
        shape = (2, epochs, rows)
        self._each: NDArray[np.float16] = np.memmap(path, np.float16, "w+", shape=shape)
        self._once = np.empty((4, rows), np.float32)
        self._early, self._last = early_epoch(epochs), epochs - 1

    def watch(self, epoch: int, rows: slice, found: Predicted, gradient: torch.Tensor) -> None:
        """Take down a chunk."""
        self._each[0, epoch, rows] = found.probability.half().cpu().numpy()
        self._each[1, epoch, rows] = found.margin.half().cpu().numpy()
        if epoch == self._early:
            self._once[0, rows] = found.error.cpu().numpy()
            self._once[1, rows] = gradient.cpu().numpy()
        if epoch == self._last:
            self._once[2, rows] = found.gap.cpu().numpy()
            self._once[3, rows] = found.entropy.cpu().numpy()

    def metrics(self) -> Float32:
        """The metrics in the order of `DYNAMICS`, float32 (metrics, rows); the scratch file goes."""
        whole = np.empty((len(DYNAMICS), self._once.shape[1]), np.float32)
        for start in range(0, whole.shape[1], _METRIC_ROWS):
            rows = slice(start, start + _METRIC_ROWS)
            error, grand, gap, entropy = self._once[:, rows]
            probability, margin = np.array(self._each[:, :, rows])
            found = metrics_of(
                {
                    "probability": probability,
                    "margin": margin,
                    "error": error[None],
                    "grand": grand,
                    "gap": gap,
                    "entropy": entropy,
                }
            )
            whole[:, rows] = [found[name] for name in DYNAMICS]
        del self._each
        self._path.unlink()
        return whole


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where heads are trained.

    Attributes:
        scratch: A folder with room for rows * epochs * 4 bytes a head at work.
        device: `cpu` or a torch device.
        threads: Host threads; None for the CPUs there are. Without effect on the result.
    """

    scratch: Path
    device: str = "cpu"
    threads: int | None = None


def dynamics_of_heads(data: HeadData, config: HeadConfig, *, heads: int, seed: int, place: Place) -> Float32:
    """Mean over heads of the metrics of `DYNAMICS`, float32 (metrics, rows); NaN for rows without a label."""
    found: dict[int, Float32] = {}

    def work(head: int) -> None:
        course = Course(place.scratch / f"course-{head}.f16", rows=len(data.labels), epochs=config.epochs)
        train_head(data, config, seed=seed + head, device=place.device, watch=course.watch)
        found[head] = course.metrics()

    each_head(work, heads, device=place.device, threads=place.threads)
    return _mean_of(found, data)


def aum_of_heads(datas: list[HeadData], config: HeadConfig, *, seed: int, place: Place) -> Float32:
    """Mean over labelings of the aum of a head that learns each, float32 (rows,)."""
    found: dict[int, Float32] = {}

    def work(head: int) -> None:
        total = np.zeros(len(datas[head].labels))

        def watch(epoch: int, rows: slice, predicted: Predicted, gradient: torch.Tensor) -> None:
            del epoch, gradient
            total[rows] -= predicted.margin.double().cpu().numpy()

        train_head(datas[head], config, seed=seed + head, device=place.device, watch=watch)
        found[head] = (total / config.epochs).astype(np.float32)

    each_head(work, len(datas), device=place.device, threads=place.threads)
    return _mean_of(found, datas[0])


def memorization_of_heads(data: HeadData, config: HeadConfig, *, halves: Bool, seed: int, place: Place) -> Float32:
    """What a row gains from being trained on, float32 (rows,) in [-1, 1]; NaN for rows without a label.

    Each half is learnt by one head, and the rows outside it by another, so every row is in as often as out.

    Args:
        data: The rows; the heads learn from parts of `data.trained`.
        config: Of each head.
        halves: Which rows are in each half, bool (pairs, rows).
        seed: Of the first head; the others take the seeds after it.
        place: Where.

    Raises:
        MetricError: A half has fewer than two classes: the set is too small to be halved.
    """
    heads = 2 * len(halves)
    inside = [halves[head // 2] ^ bool(head % 2) for head in range(heads)]
    probability = np.empty((heads, len(data.labels)), np.float32)
    try:
        parts = [replace(data, trained=data.trained[each[data.trained]]) for each in inside]
    except MetricError as error:
        raise MetricError(f"memorization trains on halves, and a half is too small: {error}") from error

    def work(head: int) -> None:
        def watch(epoch: int, rows: slice, found: Predicted, gradient: torch.Tensor) -> None:
            del gradient
            if epoch == config.epochs - 1:
                probability[head, rows] = found.probability.cpu().numpy()

        train_head(parts[head], config, seed=seed + head, device=place.device, watch=watch)

    each_head(work, heads, device=place.device, threads=place.threads)
    scores = memorization(probability, np.stack(inside))
    scores[data.labels < 0] = np.nan
    return scores


def _mean_of(found: dict[int, Float32], data: HeadData) -> Float32:
    total = np.zeros(found[0].shape)
    for head in range(len(found)):
        total += found[head]
    mean: Float32 = (total / len(found)).astype(np.float32)
    mean[..., data.labels < 0] = np.nan
    return mean
