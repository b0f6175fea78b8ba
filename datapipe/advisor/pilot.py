"""A pilot on the user's own rows: does a window of the score beat random, and how does random grow with rows?

    sample -> random halves into pool and held-out rows -> distance to the class mean -> windows at nested budgets
           -> kernel ridge regression on each window and on random rows -> paired intervals -> `Pilot`

The idea is that of BWS (Choi et al., arXiv 2406.03057): kernel ridge regression on frozen features stands in for
training, since it has a closed form. Differences from the paper: the features are the vectors of the run, the score is
the distance to the mean of the class, and a window counts only if its interval against random of the same size, widened
for the number of windows looked at and for splits that share rows, lies above 0. All in float64; one thread computes a
split, and threads share out the splits, so their number changes nothing. Raises `MetricError` for a sample it cannot
use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.advisor.curve import Curve, fit_curve
from datapipe.advisor.interval import Interval, paired
from datapipe.errors import MetricError
from datapipe.metrics.pool import ChunkPool

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Float32, Float64, Int64

MOST_ROWS = 4000
LEAST_ROWS = 100
SPLITS = 10
HELD_OUT = 0.25
RIDGE = 1e-2
"""Added to the diagonal of the kernel, whose own diagonal is 1."""
NESTED = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Nested budgets of random rows, as parts of the pool, from which the curve is fitted."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window against random rows of the same number.

    Attributes:
        start: Part of the pool, the hardest first, that stands before it.
        gain: Accuracy less that of random, percentage points, over the splits.
    """

    start: float
    gain: Interval


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """What a pilot found.

    Attributes:
        rows: Rows of the sample.
        classes: Classes among them.
        keep: Fraction that windows and random rows kept.
        random: Mean accuracy of random rows, percent.
        windows: Every window, by start.
        start: Start of the window to take; None where none is above random by more than the noise.
        curve: Error of random rows by their number.
    """

    rows: int
    classes: int
    keep: float
    random: float
    windows: tuple[Window, ...]
    start: float | None
    curve: Curve | None

    def told(self) -> str:
        """The finding as a sentence."""
        best = max(self.windows, key=lambda window: window.gain.mean)
        gain = f"{best.gain.mean:+.1f} \u00b1 {best.gain.half_width:.1f} points against random ({self.random:.1f} %)"
        where = f"A pilot on {self.rows:,} rows at {self.keep:.0%} kept: the window from {best.start:.0%} on has {gain}"
        if self.start is None:
            return f"{where}, which is within the noise or below it, so no window is advised."
        return f"{where}, {len(self.windows)} windows allowed for."


def run_pilot(
    vectors: Float32,
    labels: Sequence[str | None],
    *,
    keep: float,
    rows: int | None = None,
    splits: int = SPLITS,
    seed: int = 0,
    threads: int | None = None,
) -> Pilot:
    """Try windows of the score against random rows.

    Time: splits * (windows + budgets) systems of keep * rows unknowns at most, some seconds for 4,000 rows.

    Args:
        vectors: Unit vectors, float32 (rows, dim); of more than `MOST_ROWS` with a label the first count.
        labels: Of each row; rows without one are left out.
        keep: Fraction that a run would keep, 0 < keep < 1.
        rows: Rows of the whole set, to which the curve is extrapolated.
        splits: Random splits into pool and held-out rows, >= 2.
        seed: Of the splits.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.

    Raises:
        MetricError: Fewer than `LEAST_ROWS` rows have a label, or they have one class only.
    """
    matrix, codes = _usable(vectors, labels)
    classes = int(codes.max()) + 1
    generator = np.random.default_rng(seed)
    held = round(HELD_OUT * len(matrix))
    count = max(round(keep * (len(matrix) - held)), 2)
    starts = sorted({round(part * (1 - keep) / 4, 4) for part in range(5)})
    sizes = sorted({max(round(part * (len(matrix) - held)), 2) for part in NESTED})
    errors, random, gains = np.zeros((splits, len(sizes))), np.zeros(splits), np.zeros((len(starts), splits))
    orders = [generator.permutation(len(matrix)) for _ in range(splits)]

    def work(split: int) -> None:
        order = orders[split]
        trial = _Trial(matrix, codes, pool=order[held:], test=order[:held], classes=classes)
        random[split] = trial.accuracy(trial.pool[:count])
        if rows is not None:
            errors[split] = [1 - trial.accuracy(trial.pool[:size]) for size in sizes]
        windows = [trial.accuracy(trial.window(start, count)) for start in starts]
        gains[:, split] = [100 * (accuracy - random[split]) for accuracy in windows]

    workers = ChunkPool(threads)
    try:
        workers.map(work, range(splits))
    finally:
        workers.close()
    overlap = held / (len(matrix) - held)
    windows = tuple(
        Window(start=start, gain=paired(own.tolist(), comparisons=len(starts), overlap=overlap))
        for start, own in zip(starts, gains, strict=True)
    )
    best = max(windows, key=lambda window: window.gain.mean)
    return Pilot(
        rows=len(matrix),
        classes=classes,
        keep=keep,
        random=100 * float(random.mean()),
        windows=windows,
        start=best.start if best.gain.above else None,
        curve=fit_curve(sizes, errors, at=round(keep * rows), seed=seed) if rows is not None else None,
    )


def _usable(vectors: Float32, labels: Sequence[str | None]) -> tuple[Float64, Int64]:
    if len(labels) != len(vectors):
        raise MetricError(f"A pilot needs a label a row; there are {len(labels)} labels for {len(vectors)} vectors.")
    places = [at for at, label in enumerate(labels) if label is not None][:MOST_ROWS]
    names = {name: code for code, name in enumerate(sorted({str(labels[at]) for at in places}))}
    if len(places) < LEAST_ROWS or len(names) < 2:  # noqa: PLR2004 - one class leaves nothing to tell apart
        raise MetricError(
            f"A pilot needs at least {LEAST_ROWS} rows with labels of two classes; the sample has {len(places)} rows "
            f"with {len(names)}. Name the label column, or take a larger sample."
        )
    return vectors[places].astype(np.float64), np.array([names[str(labels[at])] for at in places], np.int64)


class _Trial:
    """One split: the pool sorted by difficulty, and held-out rows to be right on."""

    def __init__(self, matrix: Float64, codes: Int64, *, pool: Int64, test: Int64, classes: int) -> None:
        self.pool = pool
        self._codes, self._test, self._classes = codes, test, classes
        self._kernel = _kernel(matrix[pool], matrix)
        self._place = {int(row): at for at, row in enumerate(pool)}
        means = np.zeros((classes, matrix.shape[1]))
        np.add.at(means, codes[pool], matrix[pool])
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        distance = 1 - np.einsum("ij,ij->i", matrix[pool], means[codes[pool]])
        self._by_difficulty = pool[np.argsort(-distance, kind="stable")]

    def window(self, start: float, count: int) -> Int64:
        first = min(int(start * len(self.pool)), len(self.pool) - count)
        rows: Int64 = self._by_difficulty[first : first + count]
        return rows

    def accuracy(self, train: Int64) -> float:
        """Fit one-hot labels on `train` and predict the held-out rows."""
        import torch

        places = np.array([self._place[int(row)] for row in train], np.int64)
        wanted = np.eye(self._classes)[self._codes[train]]
        centre = wanted.mean(axis=0)
        beside = self._kernel[torch.from_numpy(places)]
        kernel = beside[:, torch.from_numpy(train)] + RIDGE * torch.eye(len(train), dtype=torch.float64)
        weights = torch.linalg.solve(kernel, torch.from_numpy(wanted - centre))
        scores = (beside[:, torch.from_numpy(self._test)].T @ weights).numpy() + centre
        return float((scores.argmax(axis=1) == self._codes[self._test]).mean())


def _kernel(left: Float64, right: Float64) -> torch.Tensor:
    """exp(-|a - b|^2 / (2 s^2)) with s^2 half the mean squared distance, float64 (left, right)."""
    import torch

    squares = (2 - 2 * (torch.from_numpy(left) @ torch.from_numpy(right).T)).clamp_(min=0)
    scale = max(float(squares.mean()), 1e-12)
    return squares.div_(-scale).exp_()
