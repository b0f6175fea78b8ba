"""The figures of scored sets: one row a set and method, one macro row a method, as JSON and as a Markdown table.

    Outcome -> figures_of (values, and the same in each bootstrap sample) -> macro_figures over sets -> Report

Intervals hold the middle 95 % of the bootstrap samples. Raises `MetricError` for a set without gold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from provence.evaluation.metrics import (
    agreement,
    answer_retained,
    interval,
    ranking,
    removed_at_recall,
    resampled_agreement,
    resampled_mean,
    resampled_removed,
    resamples,
    threshold_at_recall,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from datapipe.storage.arrays import Bool, Float64, Int64
    from provence.evaluation.protocol import Outcome

__all__ = ["COLUMNS", "MACRO", "NOTE", "RECALLS", "Figures", "Report", "Row", "figures_of", "macro_figures"]

Row: TypeAlias = dict[str, Any]

RECALLS = (0.9, 0.95, 0.99)
"""Shares of gold sentences at which the removed characters are stated."""

MACRO = "macro"
"""Name of the row that holds means over the sets."""

BEST, OWN, RANKING = "best threshold", "at the model's threshold", "ranking"
"""What a figure is measured at: the threshold at which the set keeps the recall, the model's own, or none."""

COLUMNS = {
    "removed_at_90": ("removed @90", BEST),
    "removed_at_95": ("removed @95", BEST),
    "removed_at_99": ("removed @99", BEST),
    "recall": ("recall", OWN),
    "removed": ("removed", OWN),
    "f1": ("f1", OWN),
    "f2": ("f2", OWN),
    "answers_kept": ("answers kept", OWN),
    "ndcg": ("ndcg", RANKING),
    "mrr": ("mrr", RANKING),
}
"""Figures that a table shows: by the name in a row, what they are called and what they are measured at."""

NOTE = (
    "removed @90: characters cut at the threshold of the set itself that keeps 90 % of the gold sentences. "
    "recall, removed, f1, f2 and answers kept: at the model's threshold; a method without a model is taken at that of "
    "@90. Ranges are 95 % intervals."
)
"""What stands under a table."""


@dataclass(frozen=True, eq=False)
class Figures:
    """A method's figures on a set.

    Attributes:
        values: By name: `removed_at_90` and so on; `precision`, `recall`, `f1`, `f2`, `removed` and `answers_kept` at
            the threshold; `ndcg`, `mrr`, `first` of the passages. NaN where a set does not have what a figure needs.
        samples: The same in each bootstrap sample, float64 (samples,).
        about: Counts, and the threshold.
    """

    values: dict[str, float]
    samples: dict[str, Float64]
    about: Row

    def row(self, **names: Any) -> Row:
        """Names, counts, and each figure with its 95 % interval as `_low` and `_high`; null for what is not there."""
        found: Row = {**names, **self.about}
        for name, value in self.values.items():
            low, high = interval(self.samples[name])
            found |= {name: _number(value), f"{name}_low": _number(low), f"{name}_high": _number(high)}
        return found


@dataclass(frozen=True)
class Report:
    """What `evaluate` found.

    Attributes:
        rows: One a set and method, then one a method over all sets (`set` is `macro`).
        about: Protocol, split, seed and the like.
    """

    rows: tuple[Row, ...]
    about: Row

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.about, "rows": list(self.rows)}

    @property
    def shown(self) -> tuple[Row, ...]:
        """The rows without means over one set."""
        several = len({row["set"] for row in self.rows} - {MACRO}) > 1
        return tuple(row for row in self.rows if several or row["set"] != MACRO)

    def screen(self) -> Iterator[Table]:
        """The same for a terminal: a table a set, with a column for each method."""
        from rich.markup import escape
        from rich.table import Table

        for name in dict.fromkeys(row["set"] for row in self.shown):
            rows = [row for row in self.shown if row["set"] == name]
            title = f"{escape(name)}, {rows[0]['questions']:,} questions"
            table = Table(title=title, title_justify="left", title_style="bold")
            table.add_column("")
            for row in rows:
                table.add_column(row["method"], justify="right")
            group = ""
            for column, (figure, measured) in COLUMNS.items():
                if measured != group:
                    table.add_section()
                    table.add_row(f"[bold]{measured}[/]")
                    group = measured
                table.add_row(
                    figure, *(_cell(row, column).replace(" (", "\n[dim]").replace(")", "[/]") for row in rows)
                )
            yield table

    def table(self) -> str:
        """A Markdown table of the rows that are `shown`, with intervals, and what its columns are."""
        head = ["set", "method", *(_heading(*column) for column in COLUMNS.values())]
        lines = [head, ["---"] * len(head)]
        lines += [[row["set"], row["method"], *(_cell(row, column) for column in COLUMNS)] for row in self.shown]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{NOTE}"


def figures_of(outcome: Outcome, *, threshold: float | None, samples: int = 1000, seed: int = 0) -> Figures:
    """All figures of one method on one set.

    Args:
        outcome: The scored set; some sentence must be gold.
        threshold: The method's own; None takes the one at which 90 % of the gold is kept on this very set.
        samples: Bootstrap samples; questions are drawn.
        seed: Of the bootstrap.

    Raises:
        MetricError: No sentence is gold.
    """
    about: Row = {
        "questions": len(outcome.examples),
        "passages": int(outcome.scores.size),
        "sentences": int(outcome.gold.size),
        "gold": int(outcome.gold.sum()),
        "own_threshold": threshold is not None,
    }
    at = threshold_at_recall(outcome.probabilities, outcome.gold, RECALLS[0]) if threshold is None else threshold
    weights = resamples(len(outcome.examples), count=samples, seed=seed)
    values, sampled = _removed(outcome, weights)
    for part in (_at_threshold(outcome, outcome.probabilities >= at, weights), _ranked(outcome, weights)):
        values |= part[0]
        sampled |= part[1]
    return Figures(values, sampled, {**about, "threshold": at})


def macro_figures(sets: Sequence[Figures]) -> Figures:
    """Means over sets, in each sample too; a figure that some set lacks is the mean over the others."""
    names = sets[0].values
    with np.errstate(invalid="ignore"):
        values = {name: _mean(np.array([[found.values[name]] for found in sets]))[0] for name in names}
        samples = {name: _mean(np.stack([found.samples[name] for found in sets])) for name in names}
    about: Row = {"sets": len(sets), "own_threshold": all(found.about["own_threshold"] for found in sets)}
    about |= {name: sum(found.about[name] for found in sets) for name in ("questions", "passages", "sentences", "gold")}
    return Figures({name: float(value) for name, value in values.items()}, samples, about)


def _removed(outcome: Outcome, weights: Int64) -> tuple[dict[str, float], dict[str, Float64]]:
    flat = (outcome.probabilities, outcome.gold, outcome.characters)
    sampled = resampled_removed(*flat, outcome.question, recalls=RECALLS, weights=weights)
    names = [f"removed_at_{round(100 * recall)}" for recall in RECALLS]
    values = [removed_at_recall(*flat, recall) for recall in RECALLS]
    return dict(zip(names, values, strict=True)), dict(zip(names, sampled.T, strict=True))


def _at_threshold(outcome: Outcome, kept: Bool, weights: Int64) -> tuple[dict[str, float], dict[str, Float64]]:
    """Sentence agreement, characters removed and answers kept, all at one threshold."""
    questions = len(outcome.examples)
    found = agreement(kept, outcome.gold)
    sampled = resampled_agreement(kept, outcome.gold, outcome.question, weights)
    names = ("precision", "recall", "f1", "f2")
    values = {name: getattr(found, name) for name in names}
    samples = {name: np.array([getattr(sample, name) for sample in sampled]) for name in names}

    shown = np.bincount(outcome.question, weights=outcome.characters, minlength=questions)
    cut = np.bincount(outcome.question, weights=outcome.characters * ~kept, minlength=questions)
    values["removed"] = float(cut.sum() / shown.sum())
    samples["removed"] = (weights @ cut) / (weights @ shown)

    answers = _answers_kept(outcome, kept)
    values["answers_kept"] = float(np.nanmean(answers)) if np.isfinite(answers).any() else math.nan
    samples["answers_kept"] = resampled_mean(answers, weights)
    return values, samples


def _answers_kept(outcome: Outcome, kept: Bool) -> Float64:
    """1.0 or 0.0 a question, NaN where no answer string stands in what was shown."""
    bounds = np.searchsorted(outcome.question, np.arange(len(outcome.examples) + 1))
    found = np.full(len(outcome.examples), math.nan)
    for place, example in enumerate(outcome.examples):
        first, last = bounds[place], bounds[place + 1]
        texts = outcome.texts[first:last]
        left = [text for text, keep in zip(texts, kept[first:last], strict=True) if keep]
        retained = answer_retained(example.answers, texts, left)
        if retained is not None:
            found[place] = retained
    return found


def _ranked(outcome: Outcome, weights: Int64) -> tuple[dict[str, float], dict[str, Float64]]:
    found = ranking(outcome.scores, outcome.holds_gold, outcome.asked)
    questions = found.pop("question").astype(np.int64)
    values, samples = {}, {}
    for name, each in found.items():
        spread = np.full(len(outcome.examples), math.nan)
        spread[questions] = each
        values[name] = float(each.mean()) if each.size else math.nan
        samples[name] = resampled_mean(spread, weights)
    return values, samples


def _mean(rows: Float64) -> Float64:
    """Column means of what is finite; NaN for a column without."""
    finite = np.isfinite(rows)
    found: Float64 = np.where(finite, rows, 0.0).sum(axis=0) / finite.sum(axis=0)
    return found


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _heading(name: str, measured: str) -> str:
    return name if measured == RANKING else f"{name} ({measured})"


def _cell(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    return f"{value:.3f}" + (f" ({low:.3f}-{high:.3f})" if low is not None and high is not None else "")
