"""Accuracy of a frozen-embedding head on pruned text sets, against random rows and all of them.

    labelled texts -> MiniLM vectors -> scores, a seed each -> rows by method and fraction -> heads, 5 seeds
                                                       -> results/pruning_text.json -> means, gaps

Run: python -m benchmarks.pruning_text FILE.parquet ... [--fractions 0.1,0.3] [--limit-seconds 200]. Steps and batch are
the same for every arm. Settings of metrics and presets were chosen on validation rows (`pruning_settings.py`); this
reads the test rows, once. A finished row is not measured again, so the table can be made in several runs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import text_tables
from benchmarks.common import finished, outcome, record
from benchmarks.text_sets import ENCODER, FRACTIONS, METHODS, TextSet, told_setting
from datapipe.storage.digest import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapipe.storage.arrays import Int64

NAME = "pruning_text"
SEEDS = 5
STEPS, BATCH_ROWS = 1000, 128


def main() -> None:
    """Measure what is missing, then print means and gaps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--fractions", default=",".join(map(str, FRACTIONS)))
    parser.add_argument("--limit-seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    deadline = time.perf_counter() + options.limit_seconds
    for file in options.files:
        _measure(TextSet.read(file), [float(each) for each in options.fractions.split(",")], deadline)
    text_tables.write(NAME, current=_is_current)


def _measure(texts: TextSet, fractions: list[float], deadline: float) -> None:
    for method, fraction in [("full", 1.0), *((m, f) for f in fractions for m in METHODS)]:
        configs = [_config(texts.name, method, fraction, seed) for seed in range(SEEDS)]
        if all(finished(NAME, config) for config in configs):
            continue
        if time.perf_counter() > deadline:
            return
        arms = [texts.train if method == "full" else texts.kept(method, fraction, seed) for seed in range(SEEDS)]
        costs = [_cost(texts, method, seed) for seed in range(SEEDS)]
        for config, row, cost in zip(configs, _rows(texts, arms), costs, strict=True):
            record(NAME, row | {"scoring_seconds": cost}, config)


def _config(dataset: str, method: str, fraction: float, seed: int) -> dict[str, Any]:
    found = {"dataset": dataset, "encoder": ENCODER, "model": "linear head", "fraction": fraction, "method": method}
    found |= {"seed": seed, "steps": STEPS, "batch_rows": BATCH_ROWS}
    if method in METHODS:
        found["setting"] = told_setting(method, fraction)
    return found


def _is_current(row: dict[str, Any]) -> bool:
    """Whether a row is of the settings that the presets have now."""
    return bool(row["digest"] == digest_of(_config(row["dataset"], row["method"], row["fraction"], row["seed"])))


def _cost(texts: TextSet, method: str, seed: int) -> float:
    if method in {"random", "full"}:
        return 0.0
    return texts.scores(seed)[1][METHODS[method][1]]


def _rows(texts: TextSet, arms: list[Int64]) -> Iterator[dict[str, Any]]:
    from datapipe.proof.heads import HeadRecipe, train_heads

    started = time.perf_counter()
    found = train_heads(
        texts.vectors,
        texts.labels,
        arms,
        list(range(len(arms))),
        texts.vectors[texts.test],
        classes=texts.classes,
        recipe=HeadRecipe(steps=STEPS, batch_rows=BATCH_ROWS),
    )
    seconds = (time.perf_counter() - started) / len(arms)
    truth = texts.labels[texts.test]
    for arm, predicted in zip(arms, found, strict=True):
        yield outcome(predicted, truth, classes=texts.classes, rows=len(arm), seconds=seconds)


if __name__ == "__main__":
    main()
