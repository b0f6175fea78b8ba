"""Semantic dedup: what people call the same, what the lists miss, and what it costs beside a range search by faiss.

    python -m benchmarks.dedup labels --pairs PAIRS.parquet          # columns a, b, set, same (0 or 1)
    python -m benchmarks.dedup recall --rows 120000 [--texts TEXTS.parquet] [--vectors REAL.npy]
    python -m benchmarks.dedup cost --rows 1000000 [--vectors REAL.npy] [--device cuda]

labels: pairs with labels -> cosines -> share of the pairs at or above each threshold that are the same, and share of
the same that are there. recall: the rows and pairs of all-pairs search against those of lists, by probes. cost: seconds
of lists and search, and of the same search with faiss (IVF, as many lists and probes; range_search), whose queries are
a sample, scaled up. Vectors: benchmarks/vectors.py.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import Row, finished, record, table, with_the_processors_own_blas
from benchmarks.vectors import Rows, embedded, embedded_texts, floats
from datapipe.dedup.semantic import SEMANTIC, SemanticDuplicates, semantic_duplicates
from datapipe.metrics.assign import Assigner
from datapipe.metrics.kmeans import spherical_kmeans
from datapipe.metrics.knn import neighbour_lists
from datapipe.storage.lists import VectorLists, build_lists

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32

NAME = "dedup"
THRESHOLDS = (0.8, 0.85, 0.9, 0.92, 0.95, 0.97, 0.98)
PROBES = (2, 4, 8, 16, 32)
FAISS_QUERIES = 20_000


def labels(path: Path) -> None:
    """How people's labels of pairs fall about each threshold."""
    pairs = pq.read_table(path).to_pydict()
    texts = sorted({*pairs["a"], *pairs["b"]})
    place = {text: row for row, text in enumerate(texts)}
    vectors = embedded_texts(texts)
    left, right = (vectors[[place[text] for text in pairs[side]]] for side in ("a", "b"))
    cosines, same = np.einsum("ij,ij->i", left, right), np.array(pairs["same"]) == 1
    for name in sorted(set(pairs["set"])):
        own = np.array([each == name for each in pairs["set"]])
        for threshold in THRESHOLDS:
            above = own & (cosines >= threshold)
            row = {
                "pairs": int(own.sum()),
                "above": int(above.sum()),
                "same_above": int((above & same).sum()),
                "precision": round(float(same[above].mean()), 3) if above.any() else None,
                "found": round(float((above & same).sum() / (own & same).sum()), 3),
            }
            record(NAME, row, {"what": "labels", "set": name, "threshold": threshold})


class Search:
    """Lists over bits of vectors, made once; each search may compare another number of them."""

    def __init__(self, bits: NDArray[np.uint16], folder: Path, *, lists: int | None = None, device: str) -> None:
        rows, dim = bits.shape
        begun = time.perf_counter()
        if lists == 1:
            assigned, self.centroids = np.zeros(rows, np.int32), np.ones((1, dim), np.float32)
        else:
            k = lists or round((rows / 2) ** 0.5)
            sample = np.unique(np.linspace(0, rows - 1, min(rows, 64 * k)).astype(np.int64))
            self.centroids = spherical_kmeans(floats(bits[sample]), k=k, seed=0, iterations=10, device=device)
            with Assigner(self.centroids, device=device) as assigner:
                assigned = assigner.assign_bfloat16(bits)[1]
        self.lists: VectorLists = build_lists([bits], assigned, lists=len(self.centroids), dim=dim, path=folder / "l")
        self.build_s, self.cpu_s, self.device = time.perf_counter() - begun, 0.0, device

    def __call__(self, *, probes: int, threshold: float) -> tuple[SemanticDuplicates, float]:
        """What goes, and the seconds of the search."""
        begun, busy = time.perf_counter(), time.process_time()
        near = neighbour_lists(self.centroids, probes)
        found = semantic_duplicates(
            self.lists, near, np.arange(len(self.lists.rows)), threshold=threshold, device=self.device
        )
        self.cpu_s = time.process_time() - busy
        return found, time.perf_counter() - begun


def recall(bits: NDArray[np.uint16], real: int, *, device: str) -> None:
    """Pairs and rows found through lists beside those of all pairs."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as many:
        exact, listed = Search(bits, Path(one), lists=1, device=device), Search(bits, Path(many), device=device)
        truth, seconds = exact(probes=1, threshold=SEMANTIC)
        for probes in PROBES:
            found, taken = listed(probes=probes, threshold=SEMANTIC)
            row = {
                "lists": len(listed.lists),
                "pairs": truth.pairs,
                "recall": round(found.pairs / truth.pairs, 4),
                "rows_that_go": len(truth.rows),
                "rows_alike": round(len(np.intersect1d(found.rows, truth.rows)) / len(truth.rows), 4),
                "seconds": round(taken, 2),
                "seconds_all_pairs": round(seconds, 2),
            }
            config = {"what": "recall", "rows": len(bits), "real": real, "threshold": SEMANTIC, "probes": probes}
            print(record(NAME, row, config)["recall"], config, flush=True)


def cost(bits: NDArray[np.uint16], real: int, *, device: str) -> None:
    """Seconds beside faiss."""
    config = {"what": "cost", "rows": len(bits), "real": real, "device": device, "threshold": SEMANTIC, "probes": 8}
    if finished(NAME, config):
        return
    with tempfile.TemporaryDirectory() as folder:
        search = Search(bits, Path(folder), device=device)
        found, taken = search(probes=8, threshold=SEMANTIC)
    row: Row = {
        "lists": len(search.centroids),
        "build_s": round(search.build_s, 1),
        "search_s": round(taken, 1),
        "search_cpu_s": round(search.cpu_s, 1),
        "rows_per_s": round(len(bits) / taken),
        "pairs": found.pairs,
        "rows_that_go": len(found.rows),
    }
    if device == "cpu":
        row |= faiss_range(bits, search.centroids, probes=8, threshold=SEMANTIC)
        row["times_faiss"] = round(row["faiss_search_s"] / row["search_s"], 2)
        row["times_faiss_cpu"] = round(row["faiss_search_cpu_s"] / row["search_cpu_s"], 2)
    record(NAME, row, config)


def faiss_range(bits: NDArray[np.uint16], centroids: Float32, *, probes: int, threshold: float) -> Row:
    """The same lists in faiss; each row of a sample asks for what is near to it, and the time is scaled to all rows."""
    import faiss

    vectors = floats(bits)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    quantizer.add(centroids)
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], len(centroids), faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True
    begun = time.perf_counter()
    index.add(vectors)
    added = time.perf_counter() - begun
    index.nprobe = probes
    queries = vectors[np.linspace(0, len(vectors) - 1, min(FAISS_QUERIES, len(vectors))).astype(np.int64)]
    begun, busy = time.perf_counter(), time.process_time()
    limits, _, _ = index.range_search(queries, threshold)
    scale = len(vectors) / len(queries)
    taken, cpu = (time.perf_counter() - begun) * scale, (time.process_time() - busy) * scale
    return {
        "faiss_add_s": round(added, 1),
        "faiss_search_s": round(taken, 1),
        "faiss_search_cpu_s": round(cpu, 1),
        "faiss_queries": len(queries),
        "faiss_pairs": round((int(limits[-1]) - len(queries)) / 2 * scale),
    }


def main() -> None:
    """Measure what the command line asks for and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["labels", "recall", "cost"])
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--rows", type=int, help="default: all real rows")
    parser.add_argument("--texts", type=Path, help="Parquet file with a column text; default: the texts of data/")
    parser.add_argument("--vectors", type=Path, help=".npy where their vectors are kept")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    with_the_processors_own_blas()
    if asked.what == "labels":
        labels(asked.pairs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            real = embedded(asked.texts, asked.vectors or Path(folder) / "real.npy")
        bits = Rows(real).all_codes(asked.rows or len(real))
        {"recall": recall, "cost": cost}[asked.what](bits, len(real), device=asked.device)
    print(table(NAME, only={"what": asked.what}))


if __name__ == "__main__":
    main()
