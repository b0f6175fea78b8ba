"""Further attempts at random rows with a teacher on half of the rows, where `kd_text` misses its aim on BANKING77.

    kinds of soft labels, temperatures, weights -> validation rows -> the best of each attempt -> test rows, once

Run: python -m benchmarks.kd_text_attempts validate|test|print FILE.parquet... An attempt is a group of kinds; its
setting is chosen by the mean gain over labels alone over all sets, as in `kd_text`. `reference` rows are every method's
with labels alone on the validation rows; those on test rows are of `kd_text`. Losers stay in the results.
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
    print(common.table(NAME))
    for row in verdicts():
        print(row)


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
    """Of each attempt and set: its mean on test rows against the best method with labels alone."""
    plain: dict[tuple[str, str], list[float]] = {}
    for row in common.rows("kd_text"):
        if row["split"] == "test" and row["teacher"] == "none" and row["fraction"] == FRACTION:
            plain.setdefault((row["dataset"], row["method"]), []).append(row["accuracy"])
    found = []
    for row in common.rows(NAME):
        if row["split"] == "test":
            rivals = {method: float(np.mean(own)) for (name, method), own in plain.items() if name == row["dataset"]}
            best = max(rivals, key=lambda method: rivals[method])
            mean = interval(row["accuracies"][0])
            told = {key: row[key] for key in ("dataset", "teacher", "temperature", "alphas")}
            told |= {"accuracy": round(mean.mean, 2), "half_width": round(mean.high - mean.mean, 2)}
            found.append(
                {**told, "best_without": f"{best} {rivals[best]:.2f}", "gap": round(mean.mean - rivals[best], 2)}
            )
    return found


if __name__ == "__main__":
    main()
