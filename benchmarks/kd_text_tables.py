"""What the rows of the text benchmark with soft labels come to: results/kd_text.json -> kd_text_means, kd_text_choices.

Means are over seeds, with Student's t interval of 95 %. What validation chose is of random rows, over all sets.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import common

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = dict[str, Any]


def choice(rows: Sequence[Row], teacher: str, fraction: float) -> tuple[float, float]:
    """Alpha and temperature of the greatest mean gain over the validation rows of all sets; ties to the lower alpha."""
    gains = gains_of(rows, teacher, fraction)
    return max(gains, key=lambda at: (np.mean(list(gains[at].values())), -at[0]))


def gains_of(rows: Sequence[Row], teacher: str, fraction: float) -> dict[tuple[float, float], dict[str, float]]:
    """Points over labels alone on validation rows, by alpha and temperature, of each set."""
    base: dict[str, list[float]] = {}
    found: dict[tuple[float, float], dict[str, list[float]]] = {}
    for row in rows:
        if row["split"] != "validation" or row["fraction"] != fraction:
            continue
        if row["teacher"] == "none":
            base.setdefault(row["dataset"], []).append(row["accuracy"])
        if row["teacher"] == teacher:
            at = found.setdefault((row["alpha"], row["temperature"]), {})
            at.setdefault(row["dataset"], []).append(row["accuracy"])
    return {
        at: {name: float(np.mean(each) - np.mean(base[name])) for name, each in sorted(by_set.items()) if name in base}
        for at, by_set in found.items()
    }


def write(name: str, *, teachers: Sequence[str]) -> None:
    """Write and print both tables."""
    rows = common.rows(name)
    for each, found in {f"{name}_choices": choices(rows, teachers), f"{name}_means": means(rows)}.items():
        content = json.dumps({"name": each, "rows": found}, indent=1, ensure_ascii=False)
        (common.RESULTS / f"{each}.json").write_text(content + "\n", encoding="utf-8")
        print(common.table(each), end="\n\n")


def choices(rows: Sequence[Row], teachers: Sequence[str]) -> list[Row]:
    """Every alpha and temperature that was tried, its gain on each set, and which was chosen."""
    found = []
    for fraction in sorted({row["fraction"] for row in rows}):
        for teacher in sorted({row["teacher"] for row in rows} - {"none"}):
            gains = gains_of(rows, teacher, fraction)
            best = choice(rows, teacher, fraction) if gains and all(gains.values()) and teacher in teachers else None
            for at, each in sorted(gains.items()):
                told = {"fraction": fraction, "teacher": teacher, "alpha": at[0], "temperature": at[1]}
                told |= {f"gain_{name}": round(gain, 2) for name, gain in each.items()}
                found.append({**told, "chosen": "yes" if at == best else ""})
    return found


def means(rows: Sequence[Row]) -> list[Row]:
    """Test accuracy by set, method and teacher, a column a fraction."""
    from datapipe.proof.statistics import interval

    cells: dict[tuple[str, str, str], dict[float, list[float]]] = {}
    for row in rows:
        if row["split"] == "test":
            at = cells.setdefault((row["dataset"], row["method"], row["teacher"]), {})
            at.setdefault(row["fraction"], []).append(row["accuracy"])
    found = []
    for (dataset, method, teacher), at in sorted(cells.items(), key=lambda cell: (cell[0][0], cell[0][1], cell[0][2])):
        told: Row = {"dataset": dataset, "method": method, "teacher": teacher}
        for fraction, values in sorted(at.items()):
            mean = interval(values)
            told[f"kept_{100 * fraction:g}"] = f"{mean.mean:.2f} ± {mean.high - mean.mean:.2f}"
        found.append(told)
    return found
