"""Ingest and score vectors that the source brings: rows a second and peak memory, each size in a process of its own.

Random clustered float32 vectors, d = 384, in Parquet files of 250,000 rows; prototypes k = sqrt(rows); local executor.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import peak_memory, record, table

DIM = 384
FILE_ROWS = 250_000
CENTRES = 512


def make_source(folder: Path, rows: int, *, seed: int) -> None:
    """Write clustered vectors as fixed-size lists of float32."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((CENTRES, DIM)).astype(np.float32)
    for start in range(0, rows, FILE_ROWS):
        n = min(FILE_ROWS, rows - start)
        vectors = generator.standard_normal((n, DIM), dtype=np.float32)
        vectors += centres[generator.integers(0, CENTRES, n)]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM)
        options = {"compression": "none", "use_dictionary": False, "row_group_size": 32_768}
        pq.write_table(pa.table({"vector": column}), folder / f"part-{start:09d}.parquet", **options)


def measure(source: str, out: str) -> None:
    """Curate in this process and print its timings and peak memory."""
    import datapipe

    result = datapipe.curate(source, out=out, keep=0.3, embedding_column="vector")
    peak = peak_memory()
    print(json.dumps({"timings": [vars(timing) for timing in result.timings], "peak_rss": peak}))


def main() -> None:
    """Make the source, run, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[500_000, 5_000_000])
    parser.add_argument("--measure", nargs=2, metavar=("SOURCE", "OUT"))
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    for rows in arguments.rows:
        folder = Path(tempfile.mkdtemp(dir=arguments.scratch))
        try:
            (folder / "in").mkdir()
            make_source(folder / "in", rows, seed=0)
            command = [
                sys.executable,
                "-m",
                "benchmarks.ingest_memory",
                "--measure",
                str(folder / "in"),
                str(folder / "run"),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            told = json.loads(done.stdout.splitlines()[-1])
            seconds = {timing["stage"]: round(timing["seconds"], 1) for timing in told["timings"]}
            row = {
                "rows": rows,
                "dim": DIM,
                **{f"{stage}_s": value for stage, value in seconds.items()},
                "total_s": round(sum(seconds.values()), 1),
                "rows_per_s": round(rows / sum(seconds.values())),
                "peak_rss_MB": round(told["peak_rss"] / 1e6),
            }
            record("ingest_memory", row, {"rows": rows, "dim": DIM, "seed": 0})
        finally:
            shutil.rmtree(folder)
    print(table("ingest_memory"))


if __name__ == "__main__":
    main()
