"""What the rows of the image benchmark come to: recipes, settings, means with intervals, and gaps closed.

FOLDER/results-*/NAME.json -> settle -> recipes.json, settings.json
-> merge -> results/pruning_images*.json, _means, _worst, _gaps
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from benchmarks import common
from benchmarks.image_plans import ATTEMPTS, BY_VECTORS, EARLIER, METHODS, SUPERVISED, candidates, choice_seeds
from datapipe.proof.statistics import compare_unpaired, interval

if TYPE_CHECKING:
    from pathlib import Path

Row = dict[str, Any]

RAW = ("pruning_images_tuning", "pruning_images_choice", "pruning_images", "pruning_images_attempts")
_TUNED = ("learning_rate", "shift", "cutout")


def rows_of(work: Path, name: str) -> list[Row]:
    """Rows of all processes that shared a stage."""
    found: dict[str, Row] = {}
    for path in sorted(work.glob(f"results-*/{name}.json")):
        found |= {row["digest"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    return list(found.values())


def settle(work: Path, *, steps: int, batch_rows: int, tried: int) -> None:
    """Freeze the best recipe for random rows and the best settings, by validation images, where all were measured.

    Args:
        work: Folder of the benchmark; what is frozen there stays.
        steps: Of the recipes among which is chosen.
        batch_rows: Of the same.
        tried: How many of them there are.
    """
    tuned: dict[float, list[Row]] = defaultdict(list)
    for row in rows_of(work, "pruning_images_tuning"):
        if (row["recipe"]["steps"], row["recipe"]["batch_rows"]) == (steps, batch_rows):
            tuned[row["fraction"]].append(row)
    recipes = _frozen(work / "recipes.json")
    for fraction, rows in sorted(tuned.items()):
        if len(rows) < tried or str(fraction) in recipes:
            continue
        best = max(rows, key=lambda row: row["accuracy"])
        recipes[str(fraction)] = {name: best["recipe"][name] for name in _TUNED}
        print(f"kept {fraction}: {recipes[str(fraction)]}, {best['accuracy']:.2f} %")
    (work / "recipes.json").write_text(json.dumps(recipes) + "\n", encoding="utf-8")
    _settle_choice(work)


def _settle_choice(work: Path) -> None:
    measured: dict[tuple[str, float], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows_of(work, "pruning_images_choice"):
        measured[row["choice"], row["fraction"]][row["candidate"]].append(row)
    settings = _frozen(work / "settings.json")
    for (choice, fraction), found in sorted(measured.items()):
        wanted = len(candidates(fraction, choice)) * choice_seeds(fraction)
        if sum(map(len, found.values())) < wanted or str(fraction) in settings.get(choice, {}):
            continue
        scores = {name: _mean([row["accuracy"] for row in rows]) for name, rows in found.items()}
        order = sorted(scores, key=lambda name: -scores[name])
        settings.setdefault(choice, {})[str(fraction)] = found[order[0]][0]["setting"]
        print(f"{choice}, kept {fraction}:", "; ".join(f"{name} {scores[name]:.2f} %" for name in order[:6]))
    (work / "settings.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")


def _frozen(path: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return known


def merge(work: Path, *, main_encoder: str) -> None:
    """Bring the rows of all processes into the results, and write means and gaps anew."""
    for name in RAW:
        known = {row["digest"]: row for row in common.rows(name)} | {row["digest"]: row for row in rows_of(work, name)}
        rows = list(known.values())
        if name == "pruning_images":
            rows = _shared(rows, main_encoder)
        common.write_rows(name, rows)
    rows = common.rows("pruning_images")
    common.write_rows("pruning_images_means", means(rows))
    common.write_rows("pruning_images_worst", means(rows, of="worst_class"))
    common.write_rows("pruning_images_gaps", gaps(rows))
    further = [row for row in gaps([*rows, *common.rows("pruning_images_attempts")]) if row["method"] in ATTEMPTS]
    common.write_rows("pruning_images_attempts_gaps", further)
    for name in ("pruning_images_means", "pruning_images_worst", "pruning_images_gaps", "pruning_images_attempts_gaps"):
        print(common.table(name))


def means(rows: list[Row], *, of: str = "accuracy") -> list[Row]:
    """A row an encoder and method: the mean at each fraction and half of its 95 % interval, in percent.

    Args:
        rows: One a training.
        of: Which of their figures, `accuracy` or `worst_class`.
    """
    found = []
    for (dataset, encoder, method), own in _by_method(rows, of).items():
        row: Row = {"dataset": dataset, "encoder": encoder, "method": method}
        for fraction, accuracies in sorted(own.items()):
            known = interval(accuracies)
            half = f" ± {known.high - known.mean:.2f}" if len(accuracies) > 1 else ""
            row[f"kept_{round(100 * fraction)}"] = f"{known.mean:.2f}{half}"
        found.append(row)
    return found


def gaps(rows: list[Row]) -> list[Row]:
    """Each method against random by Welch's interval, and its part of the gap from random to the best with labels."""
    found = []
    grouped = _by_method(rows)
    for (dataset, encoder, method), own in grouped.items():
        if method in {"random", "full"}:
            continue
        for fraction, accuracies in sorted(own.items()):
            # Random rows read no vectors: those of another encoder serve as well.
            same = [(dataset, encoder, "random"), *(key for key in grouped if key[::2] == (dataset, "random"))]
            random = next((grouped[key][fraction] for key in same if fraction in grouped.get(key, {})), None)
            if random is None:
                continue
            told = compare_unpaired(accuracies, random)
            rivals = {
                rival: _mean(values[fraction])
                for (set_, _, rival), values in grouped.items()
                if set_ == dataset and rival in SUPERVISED and fraction in values
            }
            best = max(rivals, key=lambda name: rivals[name], default=None)
            gap = rivals[best] - _mean(random) if best is not None else None
            closed = told.difference.mean / gap if gap is not None and gap > 0 else None
            half = told.difference.high - told.difference.mean
            row: Row = {"dataset": dataset, "encoder": encoder, "fraction": fraction, "method": method}
            row |= {"minus_random": told.difference.mean, "verdict": told.verdict}
            # One training has no interval, and JSON no infinity.
            row |= {"half_width": half if math.isfinite(half) else None}
            found.append(row | {"best_with_labels": best, "gap": gap, "gap_closed": closed})
    return found


def _by_method(rows: list[Row], of: str = "accuracy") -> dict[tuple[str, str, str], dict[float, list[float]]]:
    order = {method: place for place, method in enumerate((*METHODS, *EARLIER, *ATTEMPTS, "full"))}
    found: dict[tuple[str, str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: (row["dataset"], row["encoder"], order[row["method"]], row["seed"])):
        found[row["dataset"], row["encoder"], row["method"]][row["fraction"]].append(row[of])
    return found


def _shared(rows: list[Row], main_encoder: str) -> list[Row]:
    """Give each further encoder the rows of methods that read no vectors: the trainings are the same."""
    own = [row for row in rows if "trained_as" not in row]
    further = sorted({row["encoder"] for row in own} - {main_encoder})
    same = [row for row in own if row["encoder"] == main_encoder and row["method"] not in BY_VECTORS]
    copies = [
        {**row, "encoder": encoder, "trained_as": main_encoder, "digest": f"{encoder}-{row['digest']}"}
        for encoder in further
        for row in same
    ]
    return own + copies


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
