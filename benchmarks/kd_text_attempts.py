"""Further attempts at random rows with a teacher on half of the rows, where `kd_text` misses its aim on BANKING77.

    kinds of soft labels, temperatures, weights -> validation rows -> the best of each attempt -> test rows, once

Run: python -m benchmarks.kd_text_attempts validate|test|print FILE.parquet... An attempt is a group of kinds; its
setting is chosen by the mean over all sets, as in `kd_text`. Rows of the teacher `none` are every method's with labels
alone on validation rows; those on test rows are of `kd_text`. Losers stay in the results.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import common
from benchmarks.kd_text import METHODS, TEST_SEEDS, VALIDATION_SEEDS, TextSet
from benchmarks.kd_text_sweeps import Sweep, measure
from datapipe.proof.heads import HeadRecipe
from datapipe.proof.statistics import interval

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "kd_text_attempts"
FRACTION = 0.5
ALPHAS, TEMPERATURES = (0.25, 0.5, 0.75, 1.0), (1.0, 2.0, 4.0)
ATTEMPTS = {
    "wider": ("out_of_fold",),
    "other_teachers": ("fit_included", "both", "many_heads"),
    "corrected": ("corrected",),
}
"""Smaller weights and more temperatures; other teachers; a teacher put right where it contradicts the label."""
Row = dict[str, Any]


def main() -> None:
    """Measure what is missing, or print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["validate", "test", "print"])
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    for file in options.files:
        if options.what != "print":
            split = "validation" if options.what == "validate" else "test"
            seeds = VALIDATION_SEEDS if split == "validation" else TEST_SEEDS
            part = TextSet(file, None, ["minilm"]).part(split)
            sweeps = list(_trials() if split == "validation" else _chosen())
            measure(NAME, part, {"dataset": file.stem}, sweeps, seeds=seeds, recipe=HeadRecipe())
    common.write_rows(f"{NAME}_verdicts", verdicts())
    print(common.table(NAME), common.table(f"{NAME}_verdicts"), sep="\n\n")


def _trials() -> Iterable[Sweep]:
    for method in METHODS:
        yield Sweep(method, FRACTION, "none", 1.0, (0.0,))
    for kinds in ATTEMPTS.values():
        for kind in kinds:
            for temperature in TEMPERATURES:
                yield Sweep("random", FRACTION, kind, temperature, ALPHAS)


def _chosen() -> Iterable[Sweep]:
    for attempt in ATTEMPTS:
        kind, temperature, alpha = choice(attempt)
        yield Sweep("random", FRACTION, kind, temperature, (alpha,))


def choice(attempt: str) -> tuple[str, float, float]:
    """Kind, temperature and weight of the greatest mean validation accuracy over the sets; ties to the first."""
    found: dict[tuple[str, float, float], list[float]] = {}
    for row in common.rows(NAME):
        if row["split"] == "validation" and row["teacher"] in ATTEMPTS[attempt]:
            for alpha in row["alphas"]:
                found.setdefault((row["teacher"], row["temperature"], alpha), []).append(row[f"alpha_{100 * alpha:g}"])
    return max(found, key=lambda at: float(np.mean(found[at])))


def verdicts() -> list[Row]:
    """Of each set and attempt: the chosen setting, its mean on both splits, and the best method with labels alone."""
    rows = common.rows(NAME)
    found = []
    for dataset in sorted({row["dataset"] for row in rows}):
        own = [row for row in rows if row["dataset"] == dataset]
        rival, best = _best_without(dataset)
        for attempt in ATTEMPTS:
            kind, temperature, alpha = choice(attempt)
            about = {"teacher": kind, "temperature": temperature}
            at = f"alpha_{100 * alpha:g}"
            cells = [row for row in own if at in row and about.items() <= row.items()]
            by_split = {row["split"]: row for row in cells}
            told = {"dataset": dataset, "attempt": attempt, **about, "alpha": alpha}
            told["validation"] = by_split["validation"][at] if "validation" in by_split else None
            if "test" in by_split:
                mean = interval(by_split["test"]["accuracies"][0])
                told["test"] = f"{mean.mean:.2f} ± {mean.high - mean.mean:.2f}"
                told |= {"best_without": f"{rival} {best:.2f}", "gap": round(mean.mean - best, 2)}
            found.append(told)
    return found


def _best_without(dataset: str) -> tuple[str, float]:
    """The method with the greatest mean test accuracy with labels alone, and that accuracy."""
    plain: dict[str, list[float]] = {}
    for row in common.rows("kd_text"):
        about = (row["dataset"], row["split"], row["teacher"], row["fraction"])
        if about == (dataset, "test", "none", FRACTION):
            plain.setdefault(row["method"], []).append(row["accuracy"])
    means = {method: float(np.mean(values)) for method, values in plain.items()}
    best = max(means, key=lambda method: means[method])
    return best, means[best]


if __name__ == "__main__":
    main()
