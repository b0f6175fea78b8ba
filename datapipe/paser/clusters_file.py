"""Clustered rows that give a row that comes later its cluster, and the file in which they are kept.

    Clusters -> save_clusters -> clusters.npz -> load_clusters -> KnownRows.assign(vectors) -> labels, memberships

The file holds the distinct vectors of the pool, in half the bytes where bfloat16 holds them exactly, their memberships
and the eigenvalues. Equal clusters have equal bytes. Raises `IntegrityError` for a file that is none of these.
"""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from datapipe.errors import IntegrityError, VectorError
from datapipe.paser.graph import nearest_among
from datapipe.storage.vectors import normalise

if TYPE_CHECKING:
    from datapipe.paser.clusters import Clusters
    from datapipe.storage.arrays import Float32, Float64, Int64

__all__ = ["KnownRows", "load_clusters", "save_clusters"]

VOTERS = 15
"""Nearest rows that say what the cluster of a new row is."""
FORMAT = 1
_HALF = 16
_AT_ONCE = 1024
_SAME = 1e-5
"""Float32 sums of a few hundred products take a row's cosine with itself this far from 1."""


@dataclass(frozen=True, eq=False)
class KnownRows:
    """Clustered rows that vote for new ones.

    Attributes:
        base: Distinct vectors, float32 (distinct, dim), unit length.
        shares: Their memberships, float32 (distinct, k).
        eigenvalues: Smallest of the normalised Laplacian, ascending, float64; none where they are not known.
    """

    base: Float32
    shares: Float32
    eigenvalues: Float64 = field(default_factory=lambda: np.empty(0))

    @property
    def k(self) -> int:
        """Number of clusters."""
        return int(self.shares.shape[1])

    @cached_property
    def _directions(self) -> Float32:
        """The known vectors at the length that bfloat16 took from them: a row's cosine with itself is 1."""
        return normalise(self.base)[0]

    def assign(self, vectors: Float32) -> tuple[Int64, Float32]:
        """Cluster and memberships of new rows, int64 (rows,) and float32 (rows, k), by their nearest known rows.

        Each of the 15 nearest votes with its memberships and its cosine; a known row keeps its own.

        Args:
            vectors: float32 (rows, dim), unit length.

        Raises:
            VectorError: They are not of the length of those that were clustered.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.base.shape[1]:  # noqa: PLR2004 - a matrix
            raise VectorError(
                f"new vectors of shape {vectors.shape} and clustered ones of {self.base.shape[1]} numbers do not "
                "compare; embed with the model of the clusters"
            )
        shares = np.empty((len(vectors), self.k), np.float32)
        for start in range(0, len(vectors), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            asked, _ = normalise(vectors[part])
            nearest, cosines = nearest_among(self._directions, asked, k=min(VOTERS, len(self.base)))
            weights = np.maximum(cosines, 0.0) ** 4 + np.float32(1e-9)
            weights[cosines[:, 0] >= 1.0 - _SAME, 1:] = 0.0
            shares[part] = np.einsum("ij,ijk->ik", weights / weights.sum(1, keepdims=True), self.shares[nearest])
        return shares.argmax(1).astype(np.int64), shares


def save_clusters(clusters: Clusters, to: str | os.PathLike[str] | BinaryIO) -> None:
    """Write what `load_clusters` reads: 2 * dim + 4 * k bytes a distinct row, or 4 * (dim + k) where they need it."""
    if isinstance(to, (str, os.PathLike)):
        with Path(to).open("wb") as file:
            save_clusters(clusters, file)
        return
    bits = np.ascontiguousarray(clusters.base).view(np.uint32)
    exact = not (bits & np.uint32(0xFFFF)).any()
    np.savez(
        to,
        format=np.int64(FORMAT),
        base=(bits >> np.uint32(_HALF)).astype(np.uint16) if exact else clusters.base,
        shares=clusters.base_shares,
        eigenvalues=clusters.eigenvalues,
    )


def load_clusters(source: str | os.PathLike[str] | bytes) -> KnownRows:
    """Read the file that `save_clusters` wrote.

    Args:
        source: Its path, or its bytes.

    Raises:
        IntegrityError: It is no such file, or a newer one.
    """
    if not isinstance(source, bytes):
        with Path(source).open("rb") as file:
            return _read(file, str(source))
    return _read(io.BytesIO(source), "the file of clusters")


def _read(file: BinaryIO, name: str) -> KnownRows:
    try:
        with np.load(file, allow_pickle=False) as found:
            form, base, shares = int(found["format"]), found["base"], found["shares"]
            eigenvalues = found["eigenvalues"]
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{name} holds no clusters ({error}); delete it and run again") from error
    if form != FORMAT:
        raise IntegrityError(f"{name} is of format {form}, and this version reads {FORMAT}; update secateur")
    if base.dtype == np.uint16:
        base = (base.astype(np.uint32) << np.uint32(_HALF)).view(np.float32)
    if base.ndim != 2 or shares.ndim != 2 or len(base) != len(shares):  # noqa: PLR2004 - matrices
        raise IntegrityError(f"{name} holds vectors {base.shape} and memberships {shares.shape}; run again")
    return KnownRows(base, shares, eigenvalues)
