"""Spherical k-means: unit vectors in, unit centroids out, the same bits every time.

sample -> k-means++ start (Arthur & Vassilvitskii 2007, on a bounded subsample) -> rounds of assign, sum, normalise
(Dhillon & Modha 2001) -> prototypes. All draws come from numpy's Philox on the host and none depends on the device;
sums run over the rows in their order, in float64. So the result depends on sample, k, seed, iterations and the kind of
device, not on threads. Raises `MetricError` where k does not fit the sample and `VectorError` for rows that are not of
unit length.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError, VectorError
from datapipe.metrics.assign import (
    DEVICE_ROWS,
    Assigner,
    Upload,
    blocks_of,
    check_unit,
    nearest_on_device,
)
from datapipe.metrics.pool import ChunkPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.storage.arrays import Bool, Float32, Float64, Int32, Int64

_log = logging.getLogger(__name__)

SEED_ROWS_PER_PROTOTYPE = 16
"""Rows per prototype among which k-means++ draws its start."""
LEAST_SEED_ROWS = 4096
_SEED_CHUNK = 8192  # candidates in one product while the start is drawn
_SUM_ROWS = 16_384  # rows cast to float64 at once
_ONE_HOT_CELLS = 1 << 26  # cells of the one-hot matrix on a device: 512 MiB each as int64 and float64


def spherical_kmeans(
    sample: Float32, *, k: int, seed: int, iterations: int = 20, device: str = "cpu", threads: int | None = None
) -> Float32:
    """Return k centroids of maximal cosine to their rows, float32 (k, dim), unit length.

    Maximises sum_i max_j <z_i, c_j> by alternating: each row to its nearest centroid (ties to the lowest), each
    centroid to the normalised sum of its rows. Stops when no row changes, or after `iterations`. The start is
    k-means++ with weights 1 - max_j <z_i, c_j>, drawn among at most max(4096, 16 k) rows chosen at random, so that it
    costs O(16 k^2 dim). An empty centroid moves to the row furthest from its own centroid (several: in order of
    distance; ties to the lowest row); a centroid whose rows sum to zero stays. Time rows * k * dim an iteration;
    memory beside the sample k * dim * 20 bytes and the buffers of `Assigner`.

    Args:
        sample: z, float32 (rows, dim), unit length.
        k: Centroids, 1 <= k <= rows.
        seed: Seeds the start.
        iterations: Rounds at most, >= 1.
        device: "cpu", or a torch device such as "cuda".
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.

    Raises:
        MetricError: k or `iterations` is out of range.
        VectorError: A row is not finite or not of unit length; names the first.
    """
    if sample.ndim != 2:  # noqa: PLR2004 - a matrix has two axes
        raise VectorError(f"The sample must be a matrix of vectors; its shape is {sample.shape}.")
    if not 1 <= k <= len(sample):
        raise MetricError(
            f"k = {k} prototypes need at least {max(k, 1)} rows and k >= 1; there are {len(sample)} rows."
        )
    if iterations < 1:
        raise MetricError(f"k-means needs at least one iteration; got {iterations}.")
    data = _OnHost(sample, threads=threads) if device == "cpu" else _OnDevice(sample, device=device)
    try:
        return _rounds(data, k=k, seed=seed, iterations=iterations)
    finally:
        data.close()


def _rounds(data: _OnHost | _OnDevice, *, k: int, seed: int, iterations: int) -> Float32:
    prototypes = _start(data, k=k, generator=np.random.Generator(np.random.Philox(seed)))
    previous: Int32 | None = None
    for done in range(iterations):
        cosines, clusters = data.assign(prototypes)
        _log.info("k-means round %d: mean cosine %.6f", done + 1, cosines.mean(dtype=np.float64))
        if previous is not None and np.array_equal(clusters, previous):
            break
        previous = clusters
        prototypes = _centres(data, prototypes, cosines, clusters)
    return prototypes


def _centres(data: _OnHost | _OnDevice, prototypes: Float32, cosines: Float32, clusters: Int32) -> Float32:
    sums = data.sums(clusters, len(prototypes))
    directed = np.einsum("ij,ij->i", sums, sums) > 0
    centres = prototypes.copy()
    centres[directed] = _unit(sums[directed])
    empty = np.flatnonzero(np.bincount(clusters, minlength=len(prototypes)) == 0)
    if len(empty):
        furthest = np.argsort(cosines, kind="stable")[: len(empty)]
        centres[empty] = _unit(data.take(furthest))
    return centres


def _start(data: _OnHost | _OnDevice, *, k: int, generator: np.random.Generator) -> Float32:
    """K-means++: each next centroid is a row drawn with weight 1 - cosine to the nearest of those before."""
    limit = max(LEAST_SEED_ROWS, SEED_ROWS_PER_PROTOTYPE * k)
    candidates = np.sort(np.argsort(generator.random(data.rows), kind="stable")[:limit])
    cosines_to = data.cosines_among(candidates)
    chosen = np.empty(k, np.int64)
    chosen[0] = int(generator.random() * len(candidates))
    weights = np.full(len(candidates), np.inf)
    free = np.ones(len(candidates), np.bool_)
    for step in range(1, k):
        last = int(chosen[step - 1])
        np.minimum(weights, np.maximum(1.0 - cosines_to(last).astype(np.float64), 0.0), out=weights)
        weights[last], free[last] = 0.0, False
        chosen[step] = _draw(weights, free, generator.random())
    return _unit(data.take(candidates[chosen]))


def _draw(weights: Float64, free: Bool, uniform: float) -> int:
    """Return where the running sum of `weights` passes `uniform` of the whole; the first free place if all are zero."""
    running = np.cumsum(weights)
    if running[-1] <= 0.0:
        return int(np.argmax(free))
    return int(np.searchsorted(running, uniform * running[-1], side="right"))


def _unit(rows: Float32 | Float64) -> Float32:
    wide = rows.astype(np.float64)
    wide /= np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
    return wide.astype(np.float32)


class _OnHost:
    """The sample in memory, worked on by threads of one intra-op thread each."""

    def __init__(self, sample: Float32, *, threads: int | None) -> None:
        self.rows = len(sample)
        self._sample = sample
        self._pool = ChunkPool(threads)

    def close(self) -> None:
        self._pool.close()

    def assign(self, prototypes: Float32) -> tuple[Float32, Int32]:
        return Assigner(prototypes, pool=self._pool).assign(self._sample)

    def sums(self, clusters: Int32, k: int) -> Float64:
        import torch

        total = torch.zeros(k, self._sample.shape[1], dtype=torch.float64)
        where = torch.from_numpy(clusters)
        for start in range(0, self.rows, _SUM_ROWS):
            part = slice(start, start + _SUM_ROWS)
            # On the host index_add_ adds row after row in the order given, which is what makes the bits repeat.
            total.index_add_(0, where[part], torch.from_numpy(self._sample[part].astype(np.float64)))
        sums: Float64 = total.numpy()
        return sums

    def take(self, rows: Int64) -> Float32:
        return self._sample[rows]

    def cosines_among(self, rows: Int64) -> Callable[[int], Float32]:
        import torch

        # Padded to whole chunks, so that every product has the same shape.
        among = torch.zeros(-(-len(rows) // _SEED_CHUNK) * _SEED_CHUNK, self._sample.shape[1])
        among[: len(rows)].copy_(torch.from_numpy(self._sample[rows]))
        cosines = torch.empty(len(among), 1)

        def cosines_to(row: int) -> Float32:
            column = among[row].unsqueeze(1).clone()

            def multiply(start: int) -> None:
                part = slice(start, start + _SEED_CHUNK)
                torch.mm(among[part], column, out=cosines[part])

            self._pool.map(multiply, range(0, len(among), _SEED_CHUNK))
            found: Float32 = cosines.numpy()[: len(rows), 0]
            return found

        return cosines_to


class _OnDevice:
    """The sample on an accelerator; sums are one-hot products, since scattered adds have no fixed order there."""

    def __init__(self, sample: Float32, *, device: str) -> None:
        import torch

        self.rows = len(sample)
        self._device = torch.device(device)
        self._sample = torch.empty(sample.shape, device=self._device)
        upload = Upload(sample.shape[1], self._device)
        for start in range(0, self.rows, DEVICE_ROWS):
            part = slice(start, start + DEVICE_ROWS)
            self._sample[part].copy_(upload(sample[part]))
        self._lengths = self._sample.square().sum(dim=1).sqrt()
        check_unit(self._lengths.cpu().numpy())

    def close(self) -> None:
        del self._sample

    def assign(self, prototypes: Float32) -> tuple[Float32, Int32]:
        best, where = nearest_on_device(self._sample, blocks_of(prototypes, self._device))
        return (best / self._lengths).cpu().numpy(), where.int().cpu().numpy()

    def sums(self, clusters: Int32, k: int) -> Float64:
        import torch

        where = torch.from_numpy(clusters).to(self._device, torch.int64)
        total = torch.zeros(k, self._sample.shape[1], dtype=torch.float64, device=self._device)
        rows = max(1, _ONE_HOT_CELLS // k)
        for start in range(0, self.rows, rows):
            part = slice(start, start + rows)
            one_hot = torch.nn.functional.one_hot(where[part], k).double()
            total += one_hot.t() @ self._sample[part].double()
        sums: Float64 = total.cpu().numpy()
        return sums

    def take(self, rows: Int64) -> Float32:
        import torch

        taken: Float32 = self._sample[torch.from_numpy(rows).to(self._device)].cpu().numpy()
        return taken

    def cosines_among(self, rows: Int64) -> Callable[[int], Float32]:
        import torch

        among = self._sample[torch.from_numpy(rows).to(self._device)]

        def cosines_to(row: int) -> Float32:
            found: Float32 = (among @ among[row]).cpu().numpy()
            return found

        return cosines_to
