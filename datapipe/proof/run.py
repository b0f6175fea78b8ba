"""`datapipe.prove`: train on the rows a run kept, on random rows and on all of them, and say what the difference is.

    run folder, test file -> vectors and labels -> arms -> heads, one a seed -> accuracies -> verdicts -> RUN/proof.json

Every arm gets the same model, steps and batch. The random arm draws other rows with every seed. Rows to learn from are
those that the run could have kept: rows excluded as repeats, matches or unscored are in no arm. The test rows come from
outside the run: kept rows were chosen with a view to all rows of the run, so none of them is a fair test. Raises
`ConfigError` for options, `ColumnError` for labels that are not there, `MetricError` where nothing can be learnt.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import ConfigError, MetricError
from datapipe.proof.heads import HeadRecipe, train_heads
from datapipe.proof.statistics import bootstrap, compare_paired, compare_unpaired, interval, worst_class
from datapipe.storage.digest import plain

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from datapipe.proof.statistics import Comparison, Interval
    from datapipe.storage.arrays import Bool, Float32, Int64

KEPT, RANDOM, FULL = "kept", "random", "full"
ARMS = (KEPT, RANDOM, FULL)
FEWEST_SEEDS = 2
_NO_SCORING = ("export", "report")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one choice of rows led to.

    Attributes:
        name: kept, random or full.
        rows: Rows that it trains on.
        accuracies: One a seed, in [0, 1].
        worst_classes: Accuracy of the worst class, one a seed.
        accuracy: Mean accuracy with its t interval.
        resampled: The same by bootstrap.
        worst_class: Mean accuracy of the worst class with its t interval.
    """

    name: str
    rows: int
    accuracies: tuple[float, ...]
    worst_classes: tuple[float, ...]
    accuracy: Interval
    resampled: Interval
    worst_class: Interval


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The outcome.

    Attributes:
        arms: kept, random, full.
        against_random: Kept minus random, unpaired: their rows have nothing in common but the number.
        against_full: Kept minus full, paired by the seed of the batches.
        test_rows: Test rows.
        classes: Classes to learn.
        recipe: How every arm learns.
        seconds: `scoring` (all stages up to the choice, as the run's timings.json says; 0 where it is lost) and
            `training` of all arms and seeds together.
        warnings: What speaks against the outcome, in sentences.
    """

    arms: tuple[Arm, ...]
    against_random: Comparison
    against_full: Comparison
    test_rows: int
    classes: int
    recipe: HeadRecipe
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The outcome as plain values, for JSON."""
        whole: dict[str, Any] = _finite(plain(self))
        return whole


def prove(  # noqa: PLR0913 - run and test; the rest by keyword
    run: str | os.PathLike[str],
    test: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    seeds: int = 5,
    steps: int = 1000,
    batch_rows: int = 128,
    device: str | None = None,
) -> Proof:
    """Train linear heads on the run's vectors, write RUN/proof.json and RUN/proof.html, and return the outcome.

    Args:
        run: Folder of a finished run that was given a label column.
        test: Parquet, CSV, JSON Lines or Arrow with labelled rows that are not in the run.
        label_column: Of the test file; that of the run by default.
        text_column: Of the test file; that of the run by default.
        image_column: Of the test file; that of the run by default.
        seeds: Trainings an arm, >= 2.
        steps: Updates of every training.
        batch_rows: Rows of an update.
        device: Where test rows are embedded and heads trained: auto, cpu, cuda; default from `DATAPIPE_DEVICE`.

    Raises:
        ConfigError: An option is out of range.
        ColumnError: The run or the test file has no labels, or the run no vectors.
        MetricError: There is nothing to learn: one class, or no test row of a known class.
        SourceError: The run or the test file cannot be read.
    """
    for name, value, least in (("seeds", seeds, FEWEST_SEEDS), ("steps", steps, 1), ("batch_rows", batch_rows, 1)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")
    from datapipe.proof.page import build_page
    from datapipe.proof.rows import ContentColumn, read_rows, read_test
    from datapipe.runs import open_run
    from datapipe.settings import Settings
    from datapipe.storage.atomic import write_atomically
    from datapipe.workers.device import resolve_devices

    result = open_run(run)
    rows = read_rows(result)
    settings = Settings()
    place = str(resolve_devices(device or settings.device)[0])
    content = ContentColumn(text=text_column, image=image_column)
    held = read_test(result, test, label_column=label_column, content=content, device=place)
    recipe = HeadRecipe(steps=steps, batch_rows=batch_rows)
    outcome = compare(
        rows.vectors,
        rows.labels,
        kept=rows.kept,
        pool=rows.pool,
        test=held.vectors,
        test_labels=held.labels,
        seeds=seeds,
        recipe=recipe,
        device=place,
        threads=settings.threads,
        scoring=sum(timing.seconds for timing in result.timings if timing.stage not in _NO_SCORING),
        warnings=held.warnings,
    )
    folder = Path(run)
    body = json.dumps(outcome.as_dict(), indent=1, sort_keys=True, allow_nan=False)
    write_atomically(folder / "proof.json", body.encode() + b"\n")
    write_atomically(folder / "proof.html", build_page(outcome, title=folder.name).encode())
    return outcome


def compare(  # noqa: PLR0913 - the data; the rest by keyword
    vectors: Float32,
    labels: Sequence[str | None],
    *,
    kept: Bool,
    pool: Bool,
    test: Float32,
    test_labels: Sequence[str | None],
    seeds: int,
    recipe: HeadRecipe,
    device: str = "cpu",
    threads: int | None = None,
    scoring: float = 0.0,
    warnings: Sequence[str] = (),
) -> Proof:
    """Compare kept, random and full on vectors that are there already; `prove` without files.

    Args:
        vectors: Float32 (rows, dim), of unit length.
        labels: Class of each row; None for none, such rows are in no arm.
        kept: Which rows are kept.
        pool: Which rows could have been kept; the kept ones are among them.
        test: Float32 (test rows, dim).
        test_labels: Class of each test row.
        seeds: Trainings an arm.
        recipe: How.
        device: Where.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
        scoring: Seconds that the choice of rows took.
        warnings: What is known to speak against the outcome.

    Raises:
        MetricError: An arm has fewer than two classes, or no test row has a class that the pool has.
    """
    names = sorted({label for label, inside in zip(labels, pool, strict=True) if inside and label is not None})
    place = {name: at for at, name in enumerate(names)}
    codes = np.array([place.get(label, -1) if label is not None else -1 for label in labels], np.int64)
    truth = np.array([place.get(label, -1) if label is not None else -1 for label in test_labels], np.int64)
    known = truth >= 0
    notes = list(warnings)
    if not known.any():
        raise MetricError(f"none of the {len(truth)} test rows has a class of the run; its classes begin {names[:3]}")
    if not known.all():
        notes.append(f"{int((~known).sum())} test rows have no class, or one that the run has not, and are left out.")
    if bool((pool & (codes < 0)).any()):
        notes.append(f"{int((pool & (codes < 0)).sum())} rows of the run have no label and are in no arm.")
    started = time.perf_counter()
    full = np.flatnonzero(pool & (codes >= 0))
    chosen = np.flatnonzero(kept & (codes >= 0))
    drawn = [_draw(full, len(chosen), seed) for seed in range(seeds)]
    arms = [*[chosen] * seeds, *drawn, *[full] * seeds]
    predicted = train_heads(
        vectors,
        codes,
        arms,
        [*range(seeds)] * len(ARMS),
        test[known],
        classes=len(names),
        recipe=recipe,
        device=device,
        threads=threads,
    )
    training = time.perf_counter() - started
    made = tuple(
        _arm(name, rows, predicted[at * seeds : (at + 1) * seeds], truth[known], len(names))
        for at, (name, rows) in enumerate(zip(ARMS, (len(chosen), len(chosen), len(full)), strict=True))
    )
    return Proof(
        arms=made,
        against_random=compare_unpaired(made[0].accuracies, made[1].accuracies),
        against_full=compare_paired(made[0].accuracies, made[2].accuracies),
        test_rows=int(known.sum()),
        classes=len(names),
        recipe=recipe,
        seconds={"scoring": scoring, "training": training},
        warnings=tuple(notes),
    )


def _draw(full: Int64, count: int, seed: int) -> Int64:
    # Another key than that of the batches, so that choice and order of the rows are independent.
    draws = np.random.Generator(np.random.Philox(key=[seed, 1]))
    drawn: Int64 = np.sort(draws.choice(full, count, replace=False))
    return drawn


def _arm(name: str, rows: int, predicted: Int64, truth: Int64, classes: int) -> Arm:
    accuracies = tuple(float((each == truth).mean()) for each in predicted)
    worst = tuple(worst_class(each, truth, classes=classes) for each in predicted)
    return Arm(
        name=name,
        rows=rows,
        accuracies=accuracies,
        worst_classes=worst,
        accuracy=interval(accuracies),
        resampled=bootstrap(accuracies),
        worst_class=interval(worst),
    )


def _finite(value: Any) -> Any:
    """JSON has no infinity: such an end of an interval is null."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
