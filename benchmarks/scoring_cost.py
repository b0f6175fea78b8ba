"""Seconds a metric takes over synthetic vectors from a mixture (d = 384, bfloat16), on this machine's processors.

    python benchmarks/scoring_cost.py --rows 60000 [--metric knn_density --metric coverage ...]

Prints one JSON line a metric. The vectors are made, not real: a mixture of 500 directions with noise, of seed 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datapipe.metrics.class_means import ClassSums, class_distance
from datapipe.metrics.coverage import coverage
from datapipe.metrics.density import knn_density, typicality
from datapipe.metrics.knn import EXACT_ROWS, nearest_cosines, neighbour_lists
from datapipe.storage.lists import build_lists
from datapipe.storage.vectors import codes, decode, encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIM, CENTRES = 384, 500


def mixture(rows: int) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Codes of unit vectors, uint16 (rows, DIM), and the centre of each."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, DIM)).astype(np.float32)
    labels = rng.integers(0, CENTRES, rows)
    bits = np.empty((rows, DIM), np.uint16)
    for start in range(0, rows, 65_536):
        part = labels[start : start + 65_536]
        vectors = centres[part] + 0.7 * rng.normal(size=(len(part), DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        bits[start : start + len(part)] = codes(encode(vectors.astype(np.float32)))
    return bits, labels


def measure(metric: str, bits: NDArray[np.uint16], labels: NDArray[np.int64], scratch: Path, device: str) -> None:
    """Compute a metric once."""
    rows = len(bits)
    if metric == "coverage":
        coverage(np.ascontiguousarray(bits.T), seed=0)
    elif metric == "prototypes_supervised":
        vectors = decode(encode_view(bits))
        sums = ClassSums(CENTRES, DIM)
        sums.add(vectors, labels)
        class_distance(vectors, labels, sums.means())
    else:
        k = 10 if metric == "knn_density" else 20
        if rows > EXACT_ROWS:
            sys.exit(f"{metric} over more than {EXACT_ROWS:,} rows goes through `datapipe curate`")
        lists = build_lists([bits], np.zeros(rows, np.int32), lists=1, dim=DIM, path=scratch / "lists")
        near = neighbour_lists(np.ones((1, DIM), np.float32), 1)
        {"knn_density": knn_density, "typicality": typicality}[metric](nearest_cosines(lists, near, k=k, device=device))


def encode_view(bits: NDArray[np.uint16]) -> object:
    """The codes as an Arrow column."""
    import pyarrow as pa

    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * DIM), len(bits), [None, pa.py_buffer(bits)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--metric", action="append")
    asked = parser.parse_args()
    bits, labels = mixture(asked.rows)
    for metric in asked.metric or ["prototypes_supervised", "coverage", "knn_density", "typicality"]:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            measure(metric, bits, labels, Path(folder), asked.device)
            seconds = round(time.perf_counter() - began, 2)
        sys.stdout.write(json.dumps({"metric": metric, "rows": asked.rows, "dim": DIM, "seconds": seconds}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
