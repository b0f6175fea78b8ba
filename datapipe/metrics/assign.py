"""Nearest prototype of every row: a matrix product fused with its argmax, chunk by chunk.

vectors (rows, dim) -> chunks of fixed shape -> cosines to all prototypes, in a buffer that is used again -> best
cosine and its prototype. The full rows x k matrix never exists. Ties go to the lowest prototype. Raises `VectorError`
for vectors that are not finite, not of unit length, or of another dimension than the prototypes.

Bits: a chunk always has the same shape (the last one is padded with zero rows), lies in an aligned buffer, and is
multiplied by one thread; threads share out whole chunks. So the result does not depend on the number of threads.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from datapipe.errors import VectorError
from datapipe.metrics.pool import ChunkPool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    import torch

    from datapipe.storage.arrays import Float32, Int32, Int64

UInt16: TypeAlias = NDArray[np.uint16]

CHUNK_ROWS = 1024
"""Rows in one product on the host: its cosines stay in the cache until their argmax is taken."""
BLOCK_PROTOTYPES = 4096
"""Prototypes in one product; with more, a chunk takes several and keeps a running best."""
DEVICE_ROWS = 65_536
"""Rows sent to an accelerator at once."""
LENGTH_TOLERANCE = 0.01
"""How far the length of a row may lie from 1; bfloat16 rounding moves it by less than 0.004."""


class Assigner:
    """Finds the nearest of k prototypes for any number of rows; a context manager, since it holds threads and buffers.

    Several threads may use one at a time.

    Memory beside the prototypes: on the host CHUNK_ROWS * (dim + min(k, BLOCK_PROTOTYPES)) * 4 bytes a thread; on an
    accelerator DEVICE_ROWS * (dim + min(k, BLOCK_PROTOTYPES)) * 4 bytes.

    Args:
        prototypes: Float32 (k, dim), unit length, k >= 1.
        device: "cpu", or a torch device such as "cuda".
        threads: Host threads; None takes the CPUs this process may use. Without effect on an accelerator.
        pool: Threads to share with others, in place of own ones; stays open.

    Raises:
        VectorError: The prototypes are no matrix, are empty, or one is not finite or not of unit length.
    """

    def __init__(
        self, prototypes: Float32, *, device: str = "cpu", threads: int | None = None, pool: ChunkPool | None = None
    ) -> None:
        import torch

        self.prototypes, self.dim = prototypes.shape if prototypes.ndim == 2 else (0, 0)  # noqa: PLR2004 - a matrix
        if not self.prototypes or not self.dim:
            raise VectorError(f"Prototypes must be a matrix of at least one row; their shape is {prototypes.shape}.")
        check_unit(np.sqrt(np.einsum("ij,ij->i", prototypes, prototypes)), what="prototype")
        self.device = torch.device(device)
        self._blocks = blocks_of(prototypes, self.device)
        self._own = ChunkPool(threads) if pool is None and self.device.type == "cpu" else None
        self._pool = pool or self._own
        self._local = threading.local()
        self._upload, self._uploading = Upload(self.dim, self.device), threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the threads end."""
        if self._own is not None:
            self._own.close()

    def assign(self, vectors: Float32) -> tuple[Float32, Int32]:
        """Return max_j cos(z_i, c_j), float32 (rows,), and the least j that reaches it, int32 (rows,).

        The cosine is divided by the row's measured length, so that the rounding of stored vectors does not shift it.
        Time rows * k * dim.

        Args:
            vectors: z, float32 (rows, dim), unit length to within `LENGTH_TOLERANCE`.

        Raises:
            VectorError: Another dimension than the prototypes', or a row that is not finite or not of unit length;
                names the first such row.
        """
        return self._assign(vectors)

    def assign_bfloat16(self, codes: UInt16) -> tuple[Float32, Int32]:
        """Return the same for bfloat16 vectors given by their bits, uint16 (rows, dim): half the bytes to a device."""
        return self._assign(codes)

    def _assign(self, vectors: Float32 | UInt16) -> tuple[Float32, Int32]:
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:  # noqa: PLR2004 - a matrix has two axes
            raise VectorError(
                f"Vectors have shape {vectors.shape} and the prototypes dimension {self.dim}; are they of one model?"
            )
        rows = len(vectors)
        cosines, clusters = np.empty(rows, np.float32), np.empty(rows, np.int32)
        if self._pool is None:
            with self._uploading:
                self._assign_on_device(vectors, cosines, clusters)
        else:
            self._pool.map(
                lambda start: self._assign_chunk(vectors, start, cosines, clusters), range(0, rows, CHUNK_ROWS)
            )
        return cosines, clusters

    def _assign_chunk(self, vectors: Float32 | UInt16, start: int, cosines: Float32, clusters: Int32) -> None:
        import torch

        space = self._workspace()
        rows = min(CHUNK_ROWS, len(vectors) - start)
        space.load(vectors[start : start + rows])
        lengths = np.sqrt(np.einsum("ij,ij->i", space.rows, space.rows))
        check_unit(lengths[:rows], start=start)
        first = 0
        best: Float32 = np.empty(0, np.float32)
        where: Int64 = np.empty(0, np.int64)
        for block in self._blocks:
            width = block.shape[1]
            product = space.product[: CHUNK_ROWS * width].view(CHUNK_ROWS, width)
            torch.mm(space.tensor, block, out=product)
            values = product.numpy()
            # numpy's argmax along contiguous float32 is vectorised and takes the first maximum; that of torch is slow.
            at = np.argmax(values, axis=1)
            found = values[space.lines, at]
            if first:
                better = found > best
                best[better] = found[better]
                where[better] = at[better] + first
            else:
                best, where = found, at
            first += width
        np.divide(best[:rows], lengths[:rows], out=cosines[start : start + rows])
        clusters[start : start + rows] = where[:rows]

    def _workspace(self) -> _Workspace:
        space: _Workspace | None = getattr(self._local, "space", None)
        if space is None:
            space = self._local.space = _Workspace(self.dim, min(self.prototypes, BLOCK_PROTOTYPES))
        return space

    def _assign_on_device(self, vectors: Float32 | UInt16, cosines: Float32, clusters: Int32) -> None:
        for start in range(0, len(vectors), DEVICE_ROWS):
            part = slice(start, start + DEVICE_ROWS)
            rows = self._upload(vectors[part])
            lengths = rows.square().sum(dim=1).sqrt()
            check_unit(lengths.cpu().numpy(), start=start)
            best, where = nearest_on_device(rows, self._blocks)
            cosines[part] = (best / lengths).cpu().numpy()
            clusters[part] = where.cpu().numpy()


class _Workspace:
    """The buffers of one thread. torch aligns them to 64 bytes, without which the product's bits may vary."""

    def __init__(self, dim: int, width: int) -> None:
        import torch

        self.tensor = torch.zeros(CHUNK_ROWS, dim)
        self.rows: Float32 = self.tensor.numpy()
        self.product = torch.empty(CHUNK_ROWS * width)
        self.lines = np.arange(CHUNK_ROWS)
        self._codes = np.zeros((CHUNK_ROWS, dim), np.uint16)
        self._brain = torch.from_numpy(self._codes).view(torch.bfloat16)

    def load(self, vectors: Float32 | UInt16) -> None:
        """Fill the buffer with the rows of a chunk, and with zeros after them."""
        count = len(vectors)
        if vectors.dtype == np.uint16:
            np.copyto(self._codes[:count], vectors)
            self.tensor[:count].copy_(self._brain[:count])
        else:
            np.copyto(self.rows[:count], vectors)
        self.rows[count:] = 0.0


def blocks_of(prototypes: Float32, device: torch.device) -> list[torch.Tensor]:
    """Return the prototypes as columns on `device`, float32 (dim, at most BLOCK_PROTOTYPES) each."""
    import torch

    starts = range(0, len(prototypes), BLOCK_PROTOTYPES)
    columns = [np.array(prototypes[start : start + BLOCK_PROTOTYPES].T, np.float32, order="C") for start in starts]
    return [torch.from_numpy(block).to(device) for block in columns]


class Upload:
    """Sends rows to a device through one buffer, page-locked where the device is an accelerator.

    Args:
        dim: Numbers in a row.
        device: Where to.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self._dim, self._device = dim, device
        self._buffers: dict[str, torch.Tensor] = {}

    def __call__(self, vectors: Float32 | UInt16) -> torch.Tensor:
        """Return at most `DEVICE_ROWS` rows, float32 or the bits of bfloat16, as float32 on the device.

        On the host itself the result may be the buffer and lasts until the next call.
        """
        import torch

        name = vectors.dtype.name
        if name not in self._buffers:
            kind = torch.uint16 if name == "uint16" else torch.float32
            locked = self._device.type == "cuda"
            self._buffers[name] = torch.empty(DEVICE_ROWS, self._dim, dtype=kind, pin_memory=locked)
        staged = self._buffers[name][: len(vectors)]
        np.copyto(staged.numpy(), vectors)
        sent = staged.to(self._device)
        return (sent.view(torch.bfloat16) if name == "uint16" else sent).float()


def nearest_on_device(rows: torch.Tensor, blocks: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the greatest product of each row with the columns of `blocks` and that column, float32 and int64 (rows,).

    Works on at most `DEVICE_ROWS` rows and one block at a time; ties go to the lowest column.
    """
    import torch

    best = torch.full((len(rows),), -torch.inf, dtype=torch.float32, device=rows.device)
    where = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for start in range(0, len(rows), DEVICE_ROWS):
        part = slice(start, start + DEVICE_ROWS)
        first = 0
        for block in blocks:
            found, at = torch.max(rows[part] @ block, dim=1)
            better = found > best[part]
            where[part] = torch.where(better, at + first, where[part])
            best[part] = torch.where(better, found, best[part])
            first += block.shape[1]
    return best, where


def check_unit(lengths: Float32, *, start: int = 0, what: str = "row") -> None:
    """Raise `VectorError` for the first of `lengths` that is not 1 to within `LENGTH_TOLERANCE`; a NaN never is."""
    wrong = ~(np.abs(lengths - 1.0) <= LENGTH_TOLERANCE)
    if wrong.any():
        at = int(np.argmax(wrong))
        length = float(lengths[at])
        fault = f"has length {length:.4g}" if np.isfinite(length) else "is not finite"
        raise VectorError(f"The vector of {what} {start + at} {fault}; vectors must be finite and of unit length.")
