"""Real vectors for benchmarks of scale: texts embedded once, then as many rows as are asked for.

    texts (data/ of this repository, or a Parquet file) -> embedded model -> float32 .npy -> Rows.codes(start, stop)

The first rows are the real ones. Where more are asked for, they come round again, each moved by seeded noise to about
`COSINE` of the vector it was: no near duplicate, and of the same clusters.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import ROOT
from datapipe.metrics.pool import usable_cpus
from datapipe.storage.vectors import codes, encode, normalise

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32

COSINE = 0.9
"""Of a repeated row to the real one; two repeats of one row are at about its square."""
_BANK = 65_536
_BLOCK = 8192
_BATCH = 10_000


def texts(path: Path | None) -> list[str]:
    """The column `text` of a Parquet file; by default questions, passages and answers of `data/`, each once."""
    if path is not None:
        found: list[str] = pq.read_table(path, columns=["text"])["text"].to_pylist()
        return found
    columns = [("banking77", "text"), ("squad20_dev", "question"), ("squad20_dev", "context"), ("dolly_3k", "output")]
    tables = [pq.read_table(ROOT / "data" / f"{name}.parquet", columns=[column])[column] for name, column in columns]
    return sorted({text for table in tables for text in table.to_pylist() if text and text.strip()})


def embedded_texts(texts_: list[str]) -> Float32:
    """Vectors of texts by the embedded model, float32 (texts, 384), unit length."""
    from datapipe.embedding.text import embed_texts
    from datapipe.stages.embedder import Embedder

    model = Embedder("default", device="auto")
    parts = [texts_[start : start + _BATCH] for start in range(0, len(texts_), _BATCH)]
    return np.concatenate([embed_texts(model.worker(), part, model=model.name).vectors for part in parts])


def embedded(path: Path | None, kept: Path) -> Float32:
    """Vectors of the texts: read from `kept`, or made and written there."""
    if not kept.exists():
        np.save(kept, embedded_texts(texts(path)))
    vectors: Float32 = np.load(kept).astype(np.float32)
    return vectors


def floats(bits: NDArray[np.uint16]) -> Float32:
    """The numbers with these bits, float32 of the same shape."""
    vectors: Float32 = (bits.astype("<u4") << np.uint32(16)).view("<f4")
    return vectors


def widened(real: Float32, dim: int) -> Float32:
    """Vectors of a multiple of their dims: each beside others of the same set, float32 (rows, dim), unit length."""
    parts = [np.roll(real, 7919 * turn, axis=0) for turn in range(dim // real.shape[1])]
    return normalise(np.concatenate(parts, axis=1))[0]


class Rows:
    """Any number of rows over the real ones.

    Args:
        real: float32 (n, dim), unit length.
        cosine: Of a repeated row to the real one.
        seed: Of the noise.
    """

    def __init__(self, real: Float32, *, cosine: float = COSINE, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((_BANK, real.shape[1]), dtype=np.float32)
        self._noise = normalise(noise)[0] * np.float32(np.tan(np.arccos(cosine)))
        self._real, self._seed = real, seed
        self.dim = real.shape[1]

    def vectors(self, start: int, stop: int) -> Float32:
        """Rows start ... stop - 1, float32 (rows, dim), unit length."""
        numbers = np.arange(start, stop)
        turn, row = np.divmod(numbers, len(self._real))
        found = self._real[row]
        again = np.flatnonzero(turn)
        # A row of the bank of noise by the number of the row, in no step with the real ones.
        mixed = (numbers[again].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        found[again] += self._noise[mixed % _BANK]
        return normalise(found)[0]

    def codes(self, start: int, stop: int) -> NDArray[np.uint16]:
        """The same as bits of bfloat16, uint16 (rows, dim)."""
        return codes(encode(self.vectors(start, stop)))

    def all_codes(self, rows: int) -> NDArray[np.uint16]:
        """The first `rows` rows."""
        bits = np.empty((rows, self.dim), np.uint16)

        def make(start: int) -> None:
            bits[start : start + _BLOCK] = self.codes(start, min(start + _BLOCK, rows))

        with ThreadPoolExecutor(usable_cpus()) as pool:
            list(pool.map(make, range(0, rows, _BLOCK)))
        return bits
