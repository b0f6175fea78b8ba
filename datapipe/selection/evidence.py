"""What is known of methods against random: the one table that rules and advice rest on.

    evidence.json (published), results of our own benchmarks -> Evidence -> `nearest`, `best_of`, `safe_from`

A row compares one method with random at one fraction of one data set: `gain` is the difference of accuracies in points,
`half_width` half of its 95 % interval. For figures it is the error of reading two points, 0.5 each. Raises
`ConfigError` for a file that is no such table.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

Modality: TypeAlias = Literal["images", "text", "other"]
PUBLISHED = Path(__file__).with_name("evidence.json")
EITHER = "best_supervised"
"""Rows under this name hold the best of several supervised methods, so they speak for none of them."""
_CUTS = {
    ("prototypes", "hard"): "sorscher_hard",
    ("prototypes", "easy"): "sorscher_easy",
    ("prototypes_supervised", "hard"): "supervised_prototypes",
    ("el2n", "hard"): "el2n",
    ("coverage", "hard"): "zcore",
}
"""The method that keeps one end of a metric and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One method against random at one fraction.

    Attributes:
        source: Paper and figure, or the benchmark.
        kind: "figure" (read off), "table", "text" (a statement without figures) or "measured" (ours).
        dataset: The data set.
        modality: What its rows are.
        rows: Training rows of the full set.
        classes: Its classes.
        setting: The network, or what the text says.
        fraction: Part kept, 0 < fraction < 1.
        method: A preset's name, or a slug for what is none.
        accuracy: Mean accuracy, percent; None for a text.
        at_most: The accuracy is a bound from above (the figure ends there).
        half_width: Half of the 95 % interval of the difference to random, points.
        random: Accuracy of random of the same size in the same setting, percent; None where it is not known.
        full: Accuracy with all rows in the same setting, percent; None where it is not known.
    """

    source: str
    kind: Literal["figure", "table", "text", "measured"]
    dataset: str
    modality: Modality
    rows: int
    classes: int
    setting: str
    fraction: float
    method: str
    accuracy: float | None
    at_most: bool = False
    half_width: float
    random: float | None
    full: float | None = None

    @property
    def gain(self) -> float | None:
        """Accuracy less that of random, points; None where they cannot be compared."""
        return None if self.accuracy is None or self.random is None else self.accuracy - self.random

    @property
    def loses(self) -> bool:
        """Whether the method is below random by more than the interval."""
        return self.gain is not None and self.gain < -self.half_width

    @property
    def wins(self) -> bool:
        """Whether it is above by more than the interval; a bound from above proves no win."""
        return self.gain is not None and self.gain > self.half_width and not self.at_most

    def told(self) -> str:
        """The row as a clause."""
        if self.gain is None:
            return f"{self.dataset}, {self.fraction:.0%} kept: {self.setting} ({self.source})"
        bound = "at most " if self.at_most else ""
        return f"{self.dataset}, {self.fraction:.0%} kept: {bound}{self.accuracy} against {self.random} ({self.source})"


def load_evidence(path: Path = PUBLISHED) -> tuple[Evidence, ...]:
    """Read a table of evidence: a JSON list of objects with the fields of `Evidence`.

    Raises:
        ConfigError: The file cannot be read or is no such table; names it and the row.
    """
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the evidence in {path}: {error}") from error
    if not isinstance(rows, list):
        raise ConfigError(f"{path} holds no list of evidence rows")
    return tuple(_row(row, f"{path}, row {at}") for at, row in enumerate(rows, 1))


@lru_cache(maxsize=1)
def published() -> tuple[Evidence, ...]:
    """The table that comes with the package."""
    return load_evidence()


def _row(row: Mapping[str, Any], where: str) -> Evidence:
    names = {each.name for each in fields(Evidence)}
    unknown = sorted(set(row) - names) if isinstance(row, dict) else ["no object"]
    missing = sorted(names - {"at_most", "full"} - set(row)) if isinstance(row, dict) else []
    if unknown or missing:
        raise ConfigError(f"{where}: unknown {unknown}, missing {missing}; a row has {sorted(names)}")
    if not 0 < row["fraction"] < 1 or not row["half_width"] >= 0:
        raise ConfigError(
            f"{where}: a fraction lies between 0 and 1 and a half_width is not negative; "
            f"got {row['fraction']} and {row['half_width']}"
        )
    return Evidence(**row)


def nearest(
    rows: Iterable[Evidence], *, modality: Modality, size: int, classes: int | None, fraction: float
) -> tuple[Evidence, ...]:
    """Return the comparable rows that stand nearest to a setting.

    Of the data sets of the same modality, the one whose rows, and rows a class, differ least (in logarithms), or those
    that differ as little; where there are only other modalities, all of them. Of each data set the fractions on both
    sides of the one asked for, or the last one before the end.

    Args:
        rows: The table.
        modality: What the rows are.
        size: How many there are.
        classes: Into how many classes they fall; None without labels.
        fraction: Part kept.
    """
    return _of_each(closest(rows, modality=modality, size=size, classes=classes), fraction)


def closest(rows: Iterable[Evidence], *, modality: Modality, size: int, classes: int | None) -> list[Evidence]:
    """Return the comparable rows of the data sets that `nearest` takes, at all fractions."""
    comparable = [row for row in rows if row.gain is not None]
    same = [row for row in comparable if row.modality == modality]
    if not same:
        return comparable
    # Without labels, sets of as many rows stand equally near, whatever their classes: none of them may speak alone.
    least = min(_distance(row, size, classes) for row in same)
    datasets = {row.dataset for row in same if math.isclose(_distance(row, size, classes), least)}
    return [row for row in same if row.dataset in datasets]


def cut_of(metric: str, order: Literal["hard", "easy"]) -> str | None:
    """Return the method whose rows tell what keeping one end of a metric does; None where none does."""
    return _CUTS.get((metric, order))


def around(
    fraction: float, *, method: str | None = None, rows: Iterable[Evidence] | None = None
) -> tuple[Evidence, ...]:
    """Return what is known of a method on each data set at the fractions on both sides of this one.

    Here and below, `rows` are those of the table unless they are given, and all of them count without a `method`.
    """
    return _of_each([row for row in _about(method, rows) if row.gain is not None], fraction)


def _about(method: str | None, rows: Iterable[Evidence] | None) -> list[Evidence]:
    return [row for row in (published() if rows is None else rows) if method in {None, row.method}]


def _of_each(rows: Sequence[Evidence], fraction: float) -> tuple[Evidence, ...]:
    """The rows of each data set at the fractions, of whatever method, on both sides of this one."""
    sets: dict[str, set[float]] = {}
    for row in rows:
        sets.setdefault(row.dataset, set()).add(row.fraction)
    sides = {dataset: _sides(fractions, fraction) for dataset, fractions in sets.items()}
    return tuple(row for row in rows if row.fraction in sides[row.dataset])


def _distance(row: Evidence, size: int, classes: int | None) -> float:
    apart = abs(math.log(row.rows / max(size, 1)))
    if classes is None:
        return apart
    return apart + abs(math.log((row.rows / row.classes) / (max(size, 1) / max(classes, 1))))


def _sides(fractions: Collection[float], fraction: float) -> set[float | None]:
    below = max((each for each in fractions if each <= fraction), default=None)
    return {below, min((each for each in fractions if each >= fraction), default=None)}


def best_of(rows: Sequence[Evidence], methods: Collection[str]) -> tuple[str, tuple[Evidence, ...]]:
    """Return the method to take among `methods`, and the rows that speak for it; "random" where none is proven better.

    A method is out if a row says that it loses to random by more than the interval, if it has no row at one of the data
    sets and fractions, or if a data set has no row where it wins. Of those left the greatest least gain counts, then
    the name.

    Args:
        rows: What `nearest` found.
        methods: Presets that are available.
    """
    sets, points = {row.dataset for row in rows}, {(row.dataset, row.fraction) for row in rows}
    best: tuple[float, str] | None = None
    for method in sorted(methods):
        own = [row for row in rows if row.method == method]
        covered = bool(own) and {(row.dataset, row.fraction) for row in own} == points
        if not covered or any(row.loses for row in own) or {row.dataset for row in own if row.wins} != sets:
            continue
        least = min(row.gain for row in own if row.gain is not None)
        if best is None or least > best[0]:
            best = (least, method)
    if best is None:
        return "random", ()
    return best[1], tuple(row for row in rows if row.method == best[1])


def safe_from(method: str | None = None, *, rows: Iterable[Evidence] | None = None) -> float:
    """Return the least fraction with a row above every fraction at which the method loses; 1 where there is none."""
    own = _about(method, rows)
    worst = max((row.fraction for row in own if row.loses), default=0.0)
    return min((row.fraction for row in own if row.fraction > worst), default=1.0)


def losses(
    method: str | None = None, *, least: float = 0.0, rows: Iterable[Evidence] | None = None
) -> tuple[Evidence, ...]:
    """Return the rows that say that a method loses to random, at `least` kept or more, in the order of the table."""
    return tuple(row for row in _about(method, rows) if row.loses and row.fraction >= least)
