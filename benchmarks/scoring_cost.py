"""Seconds a metric over real vectors (d = 384, bfloat16), beside the obvious way with a library in the same run.

    python -m benchmarks.scoring_cost --rows 60000 [--vectors REAL.npy] [--metric coverage ...] [--device cuda]

    assign       nearest of k centroids: this project, faiss (IndexFlatIP), scikit-learn (KMeans.predict) and the bare
                 matrix product of as many operations, from memory; and from Parquet to Parquet. On an accelerator:
                 beside the copy of the rows there through two page-locked buffers
    prototypes   fit on a sample, then assign all: faiss.Kmeans (spherical), sklearn MiniBatchKMeans + transform
    knn_density  cosines to 10 neighbours: all pairs up to 200,000 rows, else lists; sklearn NearestNeighbors (brute),
    typicality   faiss flat or IVF with as many lists and probes; 20 neighbours. On an accelerator: beside products of
                 blocks and topk in torch
    coverage     1,000,000 draws; the published algorithm row by row in numpy, some draws, scaled up
    prototypes_supervised   class means; sklearn NearestCentroid and distances

Methods take turns, `--rounds` times, and a ratio is the median over rounds of the rival's time by ours: of the wall
clock, and of the processor's time, which other load changes less (not with an accelerator, for which the host waits).
Rivals that would take too long answer a sample and are scaled; `of` says how many. Vectors: benchmarks/vectors.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import Row, finished, record, table, with_the_processors_own_blas
from benchmarks.scoring_rivals import LITERAL_DRAWS, SHARD, copy_there, draw_by_draw, topk_there, write_vectors
from benchmarks.vectors import Rows, embedded, floats, widened
from datapipe.metrics.assign import CHUNK_ROWS, Assigner
from datapipe.metrics.class_means import ClassSums, class_distance
from datapipe.metrics.coverage import DRAWS, coverage
from datapipe.metrics.density import DENSITY_NEIGHBOURS, TYPICALITY_NEIGHBOURS, knn_density, typicality
from datapipe.metrics.knn import EXACT_ROWS, nearest_cosines, neighbour_lists
from datapipe.metrics.pool import usable_cpus
from datapipe.metrics.prototypes import fit_prototypes, scores_of
from datapipe.storage.lists import build_lists
from datapipe.storage.parquet import open_writer, write_table
from datapipe.storage.vectors import codes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32

NAME = "scoring_cost"
PROBES = 32
SAMPLED = 10_000


@dataclass(frozen=True)
class Way:
    """One way to compute a metric.

    Attributes:
        run: Computes it once, for a part of the rows or draws.
        share: That part; the time is divided by it.
    """

    run: Callable[[], object]
    share: float = 1.0


@dataclass(frozen=True)
class Data:
    """The rows.

    Attributes:
        bits: bfloat16, uint16 (rows, dim).
        vectors: The same as float32, unit length: what the libraries take.
        k: Centroids of `assign` and `prototypes`.
        folder: For files.
        device: Of this project's arithmetic.
    """

    bits: NDArray[np.uint16]
    vectors: Float32
    k: int
    folder: Path
    device: str


def sample_of(data: Data, size: int) -> Float32:
    """Evenly spread rows."""
    rows = np.unique(np.linspace(0, len(data.vectors) - 1, min(size, len(data.vectors))).astype(np.int64))
    return data.vectors[rows]


def assign(data: Data) -> dict[str, Way]:
    """Nearest of k centroids that all ways share."""
    centroids = sample_of(data, data.k)
    if data.device != "cpu":
        there = Assigner(centroids, device=data.device)
        return {
            "ours": Way(lambda: there.assign_bfloat16(data.bits)),
            "copy there, two buffers": Way(lambda: copy_there(data.bits, data.device)),
        }
    import faiss
    from sklearn.cluster import KMeans

    from benchmarks.prototypes import Product

    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    kmeans = KMeans(len(centroids), init=centroids, n_init=1, max_iter=1).fit(centroids)
    kmeans.cluster_centers_ = centroids
    assigner, product = Assigner(centroids, device=data.device), Product(data.vectors[:SHARD], centroids)
    some = data.vectors[: min(len(data.vectors), 100_000)]
    share, step = len(some) / len(data.vectors), CHUNK_ROWS * usable_cpus()
    source, out = data.folder / "vectors.parquet", data.folder / "scores.parquet"
    write_vectors(data.bits, source)

    def bare() -> None:
        product.a_thread_each(len(some))

    def from_parquet() -> None:
        schema = pa.schema({"prototypes": pa.float32(), "cluster": pa.int32()})
        with open_writer(out, schema) as writer:
            for batch in pq.ParquetFile(source).iter_batches(SHARD):
                cosines, clusters = assigner.assign_bfloat16(codes(batch.column(0)))
                write_table(writer, pa.table([scores_of(cosines), clusters], schema=schema))

    return {
        "ours": Way(lambda: assigner.assign_bfloat16(data.bits)),
        "ours, Parquet to Parquet": Way(from_parquet),
        "matrix product": Way(bare, len(some) // step * step / len(data.vectors)),
        "faiss IndexFlatIP": Way(lambda: index.search(some, 1), share),
        "scikit-learn KMeans.predict": Way(lambda: kmeans.predict(some), share),
    }


def prototypes(data: Data) -> dict[str, Way]:
    """Fit on a sample, assign all."""
    import faiss
    from sklearn.cluster import MiniBatchKMeans

    sample = sample_of(data, 64 * data.k)

    def ours() -> None:
        with Assigner(fit_prototypes(sample, k=data.k, seed=0, device=data.device), device=data.device) as assigner:
            assigner.assign_bfloat16(data.bits)

    def with_faiss() -> None:
        kmeans = faiss.Kmeans(sample.shape[1], data.k, niter=20, spherical=True, seed=0, max_points_per_centroid=64)
        kmeans.train(sample)
        kmeans.index.search(data.vectors, 1)

    def with_sklearn() -> None:
        kmeans = MiniBatchKMeans(data.k, random_state=0, n_init=1).fit(sample)
        for start in range(0, len(data.vectors), SHARD):
            kmeans.transform(data.vectors[start : start + SHARD]).min(axis=1)

    return {
        "ours": Way(ours),
        "faiss Kmeans": Way(with_faiss),
        "scikit-learn MiniBatchKMeans": Way(with_sklearn),
    }


def neighbours(data: Data, k: int, score: Callable[[Float32], Float32]) -> dict[str, Way]:
    """Cosines to the k nearest."""
    rows = len(data.bits)
    lists = 1 if rows <= EXACT_ROWS else round(rows**0.5)

    def ours() -> None:
        if lists == 1:
            assigned, centroids = np.zeros(rows, np.int32), np.ones((1, data.bits.shape[1]), np.float32)
        else:
            centroids = fit_prototypes(sample_of(data, 64 * lists), k=lists, seed=0, iterations=10, device=data.device)
            with Assigner(centroids, device=data.device) as assigner:
                assigned = assigner.assign_bfloat16(data.bits)[1]
        made = build_lists(
            [data.bits], assigned, lists=len(centroids), dim=data.bits.shape[1], path=data.folder / "lists"
        )
        score(nearest_cosines(made, neighbour_lists(centroids, PROBES), k=k, device=data.device))

    queries = sample_of(data, SAMPLED)
    share = len(queries) / rows
    if data.device != "cpu":
        there = Way(lambda: topk_there(data.bits, queries, k, data.device), share)
        return {"ours": Way(ours), "torch topk of all": there}
    import faiss
    from sklearn.neighbors import NearestNeighbors

    index: Any = faiss.IndexFlatIP(data.vectors.shape[1])
    if lists > 1:
        quantizer = faiss.IndexFlatIP(data.vectors.shape[1])
        quantizer.add(sample_of(data, lists))
        index = faiss.IndexIVFFlat(quantizer, data.vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        index.is_trained, index.nprobe = True, PROBES
    index.add(data.vectors)
    ways = {
        "ours": Way(ours),
        "faiss flat" if lists == 1 else "faiss IVF": Way(lambda: index.search(queries, k + 1), share),
    }
    if lists == 1:
        brute = NearestNeighbors(n_neighbors=k + 1, algorithm="brute", metric="cosine").fit(data.vectors)
        ways["scikit-learn NearestNeighbors"] = Way(lambda: brute.kneighbors(queries), share)
    return ways


def covered(data: Data) -> dict[str, Way]:
    """Coverage, and the published loop over draws."""
    columns = np.ascontiguousarray(data.bits.T)
    return {
        "ours": Way(lambda: coverage(columns, seed=0)),
        "numpy loop": Way(lambda: draw_by_draw(data.vectors), LITERAL_DRAWS / DRAWS),
    }


def class_means(data: Data) -> dict[str, Way]:
    """Distance to the mean of one's class; classes are the nearest of a hundred rows."""
    from sklearn.metrics.pairwise import paired_cosine_distances
    from sklearn.neighbors import NearestCentroid

    with Assigner(sample_of(data, 100)) as assigner:
        classes = assigner.assign_bfloat16(data.bits)[1].astype(np.int64)

    def ours() -> None:
        sums = ClassSums(100, data.bits.shape[1])
        parts = [slice(start, start + SHARD) for start in range(0, len(classes), SHARD)]
        for part in parts:
            sums.add(floats(data.bits[part]), classes[part])
        means = sums.means()
        for part in parts:
            class_distance(floats(data.bits[part]), classes[part], means)

    def with_sklearn() -> None:
        means = NearestCentroid().fit(data.vectors, classes).centroids_
        paired_cosine_distances(data.vectors, means[np.unique(classes, return_inverse=True)[1]])

    return {"ours": Way(ours), "scikit-learn NearestCentroid": Way(with_sklearn)}


METRICS: dict[str, Callable[[Data], dict[str, Way]]] = {
    "assign": assign,
    "prototypes": prototypes,
    "prototypes_supervised": class_means,
    "coverage": covered,
    "knn_density": lambda data: neighbours(data, DENSITY_NEIGHBOURS, knn_density),
    "typicality": lambda data: neighbours(data, TYPICALITY_NEIGHBOURS, typicality),
}


def measure(metric: str, data: Data, *, rounds: int, config: Row) -> None:
    """Time all ways in turns and record a row for each."""
    ways = METRICS[metric](data)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun, busy = time.perf_counter(), time.process_time()
            way.run()
            times = (time.perf_counter() - begun) / way.share, (time.process_time() - busy) / way.share
            taken[name].append(times)
    for name, way in ways.items():
        wall, cpu = (
            [theirs[kind] / ours[kind] for theirs, ours in zip(taken[name], taken["ours"], strict=True)]
            for kind in (0, 1)
        )
        row = {
            "seconds": round(statistics.median(time_ for time_, _ in taken[name]), 2),
            "cpu_seconds": round(statistics.median(time_ for _, time_ in taken[name]), 2),
            "times_ours": round(statistics.median(wall), 3),
            "times_ours_cpu": round(statistics.median(cpu), 3),
            "of": round(len(data.bits) * way.share) if way.share < 1 and metric != "coverage" else None,
            "load": round(os.getloadavg()[0], 1),
        }
        record(NAME, row, {**config, "metric": metric, "way": name})
        print(metric, name, row, flush=True)


def main() -> None:
    """Measure what is asked for and not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--k", type=int, default=1000, help="centroids of assign and prototypes")
    parser.add_argument("--dim", type=int, help="a multiple of 384: vectors side by side; default 384")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--metric", action="append", choices=METRICS)
    parser.add_argument("--texts", type=Path, help="Parquet file with a column text; default: the texts of data/")
    parser.add_argument("--vectors", type=Path, help=".npy where their vectors are kept")
    asked = parser.parse_args()
    with_the_processors_own_blas()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        real = embedded(asked.texts, asked.vectors or folder / "real.npy")
        if asked.dim:
            real = widened(real, asked.dim)
        bits = Rows(real).all_codes(asked.rows)
        vectors = floats(bits)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        data = Data(bits, vectors, asked.k, folder, asked.device)
        config = {"rows": asked.rows, "real": min(len(real), asked.rows), "dim": real.shape[1], "device": asked.device}
        for metric in asked.metric or METRICS:
            if not finished(NAME, {**config, "metric": metric, "way": "ours"}):
                measure(metric, data, rounds=asked.rounds, config=config)
    print(table(NAME))


if __name__ == "__main__":
    main()
