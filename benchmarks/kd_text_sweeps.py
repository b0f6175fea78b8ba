"""Weights of a teacher swept over one choice of rows: what the further benchmarks with frozen encoders share.

    Part of kd_text, Sweeps (method, fraction, kind of soft labels, temperature, weights) -> measure -> a row a sweep

A row holds the mean accuracy at each weight (`alpha_75` is that of 0.75), and the accuracies of all seeds. All students
are those of kd_text: linear heads on MiniLM vectors, equal steps. Kinds of soft labels, each a teacher that learnt all
training rows of its part:

| kind | what it says of a row |
|---|---|
| `out_of_fold` | heads that did not learn that row, as in kd_text |
| `corrected` | the same, but where label and first choice differ they exchange probabilities |
| `fit_included` | heads that learnt it |
| `both` | the mean of the two's log-probabilities |
| `many_heads` | as `out_of_fold`, the mean of ten heads and not three |

The exchange is the probability shift of Wen et al. 2019 (arXiv 1911.07471).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import common
from benchmarks.kd_text_heads import TEACHER_HEADS, Lane, teach, train_students

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.kd_text import Part
    from datapipe.proof.heads import HeadRecipe
    from datapipe.storage.arrays import Float32, Float64, Int64

MANY_HEADS = 10
_LEAST = 1e-12


@dataclass(frozen=True)
class Sweep:
    """Trainings that differ in the weight of the teacher, and seeds.

    Attributes:
        method: How rows are kept.
        fraction: Of the training rows.
        kind: Of soft labels; see above.
        temperature: Of both distributions.
        alphas: Weights of the soft labels; 0 is labels alone.
    """

    method: str
    fraction: float
    kind: str
    temperature: float
    alphas: tuple[float, ...]


def measure(
    name: str, part: Part, about: dict[str, Any], sweeps: Iterable[Sweep], *, seeds: int, recipe: HeadRecipe
) -> None:
    """Record every sweep of which there is no row yet.

    Args:
        name: Of the results.
        part: Rows learnt from and asked.
        about: What else decides a row: set, noise.
        sweeps: What to measure.
        seeds: Trainings at each weight.
        recipe: Of the students.
    """
    missing: dict[str, list[Sweep]] = {}
    for sweep in sweeps:
        if not common.finished(name, _config(part, about, sweep, seeds, recipe)):
            missing.setdefault(sweep.kind, []).append(sweep)
    for kind, own in missing.items():
        soft = np.zeros((len(part.labels), part.classes), np.float32) if kind == "none" else taught(part, kind)
        lanes = [_lanes(part, sweep, seeds) for sweep in own]
        together = [lane for each in lanes for lane in each]
        vectors, asked = part.vectors["minilm"], part.asked["minilm"]
        found = train_students(vectors, part.labels, soft, together, asked, recipe=recipe)
        accuracies = 100 * (found == part.truth).mean(axis=1)
        ends = np.cumsum([len(each) for each in lanes])[:-1]
        for sweep, values in zip(own, np.split(accuracies, ends), strict=True):
            row = _row(sweep, values.reshape(len(sweep.alphas), seeds))
            common.record(name, row, _config(part, about, sweep, seeds, recipe))


def taught(part: Part, kind: str) -> Float32:
    """Log-probabilities of a kind of soft labels, float32 (rows, classes)."""
    if kind == "fit_included":
        return _heads(part, fit_included=True)
    if kind == "many_heads":
        return _heads(part, heads=MANY_HEADS)
    found = _heads(part)
    if kind == "both":
        return _normalised((found.astype(np.float64) + _heads(part, fit_included=True)) / 2)
    return corrected(found, part.labels) if kind == "corrected" else found


@lru_cache(maxsize=3)
def _heads(part: Part, *, fit_included: bool = False, heads: int = TEACHER_HEADS) -> Float32:
    vectors, labels = part.vectors["minilm"], part.labels
    return teach(vectors, labels, classes=part.classes, fit_included=fit_included, heads=heads)


def corrected(log_probabilities: Float32, labels: Int64) -> Float32:
    """Exchange the probabilities of the label and of the first choice, float32 (rows, classes)."""
    found, rows = log_probabilities.copy(), np.arange(len(labels))
    first = found.argmax(axis=1)
    found[rows, labels], found[rows, first] = log_probabilities[rows, first], log_probabilities[rows, labels]
    return found


def _normalised(log_probabilities: Float64) -> Float32:
    chances = np.exp(log_probabilities)
    found: Float32 = np.log(np.maximum(chances / chances.sum(axis=1, keepdims=True), _LEAST)).astype(np.float32)
    return found


def _lanes(part: Part, sweep: Sweep, seeds: int) -> list[Lane]:
    kept = [part.kept(sweep.method, sweep.fraction, seed) for seed in range(seeds)]
    return [Lane(kept[seed], seed, alpha, sweep.temperature) for alpha in sweep.alphas for seed in range(seeds)]


def _row(sweep: Sweep, accuracies: Float64) -> dict[str, Any]:
    """Of accuracies (weights, seeds), percent."""
    cells = zip(sweep.alphas, accuracies, strict=True)
    means = {f"alpha_{100 * alpha:g}": round(float(own.mean()), 2) for alpha, own in cells}
    return {**means, "accuracies": np.round(accuracies, 3).tolist()}


def _config(part: Part, about: dict[str, Any], sweep: Sweep, seeds: int, recipe: HeadRecipe) -> dict[str, Any]:
    return {
        **about,
        "classes": part.classes,
        "model": "linear head on all-MiniLM-L6-v2",
        "split": part.split,
        "fraction": sweep.fraction,
        "method": sweep.method,
        "teacher": sweep.kind,
        "temperature": sweep.temperature,
        "alphas": list(sweep.alphas),
        "seeds": seeds,
        "steps": recipe.steps,
    }
