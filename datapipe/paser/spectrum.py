"""The smooth directions of a graph: eigenvectors of its normalised Laplacian by a preconditioned block method.

    affinity W -> L = I - D^-1/2 W D^-1/2 -> LOBPCG (Knyazev 2001) with a Chebyshev preconditioner -> smallest pairs

Every product is cut into chunks of fixed rows, each done by one thread, and sums run over the chunks in their order, in
float64: the number of threads changes no bit. Components too small to be a cluster are left out; `whole` says where
they are. Raises `ConfigError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import ConfigError
from datapipe.metrics.pool import ChunkPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.storage.arrays import Bool, Float64

CHUNK = 8192
"""Rows that one thread works on."""
DEGREE = 5
"""Of the Chebyshev polynomial that stands for the inverse of the Laplacian."""
_SHIFT = 2e-2
"""Added to the Laplacian in the preconditioner: smaller eigenvalues are all wanted, so none is preferred."""
_DROPPED = 1e-12
"""Directions of the search space whose share of the largest is below this are rounding."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The smallest eigenpairs of the normalised Laplacian.

    Attributes:
        values: Ascending, float64 (pairs,), in [0, 2].
        vectors: Unit columns, float64 (rows, pairs), zero on rows outside `whole`.
        residuals: |L u - lambda u| of each, float64 (pairs,).
        whole: Rows that lie in components large enough, bool (rows,).
        components: How many such components there are, each an eigenvalue zero.
        degrees: Row sums of the affinity, float64 (rows,).
    """

    values: Float64
    vectors: Float64
    residuals: Float64
    whole: Bool
    components: int
    degrees: Float64

    def coordinates(self, pairs: int, *, time: float = 1.0) -> Float64:
        """Diffusion map (Coifman & Lafon 2006): (1 - lambda_j)^time u_j / sqrt(degree), float64 (rows, pairs)."""
        scale = np.where(self.degrees > 0, np.sqrt(self.degrees), 1.0)
        found: Float64 = self.vectors[:, :pairs] * (1.0 - self.values[:pairs]) ** time / scale[:, None]
        return found


def smallest_eigenpairs(
    graph: Any,
    *,
    pairs: int,
    least_rows: int = 2,
    tolerance: float = 1e-3,
    rounds: int = 60,
    seed: int = 0,
    threads: int | None = None,
    tick: Callable[[float], None] | None = None,
) -> Spectrum:
    """Find the smallest eigenpairs of L.

    Memory: 8 * 9 * (pairs + guard) bytes a row.

    Args:
        graph: W, symmetric scipy CSR (rows, rows), float64, >= 0, zero diagonal.
        pairs: How many, >= 1.
        least_rows: Components with fewer rows are left out.
        tolerance: Residual at which a pair is found; clusters need no more than three digits.
        rounds: At most.
        seed: Seeds the start.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
        tick: Called with the worst residual after every round.

    Raises:
        ConfigError: Fewer rows than pairs are in components large enough.
    """
    from scipy.sparse.csgraph import connected_components

    degrees = np.asarray(graph.sum(axis=1)).ravel()
    _, member = connected_components(graph, directed=False)
    sizes = np.bincount(member)
    large = np.flatnonzero(sizes >= max(least_rows, 2))
    whole = np.isin(member, large)
    rows = int(whole.sum())
    if rows < max(pairs, 2):
        raise ConfigError(f"{pairs} directions need as many rows in components of {least_rows} rows and more: {rows}")
    inner = graph[whole][:, whole] if rows < len(degrees) else graph
    pool = ChunkPool(threads)
    try:
        laplacian = _Laplacian(inner, pool)
        start = _start(laplacian, member[whole], large, pairs, seed)
        values, found, residuals = _lobpcg(laplacian, start, pairs, tolerance=tolerance, rounds=rounds, tick=tick)
    finally:
        pool.close()
    vectors = np.zeros((len(degrees), pairs))
    vectors[whole] = _signed(found)
    return Spectrum(np.clip(values, 0.0, 2.0), vectors, residuals, whole, len(large), degrees)


class _Laplacian:
    """I - D^-1/2 W D^-1/2 in chunks of rows, and the arithmetic of tall blocks."""

    def __init__(self, graph: Any, pool: ChunkPool) -> None:
        self._pool, self.rows = pool, graph.shape[0]
        self.roots = np.sqrt(np.asarray(graph.sum(axis=1)).ravel())
        scaled = graph.multiply(1.0 / self.roots[:, None]).multiply(1.0 / self.roots[None, :]).tocsr()
        self._starts = range(0, self.rows, CHUNK)
        self._parts = {start: scaled[start : start + CHUNK] for start in self._starts}

    def times(self, block: Float64) -> Float64:
        """L X, float64 (rows, columns)."""
        out, whole = np.empty_like(block), np.ascontiguousarray(block)

        def work(start: int) -> None:
            out[start : start + CHUNK] = whole[start : start + CHUNK] - self._parts[start] @ whole

        self._pool.map(work, self._starts)
        return out

    def gram(self, left: Float64, right: Float64) -> Float64:
        """X^T Y, summed over the chunks in their order."""
        import torch

        parts: dict[int, Float64] = {}

        def work(start: int) -> None:
            some = slice(start, start + CHUNK)
            parts[start] = (torch.from_numpy(left[some]).T @ torch.from_numpy(right[some])).numpy()

        self._pool.map(work, self._starts)
        total = np.zeros((left.shape[1], right.shape[1]))
        for start in self._starts:
            total += parts[start]
        return total

    def combine(self, block: Float64, small: Float64) -> Float64:
        """X C, float64 (rows, columns of C)."""
        import torch

        out, right = np.empty((len(block), small.shape[1])), torch.from_numpy(np.ascontiguousarray(small))

        def work(start: int) -> None:
            out[start : start + CHUNK] = (torch.from_numpy(block[start : start + CHUNK]) @ right).numpy()

        self._pool.map(work, self._starts)
        return out

    def inverse(self, block: Float64) -> Float64:
        """Roughly (L + shift)^-1 R: Chebyshev's iteration on [shift, 2 + shift] (Saad 2003, algorithm 12.1)."""
        middle, half = 1.0 + _SHIFT, 1.0
        ratio = middle / half
        rho, left = 1.0 / ratio, block
        step = block / middle
        found = step.copy()
        for _ in range(DEGREE - 1):
            left = left - (self.times(step) + _SHIFT * step)
            following = 1.0 / (2.0 * ratio - rho)
            step = following * rho * step + (2.0 * following / half) * left
            rho = following
            found += step
        return found


def _start(laplacian: _Laplacian, member: Any, large: Any, pairs: int, seed: int) -> Float64:
    """The known null vectors, one a component, then noise."""
    width = min(pairs + max(4, pairs // 8), laplacian.rows)
    block = np.random.Generator(np.random.Philox(seed)).standard_normal((laplacian.rows, width))
    for place, component in enumerate(large[:width].tolist()):
        block[:, place] = np.where(member == component, laplacian.roots, 0.0)
    return block


def _lobpcg(
    laplacian: _Laplacian,
    block: Float64,
    pairs: int,
    *,
    tolerance: float,
    rounds: int,
    tick: Callable[[float], None] | None,
) -> tuple[Float64, Float64, Float64]:
    width = block.shape[1]
    found = _orthonormal(laplacian, block)
    moved = laplacian.times(found)
    values, turn = np.linalg.eigh(_symmetric(laplacian.gram(found, moved)))
    found, moved = laplacian.combine(found, turn), laplacian.combine(moved, turn)
    before: Float64 | None = None
    before_moved: Float64 | None = None
    for _ in range(rounds):
        rest = moved - found * values
        residuals = np.sqrt(np.einsum("ij,ij->j", rest, rest))
        if tick is not None:
            tick(float(residuals[:pairs].max()))
        if residuals[:pairs].max() <= tolerance:
            break
        active = residuals > tolerance / 2
        fresh = laplacian.inverse(rest[:, active])
        fresh -= laplacian.combine(found, laplacian.gram(found, fresh))
        # Columns differ in size by orders of magnitude near the end; the basis must not.
        fresh /= np.maximum(np.sqrt(np.einsum("ij,ij->j", fresh, fresh)), np.finfo(np.float64).tiny)
        parts = [found, fresh] if before is None else [found, fresh, before]
        images = (
            [moved, laplacian.times(fresh)] if before_moved is None else [moved, laplacian.times(fresh), before_moved]
        )
        space, image = np.concatenate(parts, axis=1), np.concatenate(images, axis=1)
        values, mix = _ritz(laplacian.gram(space, space), _symmetric(laplacian.gram(space, image)), width)
        next_found, next_moved = laplacian.combine(space, mix), laplacian.combine(image, mix)
        mix[:width] = 0.0
        before, before_moved = laplacian.combine(space, mix), laplacian.combine(image, mix)
        size = np.maximum(np.sqrt(np.einsum("ij,ij->j", before, before)), np.finfo(np.float64).tiny)
        before, before_moved = before / size, before_moved / size
        found, moved = next_found, next_moved
    rest = moved - found * values
    return values[:pairs], found[:, :pairs], np.sqrt(np.einsum("ij,ij->j", rest, rest))[:pairs]


def _ritz(gram: Float64, energy: Float64, width: int) -> tuple[Float64, Float64]:
    """Smallest pairs of energy x = value gram x, on the directions of the space that are more than rounding."""
    spread, basis = np.linalg.eigh(_symmetric(gram))
    kept = spread > _DROPPED * spread[-1]
    white = basis[:, kept] / np.sqrt(spread[kept])
    values, turn = np.linalg.eigh(_symmetric(white.T @ energy @ white))
    return values[:width], white @ turn[:, :width]


def _orthonormal(laplacian: _Laplacian, block: Float64) -> Float64:
    for _ in range(2):
        spread, basis = np.linalg.eigh(_symmetric(laplacian.gram(block, block)))
        block = laplacian.combine(block, basis / np.sqrt(np.maximum(spread, _DROPPED * spread[-1])))
    return block


def _symmetric(matrix: Float64) -> Float64:
    half: Float64 = (matrix + matrix.T) / 2.0
    return half


def _signed(vectors: Float64) -> Float64:
    """Each column with its largest entry positive, so that a sign is not chance."""
    top = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[top, np.arange(vectors.shape[1])])
    found: Float64 = vectors * np.where(signs == 0, 1.0, signs)
    return found
