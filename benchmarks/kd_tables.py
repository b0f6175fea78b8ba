"""What the rows of distillation on images come to: the teacher and the weights that were chosen, means, verdicts.

FOLDER/results-*/NAME.json -> settle -> kd.json, kd_alpha.json (the form that `datapipe.distill.alpha` reads)
-> merge -> results/kd_images*.json, _means, _verdicts, _alpha_means, _teachers, _noise
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from benchmarks import common
from benchmarks.image_tables import rows_of
from benchmarks.kd_plans import ALPHAS, KINDS, METHODS, SWEEP_SEEDS, TEMPERATURES, told
from datapipe.distill.alpha import read_curves, recommended_alpha
from datapipe.proof.statistics import LEVEL, compare_unpaired, interval, student_t

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Row = dict[str, Any]

RAW = ("kd_images_trials", "kd_images_alpha", "kd_images")
_SHORT = ("dataset", "fraction", "method", "kd", "alpha", "temperature", "teacher", "noise", "seed")
_TRIALS = 3
"""Trainings of a kind and temperature: two at one fraction and one at the other."""


def settle(work: Path, *, classes: int) -> None:
    """Freeze the teacher's kind and the temperature, and the weight of each fraction; what is frozen stays.

    Args:
        work: Folder of the benchmark.
        classes: Of the set, for the file of weights.
    """
    _settle_teacher(work)
    path = work / "kd_alpha.json"
    rows = rows_of(work, "kd_images_alpha")
    if not rows or not (work / "kd.json").is_file():
        return
    known = json.loads(path.read_text(encoding="utf-8"))["curves"][0]["points"] if path.is_file() else {}
    points = fit_alpha(rows) | known
    if not points:
        return
    recipe, teacher = rows[0]["recipe"], next(row["teacher"] for row in rows if row["teacher"])
    rests = (
        f"{rows[0]['dataset']}: random rows, a student of ResNet width {recipe['width']}, teacher {teacher} on all "
        f"rows, temperature {settled_teacher(work)['temperature']:g}; "
        f"{SWEEP_SEEDS} seeds at each of {len(ALPHAS)} weights, validation images; the ends are the weights that "
        f"{LEVEL:.0%} intervals do not tell from the best"
    )
    curve = {"fitted": True, "rests_on": rests, "classes": classes, "noise": 0.0, "points": points}
    path.write_text(json.dumps({"curves": [curve]}, indent=1) + "\n", encoding="utf-8")
    print("alpha by fraction, with the weights not told from it:", points)


def _settle_teacher(work: Path) -> None:
    path = work / "kd.json"
    rows = rows_of(work, "kd_images_trials")
    if path.is_file() or len(rows) < len(KINDS) * len(TEMPERATURES) * _TRIALS:
        return
    found: dict[tuple[str, float], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        kind = row["teacher"].partition("-")[2] or "same"
        found[kind, row["temperature"]][row["fraction"]].append(row["accuracy"])
    means = {key: _mean([_mean(values) for values in own.values()]) for key, own in found.items()}
    kind, temperature = max(means, key=lambda key: means[key])
    tried = {f"{name}, temperature {value:g}": mean for (name, value), mean in means.items()}
    told_ = {"kind": kind, "temperature": temperature, "mean_accuracy_on_validation_images": tried}
    path.write_text(json.dumps(told_, indent=1) + "\n", encoding="utf-8")
    print("teacher:", kind, "temperature", temperature, {key: round(value, 2) for key, value in tried.items()})


def settled_teacher(work: Path) -> Row:
    """Kind of teacher and temperature that were frozen. Ends the program where none are."""
    path = work / "kd.json"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run teachers --group choice, trials and settle first")
    found: Row = json.loads(path.read_text(encoding="utf-8"))
    return found


def weights_of(work: Path, *, classes: int, noise: float | None = None) -> dict[float, float]:
    """The recommended weight of each fraction that was swept. Ends the program where none was."""
    path = work / "kd_alpha.json"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run alphas and settle first")
    curves = read_curves(path)
    fractions = [point[0] for point in curves[0].points]
    found = {each: recommended_alpha(each, classes=classes, noise=noise, curves=curves) for each in fractions}
    return {each: round(known.value, 4) for each, known in found.items()}


def fit_alpha(rows: Iterable[Row]) -> dict[str, list[float]]:
    """The best weight of each fraction, and the least and greatest that cannot be told from it.

    Best is the highest mean accuracy. Told from it is a weight whose mean is lower by more than Student's t times the
    standard error of a difference, with the spread pooled over the weights of the fraction; the ends are those of the
    run of weights around the best that are not.

    Args:
        rows: Of the sweep; a fraction counts where every weight has all of its seeds.

    Returns:
        Fraction as a string: weight, low end, high end.
    """
    grouped: dict[float, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        grouped[row["fraction"]][row["alpha"]].append(row["accuracy"])
    found = {}
    for fraction, own in sorted(grouped.items()):
        weights = sorted(own)
        if weights != sorted(ALPHAS) or min(map(len, own.values())) < SWEEP_SEEDS:
            continue
        means = [_mean(own[each]) for each in weights]
        freedom = sum(len(values) - 1 for values in own.values())
        squares = sum((value - _mean(values)) ** 2 for values in own.values() for value in values)
        least = student_t(0.5 + LEVEL / 2, freedom) * math.sqrt(2 * squares / freedom / min(map(len, own.values())))
        best = low = high = max(range(len(weights)), key=lambda at: means[at])
        while low > 0 and means[low - 1] >= means[best] - least:
            low -= 1
        while high + 1 < len(weights) and means[high + 1] >= means[best] - least:
            high += 1
        found[str(fraction)] = [weights[best], weights[low], weights[high]]
    return found


def merge(work: Path) -> None:
    """Bring the rows of all processes into the results, and write the tables anew."""
    for name in RAW:
        known = {row["digest"]: row for row in common.rows(name)} | {row["digest"]: row for row in rows_of(work, name)}
        rows = [row for row in known.values() if row.get("trained_as") is None]
        if name == "kd_images":
            plain = {row["digest"]: row for row in (*common.rows("pruning_images"), *rows_of(work, "pruning_images"))}
            rows += shared(rows, plain.values())
        common.write_rows(name, rows)
    soft = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.glob("soft/*/*.json"))]
    dataset = (work / "name").read_text(encoding="utf-8")
    others = [row for row in common.rows("kd_images_teachers") if row["dataset"] != dataset]
    common.write_rows("kd_images_teachers", others + [{"dataset": dataset, **row} for row in soft])
    rows = common.rows("kd_images")
    clean = [row for row in rows if not row["noise"]]
    main = [row for row in clean if row["teacher"] in (None, _main_teacher(clean, row["dataset"]))]
    common.write_rows("kd_images_means", means(main, ("dataset", "method", "kd")))
    common.write_rows("kd_images_verdicts", verdicts(main))
    teachers = [row for row in clean if row["method"] == "random" and row["kd"]]
    common.write_rows("kd_images_sizes", means(teachers, ("dataset", "teacher")))
    wrong = [row for row in rows if row["noise"]]
    common.write_rows("kd_images_noise", means(wrong, ("dataset", "noise", "method", "kd", "teacher")))
    common.write_rows("kd_images_alpha_means", means(common.rows("kd_images_alpha"), ("dataset", "alpha")))
    for name in ("means", "verdicts", "sizes", "noise", "alpha_means"):
        print(common.table(f"kd_images_{name}"), end="\n\n")


def shared(rows: list[Row], plain: Iterable[Row]) -> list[Row]:
    """Rows of `pruning_images` for the cells that have a row with a teacher, and those of all rows of the set.

    They have the same rows, recipe and seed; all rows have the same size of network and number of steps.
    """
    wanted = {_cell(row) for row in rows if not row["noise"]} | {_size(row) for row in rows}
    return [
        {
            **{name: (row | told())[name] for name in _SHORT},
            **{name: row[name] for name in ("recipe", "setting", "rows", "accuracy", "worst_class", "seconds")},
            "trained_as": "pruning_images",
            "digest": row["digest"],
            "commit": row["commit"],
        }
        for row in plain
        if _cell(row) in wanted or (row["method"] == "full" and _size(row) in wanted)
    ]


def _cell(row: Row) -> str:
    kept = {name: row[name] for name in ("dataset", "fraction", "method", "seed", "recipe", "setting")}
    return json.dumps(kept, sort_keys=True)


def _size(row: Row) -> str:
    return json.dumps([row["dataset"], *(row["recipe"][name] for name in ("steps", "batch_rows", "width"))])


def _main_teacher(rows: list[Row], dataset: str) -> str | None:
    """Slug of the teacher of the table: only its rows are of all methods."""
    own = [row for row in rows if row["dataset"] == dataset and row["teacher"]]
    return next((row["teacher"] for row in own if row["method"] in METHODS[1:]), None)


def means(rows: Iterable[Row], by: tuple[str, ...]) -> list[Row]:
    """A row a group: mean accuracy at each fraction and half of its 95 % interval, in percent."""
    grouped: dict[tuple[Any, ...], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        grouped[tuple(row[name] for name in by)][row["fraction"]].append(row["accuracy"])
    found = []
    for key, own in sorted(grouped.items(), key=lambda item: tuple(map(str, item[0]))):
        row = dict(zip(by, key, strict=True))
        for fraction, values in sorted(own.items()):
            known = interval(values)
            half = f" ± {known.high - known.mean:.2f}" if len(values) > 1 else ""
            row[f"kept_{round(100 * fraction)}"] = f"{known.mean:.2f}{half}"
        found.append(row)
    return found


def verdicts(rows: list[Row]) -> list[Row]:
    """Random rows with the teacher against the best method without one, that method with it, and all rows without.

    The best is so by its mean on the test images, in its favour. Differences in points, with Welch's interval.
    """
    grouped: dict[tuple[str, float], dict[tuple[str, bool], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        grouped[row["dataset"], row["fraction"]][row["method"], row["kd"]].append(row["accuracy"])
    found = []
    for (dataset, fraction), own in sorted(grouped.items()):
        ours = own.get(("random", True))
        rivals = {method: _mean(values) for (method, kd), values in own.items() if not kd}
        if not ours or not rivals:
            continue
        best = max(rivals, key=lambda name: rivals[name])
        against: list[tuple[str, list[float] | None]] = [
            ("best without a teacher", own[best, False]),
            ("the same method with the teacher", own.get((best, True)) if best != "random" else None),
            ("random without a teacher", own.get(("random", False))),
            ("all rows without a teacher", grouped.get((dataset, 1.0), {}).get(("full", False))),
        ]
        for name, theirs in against:
            if theirs:
                row = {"dataset": dataset, "fraction": fraction, "random_kd": _mean(ours), "against": name}
                found.append(row | {"method": best} | _compared(ours, theirs))
    return found


def _compared(ours: list[float], theirs: list[float]) -> Row:
    known = compare_unpaired(ours, theirs)
    half = known.difference.high - known.difference.mean
    return {
        "theirs": _mean(theirs),
        "difference": known.difference.mean,
        "half_width": half if math.isfinite(half) else None,
        "verdict": known.verdict,
        "seeds": min(len(ours), len(theirs)),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
