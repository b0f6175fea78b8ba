"""Where the threshold of drift lies: halves of one text set against rows of another.

    python -m benchmarks.drift -> benchmarks/results/drift.json

Centroids are fitted to half of a set (banking77, dolly, questions of SQuAD 2.0; 2,000 rows each). `rise` is the new
rows' mean error against the fitted rows', each of those without itself in its centroid; `rise_in_sample` against their
errors as they are, which is what the closed form corrects.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from benchmarks.common import record
from datapipe.embedding.text import embed_texts
from datapipe.metrics.drift import ErrorSums, Pulls, drift_of
from datapipe.metrics.prototypes import default_k, fit_prototypes, prototype_scores
from datapipe.stages.embedder import Embedder

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32

DATA = Path(__file__).parent.parent / "data"
SETS = {"banking77": "text", "dolly_3k": "instruction", "squad20_dev": "question"}
ROWS = 2000


def embedded(name: str) -> Float32:
    """Unit vectors of distinct texts of a set, in a random order."""
    texts = pl.read_parquet(DATA / f"{name}.parquet")[SETS[name]].drop_nulls().unique(maintain_order=True)
    model = Embedder("default", device="cpu")
    return embed_texts(model.worker(), texts.sample(ROWS, seed=0, shuffle=True).to_list(), model=model.name)[0]


def compared(before: Float32, after: Float32, *, k: int) -> dict[str, float | bool | None]:
    """Rise of the error from the rows fitted to, to rows that came after."""
    centroids = fit_prototypes(before, k=k, seed=0)
    errors, clusters = prototype_scores(before, centroids)
    pulls = Pulls()
    pulls.add(errors, clusters)
    new = ErrorSums().plus(prototype_scores(after, centroids)[0])
    drift = drift_of(ErrorSums().plus(pulls.without_self(errors, clusters)), new)
    in_sample = drift_of(ErrorSums().plus(errors), new).rise
    return {
        "rise": drift.rise,
        "low": drift.low,
        "high": drift.high,
        "refit": drift.refit,
        "rise_in_sample": in_sample,
    }


def main() -> None:
    """Measure and record."""
    sets = {name: embedded(name) for name in SETS}
    half = ROWS // 2
    for name, rows in sets.items():
        other = next(each for each in sets if each != name)
        mixed = np.concatenate([rows[half : half + 320], sets[other][:80]])
        cases = {name: rows[half:], f"{name} and 20 % {other}": mixed}
        cases |= {each: found[:400] for each, found in sets.items() if each != name}
        for k in (16, default_k(half), 200):
            for told, after in cases.items():
                config = {"fitted": name, "fitted_rows": half, "k": k, "new": told, "new_rows": len(after)}
                record("drift", compared(rows[:half], after, k=k), config)


if __name__ == "__main__":
    main()
