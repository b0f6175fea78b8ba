"""What it costs to add 1 % of rows to a finished run, against the same rows in a run of their own.

    python -m benchmarks.update [--texts] [--rows 200000] -> benchmarks/results/update.json

Vectors around 400 centres, dim 384, given in the source: no stage costs a model, so this is the least that an update
saves. With `--texts` rows of banking77 are embedded. The page costs the same in every run and stands apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import datapipe
from benchmarks.common import record

DATA = Path(__file__).parent.parent / "data"
DIM, CENTRES = 384, 400


def vectors(rows: int, *, seed: int) -> pl.DataFrame:
    """Rows of vectors around the same centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(CENTRES, DIM)).astype(np.float32)
    found = centres[rng.integers(0, CENTRES, rows)] + rng.standard_normal((rows, DIM), np.float32)
    texts = [f"row {i} of {seed}" for i in range(rows)]
    return pl.DataFrame({"text": texts, "vector": found}, schema_overrides={"vector": pl.Array(pl.Float32, DIM)})


def measured(files: list[Path], out: Path, **options: Any) -> dict[str, Any]:
    """Seconds of a run: in all, of the page, and by stage."""
    begun = time.perf_counter()
    result = datapipe.curate([str(file) for file in files], out=out, **options)
    seconds = time.perf_counter() - begun
    stages = {timing.stage: round(timing.seconds, 3) for timing in result.timings}
    told = {name: result.update[name] for name in ("drift", "refit", "changes")} if result.update is not None else {}
    return {"seconds": round(seconds - stages["report"], 2), "report": stages["report"], "stages": stages, **told}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--texts", action="store_true")
    asked = parser.parse_args()
    few = max(asked.rows // 100, 1)
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder) / "old.parquet", Path(folder) / "new.parquet"
        options: dict[str, Any] = {"text_column": "text"}
        if asked.texts:
            frame = pl.read_parquet(DATA / "banking77.parquet").select("text").head(asked.rows + few)
            frame.slice(few).write_parquet(old)
            frame.head(few).write_parquet(new)
        else:
            options["embedding_column"] = "vector"
            vectors(asked.rows, seed=1).write_parquet(old)
            vectors(few, seed=2).write_parquet(new)
        run, anew = Path(folder) / "run", Path(folder) / "anew"
        cases: list[tuple[str, list[Path], Path, bool]] = [
            ("full", [old], run, False),
            ("update", [new], run, True),
            ("all rows in a run of their own", [old, new], anew, False),
        ]
        source = "banking77" if asked.texts else "vectors"
        for case, files, out, update in cases:
            config = {"case": case, "source": source, "rows": asked.rows, "new": few}
            record("update", measured(files, out, update=update, **options), config)


if __name__ == "__main__":
    main()
