"""The default pruner in int8 by onnxruntime, without torch, against torch: speed on the CPU, and unlike decisions.

    python -m benchmarks.provence_onnx [--model default] [--documents 400] [--rounds 3]
    python -m benchmarks.provence_onnx --table

Documents are contexts of SQuAD with a question each, of the test split. Ways take turns, round by round; a figure is
the best round's. `cpu_ms_a_document` is the time of all threads, which other work on the machine disturbs least. A
decision is unlike if a sentence is kept by one way and cut by float32; `beyond_margin` counts those whose probability
in float32 is more than 0.01 from the threshold.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import ROOT, Row, record, table
from provence import Pruner

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "provence_onnx"
MARGIN = 0.01
WAYS: dict[str, dict[str, Any]] = {
    "onnx int8": {"backend": "onnx"},
    "torch bfloat16": {"device": "cpu", "dtype": "bfloat16"},
    "torch float32": {"device": "cpu", "dtype": "float32"},
}
COLUMNS = [
    *("model", "way", "documents", "documents_per_s", "cpu_ms_a_document", "load_s"),
    *("sentences", "unlike", "beyond_margin", "mean_difference", "largest_difference", "score_correlation"),
]


def documents(number: int) -> list[tuple[str, list[str]]]:
    """Questions with a context each, in a seeded order."""
    rows = pq.read_table(ROOT / "data" / "squad20_dev.parquet", columns=["split", "question", "context"]).to_pylist()
    rows = [row for row in rows if row["split"] == "test"]
    order = np.random.default_rng(0).permutation(len(rows))[:number]
    return [(rows[index]["question"], [rows[index]["context"]]) for index in order]


def measure(model: str, *, number: int, rounds: int) -> list[Row]:
    """Run all ways and compare each with float32."""
    pairs = documents(number)
    pruners, loads, best, found = {}, {}, {}, {}
    for way, options in WAYS.items():
        begun = time.perf_counter()
        pruners[way] = Pruner.load(model, **options)
        loads[way] = time.perf_counter() - begun
        pruners[way].scores_batch(pairs[:50])
    for _ in range(rounds):
        for way, pruner in pruners.items():
            begun, cpu = time.perf_counter(), time.process_time()
            found[way] = [scores for (scores,) in pruner.scores_batch(pairs)]
            spent = (time.perf_counter() - begun, time.process_time() - cpu)
            best[way] = tuple(map(min, best.get(way, spent), spent))
    rows = []
    for way in WAYS:
        config = {"what": "without torch", "model": model, "way": way, "documents": number, "rounds": rounds}
        row = {
            "documents_per_s": round(number / best[way][0], 1),
            "cpu_ms_a_document": round(1000 * best[way][1] / number, 2),
            "load_s": round(loads[way], 2),
            **compared(found[way], found["torch float32"]),
        }
        rows.append(record(NAME, row, config))
    return rows


def compared(found: Sequence[Any], expected: Sequence[Any]) -> Row:
    """Differences between two ways' scores of the same documents."""
    mine = np.concatenate([scores.probabilities for scores in found])
    theirs = np.concatenate([scores.probabilities for scores in expected])
    threshold = expected[0].threshold
    unlike = (mine > threshold) != (theirs > threshold)
    scores = np.array([[a.score, b.score] for a, b in zip(found, expected, strict=True)])
    return {
        "threshold": threshold,
        "sentences": len(mine),
        "unlike": int(unlike.sum()),
        "beyond_margin": int((unlike & (np.abs(theirs - threshold) > MARGIN)).sum()),
        "mean_difference": round(float(np.abs(mine - theirs).mean()), 5),
        "largest_difference": round(float(np.abs(mine - theirs).max()), 4),
        "score_correlation": round(float(np.corrcoef(scores.T)[0, 1]), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print what was measured, measure nothing")
    options = parser.parse_args()
    if not options.table:
        measure(options.model, number=options.documents, rounds=options.rounds)
    print(table(NAME, COLUMNS))


if __name__ == "__main__":
    main()
