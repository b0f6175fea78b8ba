"""Select and export at ten million rows: seconds and peak memory of one curation with random scores."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import peak_memory, record, table

CLASSES = 100
FILE_ROWS = 1_000_000


def make_source(folder: Path, rows: int, *, seed: int) -> None:
    """Write short texts with a label and a number."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = np.random.default_rng(seed)
    for start in range(0, rows, FILE_ROWS):
        n = min(FILE_ROWS, rows - start)
        text = pa.array(np.char.add("row ", np.arange(start, start + n).astype(str)))
        label = pa.array(np.char.add("class ", generator.integers(0, CLASSES, n).astype(str)))
        columns = {"text": text, "label": label, "number": pa.array(generator.integers(0, 1 << 40, n))}
        pq.write_table(pa.table(columns), folder / f"part-{start:09d}.parquet")


def measure(source: str, out: str, strategy: str) -> None:
    """Curate in this process and print its timings and peak memory."""
    import datapipe

    options = {"label_column": "label"} if strategy == "auto" else {}
    result = datapipe.curate(
        source, out=out, keep=0.3, metric="random", strategy=strategy, text_column="text", **options
    )
    peak = peak_memory()
    print(json.dumps({"timings": [vars(timing) for timing in result.timings], "peak_rss": peak}))


def main() -> None:
    """Make the source, run, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--measure", nargs=3, metavar=("SOURCE", "OUT", "STRATEGY"))
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.scratch))
    try:
        (folder / "in").mkdir()
        make_source(folder / "in", arguments.rows, seed=0)
        for strategy in ("random", "auto"):
            command = [sys.executable, "-m", "benchmarks.select_export", "--measure", str(folder / "in")]
            done = subprocess.run(
                [*command, str(folder / strategy), strategy], check=True, capture_output=True, text=True
            )
            told = json.loads(done.stdout.splitlines()[-1])
            row = {
                "rows": arguments.rows,
                "strategy": "random" if strategy == "random" else f"random within {CLASSES} classes",
                **{f"{timing['stage']}_s": round(timing["seconds"], 1) for timing in told["timings"]},
                "peak_rss_MB": round(told["peak_rss"] / 1e6),
            }
            record("select_export", row, {"rows": arguments.rows, "strategy": strategy, "seed": 0})
            shutil.rmtree(folder / strategy)
    finally:
        shutil.rmtree(folder)
    print(table("select_export"))


if __name__ == "__main__":
    main()
