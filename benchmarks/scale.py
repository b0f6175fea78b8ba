"""A whole curation over vectors that a Parquet source brings: seconds a stage, rows a second, peak memory, bytes.

    python -m benchmarks.scale --rows 1000000 3000000 10000000 --folder /somewhere/with/40/GB

    real vectors, come round again with noise (benchmarks/vectors.py) -> part-*.parquet (bfloat16, batch by batch)
    -> datapipe curate --metric prototypes --keep 0.3, in a process of its own -> a row of results/scale.json

Files of the source are made where they are not in the folder yet, so that sizes share them; the run is taken away.
Nothing is embedded: what is measured is all the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from benchmarks.common import Row, peak_memory, record, table
from benchmarks.vectors import Rows, embedded
from datapipe.storage.parquet import open_writer, write_table
from datapipe.storage.vectors import encode, vector_field

if TYPE_CHECKING:
    from datapipe.config import CurateOptions, MetricName

FILE_ROWS = 1_000_000
BATCH_ROWS = 65_536
KEEP = 0.3


def make_source(rows: Rows, folder: Path, count: int) -> list[Path]:
    """The files of the first `count` rows, each row with its number; those that are there stay."""
    field = vector_field("vector", dim=rows.dim, model="all-MiniLM-L6-v2", digest="", normalised=True)
    schema = pa.schema([pa.field("number", pa.int64()), field])
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for first in range(0, count, FILE_ROWS):
        end = min(first + FILE_ROWS, count)
        files.append(folder / f"rows-{first:011d}-{end:011d}.parquet")
        if files[-1].exists():
            continue
        with open_writer(files[-1].with_suffix(".part"), schema) as writer:
            for start in range(first, end, BATCH_ROWS):
                stop = min(start + BATCH_ROWS, end)
                columns = [pa.array(range(start, stop), pa.int64()), encode(rows.vectors(start, stop))]
                write_table(writer, pa.table(columns, schema=schema))
        files[-1].with_suffix(".part").rename(files[-1])
    return files


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def curate(out: str, files: list[str], metric: MetricName, prototypes: int | None) -> None:
    """Curate in this process and print its timings and peak memory."""
    import datapipe

    options: CurateOptions = {"keep": KEEP, "metric": metric, "embedding_column": "vector", "prototypes": prototypes}
    result = datapipe.curate(files, out=out, **options)
    cpu = round(time.process_time(), 1)
    told = {timing.stage: round(timing.seconds, 1) for timing in result.timings}
    print(json.dumps({"stages": told, "kept": result.counts["kept"], "peak_rss": peak_memory(), "cpu": cpu}))


def measure(files: list[Path], out: Path, count: int, *, options: list[str]) -> Row:
    """Curate the files in a process of its own, say what it took, and take the run away."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.scale", *options, "--curate", str(out), *map(str, files)]
    load = os.getloadavg()[0]
    begun = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - begun
    told = json.loads(done.stdout.splitlines()[-1])
    row = {
        "seconds": round(seconds, 1),
        "cpu_s": told["cpu"],
        "rows_per_s": round(count / seconds),
        "kept": told["kept"],
        **{f"{stage}_s": taken for stage, taken in told["stages"].items()},
        "peak_rss_MB": round(told["peak_rss"] / 1e6),
        "source_GB": round(sum(path.stat().st_size for path in files) / 1e9, 2),
        "run_GB": round(size_of(out) / 1e9, 2),
        "load_before": round(load, 1),
    }
    shutil.rmtree(out)
    return row


def main() -> None:
    """Measure every size that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--metric", default="prototypes")
    parser.add_argument("--prototypes", type=int, help="default: the root of the rows")
    parser.add_argument("--texts", type=Path, help="Parquet file with a column text; default: the texts of data/")
    parser.add_argument("--vectors", type=Path, help=".npy where their vectors are kept; default: beside the source")
    parser.add_argument("--folder", type=Path, help="where source and run lie; 3.5 kB a row are free there")
    parser.add_argument("--make-only", action="store_true", help="make the source and measure nothing")
    parser.add_argument("--curate", nargs="+", metavar=("OUT", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.curate:
        curate(asked.curate[0], asked.curate[1:], asked.metric, asked.prototypes)
        return
    options = ["--metric", asked.metric, *(["--prototypes", str(asked.prototypes)] if asked.prototypes else [])]
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        real = embedded(asked.texts, asked.vectors or folder / "real.npy")
        for count in asked.rows:
            files = make_source(Rows(real), folder / "source", count)
            if not asked.make_only:
                config = {"rows": count, "dim": real.shape[1], "metric": asked.metric, "real_rows": len(real)}
                config["prototypes"] = asked.prototypes or "root of rows"
                print(record("scale", measure(files, folder / "run", count, options=options), config), flush=True)
    print(table("scale"))


if __name__ == "__main__":
    main()
