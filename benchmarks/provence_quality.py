"""What pruners keep and remove on eight sets, beside six baselines; and whether a calibrated recall is kept.

    python -m benchmarks.provence_quality --data FOLDER                          # baselines and the default pruner
    python -m benchmarks.provence_quality --data FOLDER --model OTHER --joint    # other weights, shared windows too
    python -m benchmarks.provence_quality --data FOLDER --model none             # baselines alone
    python -m benchmarks.provence_quality --data FOLDER --calibration            # requested against achieved recall
    python -m benchmarks.provence_quality --table

FOLDER holds the sets as Parquet in the layout of `provence.evaluation.sets`. Figures are of the test splits only, by
the measuring protocol of `provence.evaluation.protocol`, of all questions unless --limit says otherwise. A row `macro`
holds the share of characters removed at 90 % recall of each set, and their mean.

Calibration: made on the `val` or `dev` split and read on `test`. A set without such a split is halved by document, one
half of `test` to calibrate on and one to read; no weights were trained on either.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from benchmarks.common import Row, finished, processor, record, table
from datapipe.errors import ConfigError
from provence.calibration import calibrate
from provence.evaluation.baselines import BASELINES, EMBEDDER, baselines
from provence.evaluation.protocol import PROTOCOL
from provence.evaluation.pruned import PrunerScorer
from provence.evaluation.recall import achieved, gold_probabilities
from provence.evaluation.report import MACRO
from provence.evaluation.run import measure, scored
from provence.evaluation.sets import hash_order, splits_of
from provence.pruner import Pruner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provence.evaluation.protocol import Outcome, Scorer

NAME, CALIBRATION = "provence_quality", "provence_calibration"
SETS = (
    *("squad11_dev", "squad20_dev", "wikiqa", "syllabusqa"),
    *("entailmentbank", "hotpotqa_sample", "fairytaleqa", "expmrc"),
)
RECALLS = (0.8, 0.9, 0.95, 0.99)
FIGURE = "removed_at_90"
COLUMNS = ["method", *SETS, "mean", "mean_low", "mean_high"]
RECALL_COLUMNS = [
    *("set", "method", "made_on", "questions", "requested", "achieved", "achieved_low", "achieved_high"),
    *("threshold", "removed"),
]


def told(stage: str, done: int, total: int) -> None:
    """One line when a method is through with a set."""
    if done == total:
        print(f"{stage}: {total:,} passages", flush=True)


def quality(scorer: Scorer, data: Path, about: Row, *, limit: int | None, again: bool) -> None:
    """Measure one method on all sets, unless that is done, and record a row a set and one over the sets."""
    whole: Row = {"protocol": PROTOCOL, "split": "test", "limit": limit, "method": scorer.name, **about}
    over = {**whole, "what": MACRO, "sets": list(SETS)}
    if not again and finished(NAME, over):
        print(f"{scorer.name}: measured already")
        return
    report = measure([scorer], [data / f"{name}.parquet" for name in SETS], limit=limit, progress=told)
    rows = {row["set"]: row for row in report.rows}
    for name in SETS:
        record(NAME, rows[name], {**whole, "what": "set", "set": name})
    mean = {"mean": rows[MACRO][FIGURE], "mean_low": rows[MACRO][f"{FIGURE}_low"]}
    mean |= {"mean_high": rows[MACRO][f"{FIGURE}_high"], **{name: rows[name][FIGURE] for name in SETS}}
    rest = {name: value for name, value in rows[MACRO].items() if name not in {"set", "sets", "method"}}
    record(NAME, {**mean, **rest}, over)


def recalls(scorer: Scorer, data: Path, about: Row, *, limit: int | None, again: bool) -> None:
    """Calibrate one pruner on each set and record what its thresholds give on other questions of the set."""
    for name in SETS:
        config: Row = {"protocol": PROTOCOL, "set": name, "method": scorer.name, "limit": limit, **about}
        configs = [{**config, "requested": recall} for recall in RECALLS]
        if not again and all(finished(CALIBRATION, each) for each in configs):
            continue
        made_on, made, read = apart(scorer, data / f"{name}.parquet", limit)
        golds = gold_probabilities(made)
        calibration = calibrate(golds, model=scorer.name, digest=str(about.get("digest", "")), domain=name)
        for each in configs:
            row: Row = {"made_on": made_on, "questions": len(golds), "questions_read": len(gold_probabilities(read))}
            try:
                found = achieved(read, calibration.threshold_for(each["requested"]))
            except ConfigError as error:
                row["refused"] = str(error)
            else:
                row |= {"threshold": found.threshold, "achieved": found.recall, "removed": found.removed}
                row |= {"achieved_low": found.recall_low, "achieved_high": found.recall_high}
            record(CALIBRATION, row, each)


def apart(scorer: Scorer, path: Path, limit: int | None) -> tuple[str, Outcome, Outcome]:
    """What to calibrate on, by name and scored, and what to read."""
    spare = [split for split in ("val", "dev") if split in splits_of(path)]
    read = scored(scorer, path, limit=limit, progress=told)
    if spare:
        return spare[0], scored(scorer, path, split=spare[0], limit=limit, progress=told), read
    return "half of test, by document", half(read, 0), half(read, 1)


def half(outcome: Outcome, which: int) -> Outcome:
    """The questions of every other document, by the hash of its title, or of its text where it has none."""
    sides = np.array([hash_order(0, example.title or example.context)[0] % 2 for example in outcome.examples])
    chosen = sides[outcome.question] == which
    return replace(
        outcome,
        probabilities=outcome.probabilities[chosen],
        gold=outcome.gold[chosen],
        characters=outcome.characters[chosen],
        question=outcome.question[chosen],
        texts=tuple(compress(outcome.texts, chosen.tolist())),
    )


def pruners(models: Sequence[str], *, device: str, joint: bool, titles: bool) -> list[tuple[Scorer, Row]]:
    """Each model as a scorer, and what its figures depend on."""
    found: list[tuple[Scorer, Row]] = []
    for model in models:
        pruner = Pruner.load(model, device=device)
        about = {"digest": pruner.digest, "titles": titles, "device": processor() if device == "cpu" else device}
        for view in (False, True) if joint else (False,):
            name = Path(pruner.model).name + (" joint" if view else "")
            scorer = PrunerScorer(pruner, joint=view, titles=titles, name=name)
            found.append((scorer, {**about, "joint": view}))
    return found


def main() -> None:
    """Measure what is not measured yet, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Folder of the sets.")
    parser.add_argument("--model", action="append", help="default, a folder, a hub id, none; may be repeated.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1.")
    parser.add_argument("--joint", action="store_true", help="Also show a question's passages in shared windows.")
    parser.add_argument("--titles", action="store_true", help="Show the documents' titles.")
    parser.add_argument("--limit", type=int, help="Questions of a set, at most; default all.")
    parser.add_argument("--calibration", action="store_true", help="Measure calibrated recall instead.")
    parser.add_argument("--again", action="store_true", help="Measure finished rows again.")
    parser.add_argument("--table", action="store_true", help="Only print the tables.")
    options = parser.parse_args()
    if not options.table:
        if options.data is None:
            parser.error("--data is needed to measure")
        models = [model for model in options.model or ["default"] if model != "none"]
        loaded = pruners(models, device=options.device, joint=options.joint, titles=options.titles)
        shared = {"limit": options.limit, "again": options.again}
        if options.calibration:
            for scorer, about in loaded:
                recalls(scorer, options.data, about, **shared)
        else:
            plain = [(each, {"embedder": EMBEDDER} if "cosine" in each.name else {}) for each in baselines(BASELINES)]
            for scorer, about in [*plain, *loaded]:
                quality(scorer, options.data, about, **shared)
    print(table(NAME, COLUMNS, only={"what": MACRO}))
    print(table(CALIBRATION, RECALL_COLUMNS))


if __name__ == "__main__":
    main()
