"""The weight of a teacher by kept fraction and label noise, on text with a frozen encoder.

    random rows x weights -> validation rows -> fit_alpha -> datapipe/distill/alpha.json
    noisy labels: random and hardest rows, alone and with the fitted weight -> test rows, once -> kd_text_noise.json

Run: python -m benchmarks.kd_text_alpha sweep|noise|fit|print FILE.parquet... Students, teachers and cuts are those of
`kd_text`; what a teacher says of a row comes from heads that did not learn it. Noise replaces that share of the labels
learnt from, of student, teacher and scores alike, by other classes; validation and test labels stay as they are.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import common
from benchmarks.kd_plans import ALPHAS
from benchmarks.kd_tables import fit_alpha
from benchmarks.kd_text import FRACTIONS, TextSet
from benchmarks.kd_text_sweeps import Sweep, measure
from datapipe.distill.alpha import CURVES, read_curves, recommended_alpha
from datapipe.proof.heads import HeadRecipe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.kd_text import Part

NAME, NOISY = "kd_text_alpha", "kd_text_noise"
SEEDS, TEMPERATURE, KIND = 5, 2.0, "out_of_fold"
NOISES, NOISY_FRACTIONS = (0.2, 0.4), (0.1, 0.5)
METHODS = ("random", "el2n")
TITLES = {"trec6": "TREC", "banking77": "BANKING77"}


def main() -> None:
    """Measure what is missing, fit, or print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["sweep", "noise", "fit", "print"])
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    if options.what == "sweep":
        for file in options.files:
            part = TextSet(file, None, ["minilm"]).part("validation")
            for noise in (0.0, *NOISES):
                fractions = NOISY_FRACTIONS if noise else FRACTIONS
                sweeps = [Sweep("random", each, KIND, TEMPERATURE, ALPHAS) for each in fractions]
                _measure(NAME, file, part, noise, sweeps)
    elif options.what == "noise":
        for file in options.files:
            part = TextSet(file, None, ["minilm"]).part("test")
            for noise in NOISES:
                _measure(NOISY, file, part, noise, list(_compared(part.classes, noise)))
    elif options.what == "fit":
        fit()
    for name in (NAME, NOISY):
        print(common.table(name), end="\n\n")


def _measure(name: str, file: Path, part: Part, noise: float, sweeps: list[Sweep]) -> None:
    about = {"dataset": file.stem, "noise": noise}
    own = replace(part, labels=noisy(part, noise)) if noise else part
    measure(name, own, about, sweeps, seeds=SEEDS, recipe=HeadRecipe())


def noisy(part: Part, noise: float) -> Any:
    """Labels of which that share are of another class, drawn evenly, int64 (rows,)."""
    draws = np.random.Generator(np.random.Philox(key=[9, round(100 * noise)]))
    wrong = draws.permutation(len(part.labels))[: round(noise * len(part.labels))]
    labels = part.labels.copy()
    labels[wrong] = (labels[wrong] + draws.integers(1, part.classes, size=len(wrong))) % part.classes
    return labels


def _compared(classes: int, noise: float) -> Iterable[Sweep]:
    for fraction in NOISY_FRACTIONS:
        found = recommended_alpha(fraction, classes=classes, noise=noise, curves=read_curves(CURVES))
        for method in METHODS:
            yield Sweep(method, fraction, KIND, TEMPERATURE, (0.0, round(found.value, 4)))


def fit() -> None:
    """Write the curves of the package anew: one a set and noise."""
    curves = []
    rows = common.rows(NAME)
    for dataset, noise in sorted({(row["dataset"], row["noise"]) for row in rows}, key=lambda at: (at[1], at[0])):
        own = [row for row in rows if (row["dataset"], row["noise"]) == (dataset, noise)]
        rests = (
            f"{TITLES[dataset]}{f' with {noise:.0%} of wrong labels' if noise else ''}: random rows, a linear head on "
            f"frozen text vectors, a teacher of the same vectors that has not seen the row it judges, temperature "
            f"{TEMPERATURE:g}; {SEEDS} seeds at each of {len(ALPHAS)} weights, validation rows; the best that never "
            "rises with the fraction, and the ends are the weights that 95% intervals do not tell from the best"
        )
        classes = own[0]["classes"]
        points = falling(own, fit_alpha(_long(own)))
        curves.append({"fitted": True, "rests_on": rests, "classes": classes, "noise": noise, "points": points})
    CURVES.write_text(json.dumps({"curves": curves}, indent=1) + "\n", encoding="utf-8")
    print(CURVES.read_text(encoding="utf-8"))


def falling(rows: list[dict[str, Any]], ends: dict[str, list[float]]) -> dict[str, list[float]]:
    """Of all weights that never rise with the fraction those of the greatest mean accuracy over the fractions.

    Args:
        rows: Of one set and noise.
        ends: By fraction, what `fit_alpha` found of it alone; its interval is kept, and holds the weight.
    """
    found = {row["fraction"]: np.mean(row["accuracies"], axis=1) for row in rows}
    fractions = sorted(found)
    paths = combinations_with_replacement(range(len(ALPHAS) - 1, -1, -1), len(fractions))
    best = max(paths, key=lambda path: sum(found[each][at] for each, at in zip(fractions, path, strict=True)))
    points = {}
    for fraction, at in zip(fractions, best, strict=True):
        _, low, high = ends[str(fraction)]
        points[str(fraction)] = [ALPHAS[at], min(low, ALPHAS[at]), max(high, ALPHAS[at])]
    return points


def _long(rows: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """A row a training."""
    for row in rows:
        for alpha, values in zip(row["alphas"], row["accuracies"], strict=True):
            yield from ({"fraction": row["fraction"], "alpha": alpha, "accuracy": value} for value in values)


if __name__ == "__main__":
    main()
