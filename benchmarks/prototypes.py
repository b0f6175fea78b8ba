"""Prototype scores and selection: rows a second, beside the machine's matrix product and scikit-learn, and peak memory.

    python -m benchmarks.prototypes assign                        # interleaved ratios in one process
    python -m benchmarks.prototypes stream --rows 500000 2000000 8000000   # from Parquet shards, one process each
    python -m benchmarks.prototypes select --rows 10000000        # selection only, one process each

Vectors are clustered unit vectors made from a seed, in bfloat16 shards as the pipeline writes them. Every comparison is
a ratio of runs that alternate in one process, so that other load on the machine hits both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import (
    blas_kernels,
    finished,
    peak_memory,
    record,
    table,
    with_the_processors_own_blas,
)
from datapipe.metrics.assign import CHUNK_ROWS, Assigner
from datapipe.metrics.pool import ChunkPool
from datapipe.metrics.prototypes import fit_prototypes, scores_of
from datapipe.selection.budget import Budget
from datapipe.selection.engine import select
from datapipe.selection.plan import Plan
from datapipe.selection.result import ScoreBatch
from datapipe.storage.parquet import open_writer, write_table
from datapipe.storage.vectors import codes, decode, encode, normalise, vector_field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from datapipe.storage.arrays import Float32

SHARD_ROWS = 65_536
CENTRES = 2000
PLANS = {
    "keep-hard, half-balanced groups": Plan(order="hard", strata="group", quota="fill"),
    "CCS": Plan(order="random", trim_hard=0.1, strata="score_width", quota="equal"),
    "random": Plan(order="random"),
}


def clustered(rows: int, dim: int, *, seed: int) -> Float32:
    """Unit vectors around `CENTRES` shared centres, float32 (rows, dim)."""
    middles = np.random.default_rng(0).standard_normal((CENTRES, dim), dtype=np.float32)
    rng = np.random.default_rng([1, seed])
    vectors = 0.7 * rng.standard_normal((rows, dim), dtype=np.float32)
    vectors += middles[rng.integers(0, CENTRES, rows)]
    return normalise(vectors)[0]


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class Product:
    """The matrix product alone, in the two ways that use all threads: what the machine can do at this moment."""

    def __init__(self, vectors: Float32, prototypes: Float32) -> None:
        import torch

        self._pool = ChunkPool()
        self._right = torch.from_numpy(np.ascontiguousarray(prototypes.T))
        self._tall = torch.from_numpy(vectors[:4096].copy())
        self._tall_out = torch.empty(4096, len(prototypes))
        self._lefts = [torch.from_numpy(vectors[:CHUNK_ROWS].copy()) for _ in range(self._pool.threads)]
        self._outs = [torch.empty(CHUNK_ROWS, len(prototypes)) for _ in range(self._pool.threads)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def one_call(self, rows: int) -> None:
        """Multiply blocks of 4,096 rows, each split over the threads by the library."""
        import torch

        for _ in range(rows // 4096):
            torch.mm(self._tall, self._right, out=self._tall_out)

    def a_thread_each(self, rows: int) -> None:
        """Multiply chunks as the assigner does, a share of them in each thread."""
        import torch

        def multiply(at: int) -> None:
            for _ in range(rows // CHUNK_ROWS // self._pool.threads):
                torch.mm(self._lefts[at], self._right, out=self._outs[at])

        self._pool.map(multiply, range(self._pool.threads))

    def seconds_a_row(self, rows: int = 32_768) -> float:
        """The faster of the two, measured now."""
        return min(seconds(lambda: self.one_call(rows)), seconds(lambda: self.a_thread_each(rows))) / rows


def assign(*, rows: int, dim: int, k: int, rounds: int) -> dict[str, Any]:
    """Compare assignment with the bare product and with scikit-learn, alternating."""
    vectors, prototypes = clustered(rows, dim, seed=0), clustered(k, dim, seed=1)
    bits = codes(encode(vectors))
    with Assigner(prototypes) as assigner, Product(vectors, prototypes) as product:
        work: dict[str, Callable[[], object]] = {
            "product_one_call": lambda: product.one_call(rows),
            "product_thread_each": lambda: product.a_thread_each(rows),
            "assign": lambda: assigner.assign(vectors),
            "assign_bfloat16": lambda: assigner.assign_bfloat16(bits),
            "scikit_learn": scikit_learn(vectors, prototypes),
        }
        for warm in work.values():
            warm()
        taken = [{name: seconds(run) for name, run in work.items()} for _ in range(rounds)]
    best = {name: min(times[name] for times in taken) for name in work}
    bare = [min(times["product_one_call"], times["product_thread_each"]) for times in taken]
    return {
        "rows_per_s": round(rows / best["assign"]),
        "rows_per_s_bfloat16": round(rows / best["assign_bfloat16"]),
        "rows_per_s_scikit_learn": round(rows / best["scikit_learn"]),
        "product_gflops": round(2e-9 * rows * dim * k / min(best["product_one_call"], best["product_thread_each"]), 1),
        "share_of_product": median(p / times["assign"] for p, times in zip(bare, taken, strict=True)),
        "share_of_product_bfloat16": median(p / t["assign_bfloat16"] for p, t in zip(bare, taken, strict=True)),
        "times_scikit_learn": median(times["scikit_learn"] / times["assign"] for times in taken),
        "scikit_learn_kernel": blas_kernels(),
    }


def scikit_learn(vectors: Float32, prototypes: Float32) -> Callable[[], object]:
    """Nearest prototype and distance to it by scikit-learn, on all its threads."""
    from sklearn.cluster import KMeans

    kmeans = KMeans(len(prototypes), init=prototypes, n_init=1, max_iter=1).fit(prototypes)
    kmeans.cluster_centers_ = prototypes

    def work() -> None:
        nearest = prototypes[kmeans.predict(vectors)]
        np.sqrt(np.einsum("ij,ij->i", vectors - nearest, vectors - nearest))

    return work


def median(values: Iterator[float]) -> float:
    """The median, to three digits."""
    return round(statistics.median(values), 3)


def write_shards(folder: Path, *, rows: int, dim: int) -> None:
    """Write the first `rows` rows as shards; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    field = vector_field("vector", dim=dim, model="clustered", digest="0", normalised=True)
    for at in range(-(-rows // SHARD_ROWS)):
        path = folder / f"vectors-{dim}-{at:05}.parquet"
        if not path.exists():
            shard = pa.table([encode(clustered(SHARD_ROWS, dim, seed=at + 2))], schema=pa.schema([field]))
            with open_writer(path.with_suffix(".part"), shard.schema) as writer:
                write_table(writer, shard)
            path.with_suffix(".part").rename(path)


def stream_one(folder: Path, *, rows: int, dim: int, k: int, sample: int) -> dict[str, Any]:
    """Fit on a sample and score `rows` rows from Parquet to Parquet, in this process."""
    paths = sorted(folder.glob(f"vectors-{dim}-*.parquet"))[: -(-rows // SHARD_ROWS)]
    share = -(-sample // len(paths))
    heads = [next(pq.ParquetFile(path).iter_batches(share)).column(0) for path in paths]
    fitting = time.perf_counter()
    prototypes = fit_prototypes(decode(pa.chunked_array(heads))[:sample], k=k, seed=0)
    scoring = time.perf_counter()
    schema = pa.schema({"prototypes": pa.float32(), "cluster": pa.int32()})
    done, spent, shares = 0, 0.0, []
    with (
        Assigner(prototypes) as assigner,
        Product(prototypes.repeat(-(-4096 // k), axis=0), prototypes) as product,
        open_writer(folder / "scores.parquet", schema) as writer,
    ):
        for path in paths:
            begun = time.perf_counter()
            shard = pq.ParquetFile(path).read().slice(0, rows - done)
            cosines, clusters = assigner.assign_bfloat16(codes(shard.column(0)))
            write_table(writer, pa.table([scores_of(cosines), clusters], schema=schema))
            taken = time.perf_counter() - begun
            done, spent = done + len(shard), spent + taken
            shares.append(product.seconds_a_row() * len(shard) / taken)
    return {
        "fit_s": round(scoring - fitting, 2),
        "score_s": round(spent, 2),
        "rows_per_s": round(done / spent),
        "share_of_product_bfloat16": median(iter(shares)),
        "peak_rss_mib": peak_memory() >> 20,
    }


def select_one(folder: Path, *, rows: int, plan: str, groups: int = 1000) -> dict[str, Any]:
    """Select 30 % of `rows` made-up scores and write the selection, in this process."""

    def batches() -> Iterator[ScoreBatch]:
        for start in range(0, rows, SHARD_ROWS):
            rng, count = np.random.default_rng(start), min(SHARD_ROWS, rows - start)
            high = np.arange(start, start + count, dtype=np.uint64) * np.uint64(2**64 // rows)
            yield ScoreBatch(
                ids=np.column_stack([high, rng.integers(0, 2**64, count, dtype=np.uint64)]),
                scores=rng.random(count, dtype=np.float32),
                groups=rng.integers(0, groups, count).astype(np.int32),
            )

    made = seconds(lambda: [len(batch.ids) for batch in batches()])
    begun = time.perf_counter()
    names = [f"group {at}" for at in range(groups)]
    chosen = select(batches, PLANS[plan], Budget(fraction=0.3), seed=0, scratch=folder / "scratch", groups=names)
    with chosen:
        decided = time.perf_counter() - begun
        writer = None
        for part in chosen:
            writer = writer or open_writer(folder / "selection.parquet", part.schema)
            write_table(writer, part)
        if writer:
            writer.close()
    return {
        "kept": chosen.kept,
        "decide_s": round(decided - made, 2),
        "all_s": round(time.perf_counter() - begun - 2 * made, 2),
        "peak_rss_mib": peak_memory() >> 20,
    }


def apart(**options: Any) -> dict[str, Any]:
    """Run one measurement in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.prototypes", "one", "--options", json.dumps(options)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row: dict[str, Any] = json.loads(shown.splitlines()[-1])
    return row


def configs(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """What the command line asks for, one config a measurement."""
    default = {"assign": 32_768, "stream": 500_000, "select": 10_000_000}[asked.what]
    sizes = [{"what": asked.what, "rows": rows} for rows in asked.rows or [default]]
    shape = {"dim": asked.dim, "k": asked.k}
    if asked.what == "assign":
        return [{**size, **shape, "rounds": asked.rounds} for size in sizes]
    if asked.what == "stream":
        return [{**size, **shape, "sample": asked.sample or 64 * asked.k} for size in sizes]
    return [{**size, "plan": plan} for size in sizes for plan in PLANS]


def measure(folder: Path, *, what: str, **config: Any) -> dict[str, Any]:
    """Measure one config; all but the alternating comparison in a process of its own."""
    if what == "assign":
        return assign(**config)
    if what == "stream":
        write_shards(folder, rows=config["rows"], dim=config["dim"])
    return apart(run=what, folder=str(folder), **config)


def main() -> None:
    """Measure what the command line asks for and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["assign", "stream", "select", "one"])
    parser.add_argument("--rows", type=int, nargs="+", help="rows of each run; default 32768, 500000, 10000000")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=41, help="alternations of assign")
    parser.add_argument("--sample", type=int, help="rows that stream fits on; default 64 a prototype")
    parser.add_argument(
        "--folder", type=Path, help="where shards are written and found again; default: a temporary one"
    )
    parser.add_argument("--options", type=json.loads, default={}, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.what == "one":
        options = asked.options
        name, folder = options.pop("run"), Path(options.pop("folder"))
        print(json.dumps(stream_one(folder, **options) if name == "stream" else select_one(folder, **options)))
        return
    with_the_processors_own_blas()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        for config in configs(asked):
            if not finished("prototypes", config):
                record("prototypes", measure(folder, **config), config)
    print(table("prototypes"))


if __name__ == "__main__":
    main()
