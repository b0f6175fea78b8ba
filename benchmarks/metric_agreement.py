"""How far the metrics agree: Spearman's rank correlation of every pair, over the rows that both score.

    python -m benchmarks.metric_agreement NAME=FILE ... [--label-column label] [--metrics aum,el2n,...]

FILE is a labelled set with a column `text`; it is embedded by the default model, and every metric is computed as a run
computes it. A metric that is not built yet is left out. Prints the table; the rows go to results/metric_agreement.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import common
from datapipe.curation import Curation
from datapipe.metrics.base import METRICS
from datapipe.stages.scoring import family_of
from datapipe.storage.digest import digest_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAME = "metric_agreement"


def main() -> None:
    """Measure the sets named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", help="NAME=FILE")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--metrics", help="Names, separated by commas; default all that are built.")
    options = parser.parse_args()
    wanted = options.metrics.split(",") if options.metrics else _built()
    for each in options.sets:
        name, _, path = each.partition("=")
        scores, seconds = _scores(Path(path), wanted, options.label_column)
        agreement = {a: {b: round(spearman(scores[a], scores[b]), 3) for b in scores} for a in scores}
        config = {"dataset": name, "metrics": list(scores), "file": digest_of(Path(path).name)}
        common.record(
            NAME, {"rows": len(next(iter(scores.values()))), "spearman": agreement, "seconds": seconds}, config
        )
        print(_table(name, agreement))


def spearman(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Pearson's correlation of mean ranks, over the rows where both are numbers; NaN where one is constant."""
    from scipy.stats import rankdata

    both = np.isfinite(first) & np.isfinite(second)
    ranks = [rankdata(values[both]) for values in (first, second)]
    if min(np.ptp(each) for each in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _built() -> list[str]:
    names = []
    for metric in METRICS:
        if metric.name in {"imported", "random"}:
            continue
        try:
            family_of(metric.name)
        except ModuleNotFoundError:
            continue
        names.append(metric.name)
    return names


def _scores(path: Path, metrics: list[str], label: str) -> tuple[dict[str, NDArray[np.float32]], dict[str, float]]:
    scores, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for metric in metrics:
            run = Curation(str(path), out=folder, metric=metric, text_column="text", label_column=label)  # type: ignore[arg-type]
            run.outputs(until="embed") if not scores else None
            begun = time.perf_counter()
            tables = run.outputs(until="score")["score"].tables(columns=[metric])
            scores[metric] = np.concatenate([table[metric].to_numpy() for table in tables])
            seconds[metric] = round(time.perf_counter() - begun, 1)
    return scores, seconds


def _table(name: str, agreement: dict[str, dict[str, float]]) -> str:
    lines = [f"| {name} | " + " | ".join(agreement) + " |", "|---" * (len(agreement) + 1) + "|"]
    lines += [f"| {a} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |" for a, row in agreement.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
