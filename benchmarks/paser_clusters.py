"""Skills of an instruction pool against tasks that are known: agreement with them, time and memory.

    python -m benchmarks.paser_clusters quality T0.parquet --part validation --rows 12000
    python -m benchmarks.paser_clusters cost T0.parquet --rows 2000 10000 52020
    python -m benchmarks.paser_clusters cost --vectors real.npy --rows 1000000      # any number, of vectors alone

    T0 (columns prompt, dataset; 34 data sets) -> embedded model -> vectors, kept beside the file or in --vectors
    -> clusters -> normalised mutual information and adjusted Rand index with the data sets -> results, a row a method

Half of the data sets, drawn with a seed, are for choosing settings (`validation`), the others for the figures (`test`);
`whole` is all. Every seed draws other rows and seeds the method; intervals are Student's t over seeds. `k` is the true
number of data sets or `found`. A row of `cost` is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pyarrow.parquet as pq

from benchmarks import paser_rivals
from benchmarks.common import Row, finished, peak_memory, record, table
from benchmarks.vectors import Rows, embedded_texts
from datapipe.paser.clusters import ClusterConfig, Clusters, cluster
from datapipe.proof.statistics import interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.storage.arrays import Float32, Int64

NAME = "paser_clusters"
PARTS = ("validation", "test", "whole")
OURS = {
    "ours": {},
    "ours, umap": {"affinity": "umap"},
    "ours, not smoothed": {"steps": 0},
    "eigenvectors, gaussian, k-means": {"affinity": "gaussian", "labels": "kmeans"},
    "eigenvectors, gaussian, symnmf": {"affinity": "gaussian", "labels": "symnmf"},
    "eigenvectors, umap, k-means": {"affinity": "umap", "labels": "kmeans"},
    "eigenvectors, umap, symnmf": {"affinity": "umap", "labels": "symnmf"},
}
"""Settings of `ClusterConfig` beside the defaults."""
RIVALS = {
    "k-means on the vectors": paser_rivals.plain_kmeans,
    "k-means on the vectors, scikit-learn, 10 starts": paser_rivals.sklearn_kmeans,
    "spectral clustering, scikit-learn": paser_rivals.sklearn_spectral,
    "PASER's dense recipe": paser_rivals.paper_recipe,
}
DENSE_ROWS = 4_000
"""Rows up to which PASER's own recipe is tried: its time grows with their cube."""
COLUMNS = {
    "quality": ["part", "rows", "method", "k", "clusters", "nmi", "nmi_half", "ari", "ari_half", "seconds"],
    "cost": ["rows", "method", "k", "clusters", "seconds", "cpu_s", "peak_rss_mb", "recall", "nmi", "load_before"],
}


def labelled(path: Path, kept: Path | None) -> tuple[Float32, Int64, list[str]]:
    """Vectors of the prompts, the data set of each, and the names of the data sets."""
    rows = pq.read_table(path, columns=["prompt", "dataset"])
    kept = kept or path.with_suffix(".vectors.npy")
    if not kept.exists():
        np.save(kept, embedded_texts(rows["prompt"].to_pylist()))
    names, truth = np.unique(rows["dataset"].to_pylist(), return_inverse=True)
    return np.load(kept).astype(np.float32), truth.astype(np.int64), names.tolist()


def rows_of(truth: Int64, part: str, count: int, *, seed: int) -> Int64:
    """At most `count` rows of a part's data sets, drawn with a seed, ascending."""
    sets = np.random.default_rng(0).permutation(truth.max() + 1)
    half = len(sets) // 2
    chosen = {"validation": sets[:half], "test": sets[half:], "whole": sets}[part]
    rows = np.flatnonzero(np.isin(truth, chosen))
    drawn: Int64 = np.sort(np.random.default_rng(seed).permutation(rows)[:count])
    return drawn


def found_by(method: str, vectors: Float32, *, k: int | None, seed: int) -> tuple[Int64, Clusters | None]:
    """Labels, and all of it where the method is one of this project's."""
    if method in RIVALS:
        if k is None:
            raise SystemExit(f"{method} is told how many clusters there are")
        return RIVALS[method](vectors, k, seed), None
    found = cluster(vectors, ClusterConfig(k=k, seed=seed, **OURS[method]))  # type: ignore[arg-type]
    return found.labels, found


def agreement(truth: Int64, labels: Int64) -> tuple[float, float]:
    """Normalised mutual information (arithmetic mean) and adjusted Rand index."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return float(normalized_mutual_info_score(truth, labels)), float(adjusted_rand_score(truth, labels))


def quality(
    data: tuple[Float32, Int64, list[str]], part: str, count: int, method: str, *, given: bool, seeds: int
) -> None:
    """One row: a method over seeds."""
    vectors, truth, _ = data
    config = {"what": "quality", "part": part, "rows": count, "method": method, "k": "given" if given else "found"}
    config["seeds"] = str(seeds)
    if finished(NAME, config):
        return
    seen: list[tuple[float, float, int, float]] = []
    stability: list[float] = []
    for seed in range(seeds):
        rows = rows_of(truth, part, count, seed=seed)
        begun = time.perf_counter()
        k = len(np.unique(truth[rows])) if given else None
        labels, whole = found_by(method, vectors[rows], k=k, seed=seed)
        taken = time.perf_counter() - begun
        seen.append((*agreement(truth[rows], labels), len(np.unique(labels)), taken))
        stability += list(whole.stability.values()) if whole is not None else []
    nmi, ari = (interval([row[at] for row in seen]) for at in (0, 1))
    row: Row = {
        "clusters": [row[2] for row in seen] if not given else seen[0][2],
        "nmi": round(nmi.mean, 4),
        "nmi_half": round((nmi.high - nmi.low) / 2, 4),
        "ari": round(ari.mean, 4),
        "ari_half": round((ari.high - ari.low) / 2, 4),
        "nmi_by_seed": [round(row[0], 4) for row in seen],
        "seconds": round(float(np.median([row[3] for row in seen])), 1),
        **({"stability": [round(value, 3) for value in stability]} if stability else {}),
    }
    print(method, config["k"], record(NAME, row, config), flush=True)


def measured(method: str, vectors: Callable[[], Float32], truth: Int64 | None, *, k: int | None) -> None:
    """Cluster in this process and print what it took: the child of `cost`."""
    given = vectors()
    begun, before = time.perf_counter(), time.process_time()
    steps: dict[str, float] = {}
    if method in RIVALS:
        labels, whole = found_by(method, given, k=k, seed=0)
    else:
        marks: list[tuple[str, float]] = []
        settings = ClusterConfig(k=k, **OURS[method])  # type: ignore[arg-type]
        whole = cluster(given, settings, progress=lambda name: marks.append((name, time.perf_counter())))
        labels = whole.labels
        ends = [at for _, at in marks[1:]] + [time.perf_counter()]
        steps = {name: round(end - at, 1) for (name, at), end in zip(marks, ends, strict=True)}
    row: Row = {
        "clusters": len(np.unique(labels)),
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_s": round(time.process_time() - before, 1),
        "peak_rss_mb": round(peak_memory() / 1e6),
        "recall": round(whole.recall, 4) if whole is not None else None,
        "steps": steps,
    }
    if truth is not None:
        row["nmi"], row["ari"] = (round(value, 4) for value in agreement(truth, labels))
    print(json.dumps(row))


def cost(asked: argparse.Namespace, count: int, method: str, *, k: int | None) -> None:
    """One row: a method at a size, in a process of its own."""
    data = asked.t0.name if asked.t0 else f"{asked.vectors.name}, come round again with noise"
    config = {"what": "cost", "data": data, "rows": count, "method": method, "k": k or "found"}
    if finished(NAME, config):
        return
    load = os.getloadavg()[0]
    command = [sys.executable, "-m", "benchmarks.paser_clusters", "child", *([str(asked.t0)] if asked.t0 else [])]
    command += ["--vectors", str(asked.vectors)] if asked.vectors else []
    command += ["--rows", str(count), "--methods", method, *(["--k", str(k)] if k else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = {**json.loads(done.stdout.splitlines()[-1]), "load_before": round(load, 1)}
    print(method, record(NAME, row, config), flush=True)


def child(asked: argparse.Namespace) -> None:
    """The process that `cost` starts."""
    count, truth = asked.rows[0], None
    if asked.t0:
        vectors, whole, _ = labelled(asked.t0, asked.vectors)
        rows = rows_of(whole, "whole", count, seed=0)
        chosen, truth = vectors[rows], whole[rows]
        measured(asked.methods[0], lambda: chosen, truth, k=asked.k)
        return
    real = np.load(asked.vectors).astype(np.float32)
    measured(asked.methods[0], partial(Rows(real).vectors, 0, count), None, k=asked.k)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "cost", "child", "table"])
    parser.add_argument("t0", type=Path, nargs="?", help="Parquet file with columns prompt and dataset")
    parser.add_argument("--vectors", type=Path, help=".npy of the prompts' vectors, made where it is not there")
    parser.add_argument("--part", choices=PARTS, default="test")
    parser.add_argument("--rows", type=int, nargs="+", default=[12_000])
    parser.add_argument("--methods", nargs="+", default=[*OURS, *RIVALS], choices=[*OURS, *RIVALS])
    parser.add_argument("--k", type=int, help="clusters, for cost; default: found")
    parser.add_argument("--found", action="store_true", help="quality: how many there are is not told")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    if asked.what == "child":
        child(asked)
        return
    if asked.what == "quality":
        data = labelled(asked.t0, asked.vectors)
        for count in asked.rows:
            for method in asked.methods:
                if method != "PASER's dense recipe" or count <= DENSE_ROWS:
                    quality(data, asked.part, count, method, given=not asked.found, seeds=asked.seeds)
    if asked.what == "cost":
        for count in asked.rows:
            for method in asked.methods:
                cost(asked, count, method, k=asked.k)
    for what, columns in COLUMNS.items():
        print(table(NAME, columns, only={"what": what}))


if __name__ == "__main__":
    main()
