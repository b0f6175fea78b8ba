"""What the rows of the recovery benchmark come to: what validation chooses, the share recovered, means, comparisons.

    results-*/paser_recovery*.json -> settle: rates.json, pilots.json, ours.json (frozen when they are first settled)
    -> merge: benchmarks/results/paser_recovery{,_means,_gaps,_sources,_choices}.json and their tables

`recovered` = (nll of the damaged model - nll) / (nll of the damaged model - nll of the original after all rows): 0 is
no training, 1 is what the undamaged model reaches with the whole pool. `recovered_of_full` has the same damaged model
after all rows in its place.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import common
from benchmarks.paser_plans import BUDGETS, METHODS, ORIGINAL, RATE_BUDGETS, RATES, SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

NAME = "paser_recovery"
ROWS = f"{NAME}_rows"
"""Whole rows, in the work folder only; what `merge` writes has other names, so it never writes over them."""
MEASURES = ("heldout_nll", "jsd", "choice_accuracy", "recovered", "recovered_of_full")
_KEPT = ("variant", "budget", "method", "seed", "heldout_nll", "jsd", "choice_accuracy", "recovered")
_SETTING = "setting "

Row = dict[str, Any]


def rows_of(work: Path, name: str) -> list[Row]:
    """Rows of all processes that shared a stage."""
    found: dict[str, Row] = {}
    for path in sorted(work.glob(f"results-*/{name}.json")):
        found |= {row["digest"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    return list(found.values())


def settle(work: Path) -> None:
    """Freeze what validation chose, each once all it needs was measured."""
    _freeze(work, "rates", lambda: _rates(rows_of(work, f"{NAME}_rates")))
    if (work / "rates.json").is_file():
        rates = json.loads((work / "rates.json").read_text(encoding="utf-8"))
        _freeze(work, "pilots", lambda: _pilots(work, rows_of(work, f"{NAME}_rates"), rates))
    _freeze(work, "ours", lambda: _ours(rows_of(work, f"{NAME}_settings")))


def _freeze(work: Path, name: str, find: Callable[[], Any]) -> None:
    path = work / f"{name}.json"
    if path.is_file():
        return
    found = find()
    if found:
        print(f"{name}: {json.dumps(found)[:600]}", flush=True)
        path.write_text(json.dumps(found) + "\n", encoding="utf-8")


def _rates(rows: Sequence[Row]) -> dict[str, float]:
    """The rate of the lowest mean loss over budgets, by variant."""
    losses: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["method"] == "random":
            losses[row["variant"]][row["rate"]].append(row["heldout_nll"])
    untrained = {row["variant"] for row in rows if row["method"] == "none"}
    counts = {len(values) for at in losses.values() for values in at.values()}
    if (
        untrained != losses.keys()
        or counts != {len(RATE_BUDGETS)}
        or any(set(at) < set(RATES) for at in losses.values())
    ):
        print(f"rates: not every rate was measured on {sorted(losses)}", flush=True)
        return {}
    for variant, at in losses.items():
        told = {rate: round(float(np.mean(values)), 4) for rate, values in sorted(at.items())}
        print(f"rates of {variant}: {told}", flush=True)
    return {variant: min(sorted(at), key=lambda rate: np.mean(at[rate])) for variant, at in sorted(losses.items())}


def _pilots(work: Path, rows: Sequence[Row], rates: Mapping[str, float]) -> dict[str, dict[str, list[list[float]]]]:
    """Tokens of each cluster by equal marginal gain, by variant and budget, as worths.

    Pilots are the trainings on random rows at the rate that was chosen; a cluster's gain counts as much as its tokens
    do among the held-out rows of each source.
    """
    from benchmarks import paser_scores
    from datapipe.errors import BudgetError
    from datapipe.paser.recoverability import allocate_by_gain, fit_curves

    prepared = paser_scores.load(work)
    costs = prepared.rows["tokens"] + prepared.rows["prompt_tokens"]
    clusters = prepared.rows["clusters"]
    available = np.bincount(prepared.rows["labels"], costs, clusters).astype(np.int64)
    worth = _worth(prepared)
    found: dict[str, dict[str, list[list[float]]]] = {}
    for variant, rate in rates.items():
        before = next(row["by_cluster"] for row in rows if row["variant"] == variant and row["method"] == "none")
        trained = [row for row in rows if row["variant"] == variant and row.get("rate") == rate and row["budget"]]
        cells = [
            (int(cluster), row["cluster_tokens"][int(cluster)], before[cluster], after)
            for row in trained
            for cluster, after in row["by_cluster"].items()
            if row["cluster_tokens"][int(cluster)] > 0
        ]
        of = np.array([cell[0] for cell in cells])
        lone = {each for each in set(of.tolist()) if len({cell[1] for cell in cells if cell[0] == each}) < 2}
        cells = [cell for cell in cells if cell[0] not in lone]
        labels, tokens, first, after = (np.array(column) for column in zip(*cells, strict=True))
        curves = fit_curves(labels, tokens.astype(np.float64), first, after, clusters=clusters)
        found[variant] = {}
        for budget in BUDGETS:
            asked = round(budget * int(costs.sum()))
            try:
                shares = allocate_by_gain(curves, budget=asked, available=available, worth=worth)
            except BudgetError:  # nothing was gained in a rehearsal
                shares = available
            found[variant][str(budget)] = [[at, float(share)] for at, share in enumerate(shares.tolist())]
    return found


def _worth(prepared: Any) -> Any:
    """Part of the mean over sources of the held-out loss that is of each cluster's tokens, float64 (clusters,)."""
    sources = np.array(prepared.sources("validation"))
    tokens = prepared.lessons["validation"].answers
    worth = np.zeros(prepared.rows["clusters"])
    for source in np.unique(sources):
        own = sources == source
        share = np.bincount(prepared.places[own], tokens[own], len(worth))
        worth += share / share.sum() / len(np.unique(sources))
    return worth


def _ours(rows: Sequence[Row]) -> dict[str, Any]:
    """The setting of the lowest mean loss over variants, budgets and seeds; the mean of those all settings have."""
    cells: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for row in rows:
        cells[row["method"]].add((row["variant"], row["budget"], row["seed"]))
    wanted = {f"{_SETTING}{name}" for name in SETTINGS} | {"random"}
    if not wanted <= cells.keys() or any(cells[name] != cells["random"] for name in wanted):
        print(f"settings: not every setting has the {len(cells['random'])} trainings of random rows", flush=True)
        return {}
    found = setting_means(rows)
    for name, (loss, count) in sorted(found.items(), key=lambda each: each[1][0]):
        print(f"{loss:+.5f} to random rows, over {count}: {name}", flush=True)
    named = {name.removeprefix(_SETTING): loss for name, (loss, _) in found.items() if name.startswith(_SETTING)}
    return dict(SETTINGS[min(named, key=named.__getitem__)]) if named.keys() == SETTINGS.keys() else {}


def setting_means(rows: Sequence[Row]) -> dict[str, tuple[float, int]]:
    """Mean loss less that of random rows, and the number of cells, over the cells that every method has."""
    cells: dict[str, dict[tuple[Any, ...], float]] = defaultdict(dict)
    for row in rows:
        cells[row["method"]][row["variant"], row["budget"], row["seed"]] = row["heldout_nll"]
    common_cells = set.intersection(*(set(of) for of in cells.values())) if cells else set()
    base = cells.get("random", {})
    return {
        method: (float(np.mean([of[cell] - base[cell] for cell in sorted(common_cells)])), len(common_cells))
        for method, of in cells.items()
        if common_cells
    }


def merge(work: Path) -> None:
    """Write and print everything."""
    rows = with_recovered(rows_of(work, ROWS))
    compact = [{**{key: _rounded(row[key]) for key in _KEPT if key in row}, **_where(row)} for row in rows]
    for name, found in {
        NAME: compact,
        f"{NAME}_means": means(rows),
        f"{NAME}_gaps": gaps(rows),
        f"{NAME}_sources": sources(rows),
        f"{NAME}_choices": choices(work),
    }.items():
        common.write_rows(name, found)
        if name != NAME:
            print(common.table(name), end="\n\n")


def with_recovered(rows: Iterable[Row]) -> list[Row]:
    """Rows in the order of variant, budget, method and seed, with the share of the loss that came back."""
    found = sorted(rows, key=lambda row: (row["variant"], row["budget"], row["method"], row["seed"]))

    def mean(variant: str, method: str) -> float:
        own = [row["heldout_nll"] for row in found if (row["variant"], row["method"]) == (variant, method)]
        return float(np.mean(own)) if own else float("nan")

    best = mean(ORIGINAL, "full")
    told = []
    for row in found:
        worst, full = mean(row["variant"], "none"), mean(row["variant"], "full")
        back = worst - row["heldout_nll"]
        whole = {"recovered": worst - best, "recovered_of_full": worst - full}
        told.append({**row, **{name: back / most for name, most in whole.items() if np.isfinite(most) and most}})
    return told


def means(rows: Sequence[Row]) -> list[Row]:
    """Means over seeds with Student's t interval of 95 %, by variant, budget and method."""
    from datapipe.proof.statistics import interval

    found = []
    for (variant, budget, method), own in _cells(rows).items():
        line: Row = {"variant": variant, "budget": budget, "method": method, "seeds": len(own)}
        line["rows"] = round(float(np.mean([row["rows"] for row in own])))
        for measure in MEASURES:
            values = [row[measure] for row in own if measure in row]
            if values:
                line[measure] = round(float(np.mean(values)), 5)
            if len(values) > 1:
                told = interval(values)
                line[f"{measure}_half"] = round((told.high - told.low) / 2, 5)
        found.append(line)
    return found


def gaps(rows: Sequence[Row]) -> list[Row]:
    """`ours` less each other method at the same variant, budget and seed: loss, distance, choices, with intervals."""
    from datapipe.proof.statistics import compare_paired

    cells = _cells(rows)
    found = []
    for (variant, budget, method), own in cells.items():
        ours = cells.get((variant, budget, "ours"), [])
        seeds = sorted({row["seed"] for row in own} & {row["seed"] for row in ours})
        if method not in METHODS or method == "ours" or len(seeds) < 2:
            continue
        line: Row = {"variant": variant, "budget": budget, "against": method, "seeds": len(seeds)}
        for measure in ("heldout_nll", "jsd", "choice_accuracy"):
            first, second = ([_of(some, seed)[measure] for seed in seeds] for some in (ours, own))
            told = compare_paired(first, second).difference
            line |= {measure: round(told.mean, 5), f"{measure}_half": round((told.high - told.low) / 2, 5)}
        found.append(line)
    return found


def sources(rows: Sequence[Row]) -> list[Row]:
    """Loss of each source, mean over seeds."""
    found = []
    for (variant, budget, method), own in _cells(rows).items():
        names = own[0]["by_source"]
        losses = {name: round(float(np.mean([row["by_source"][name][0] for row in own])), 4) for name in names}
        found.append({"variant": variant, "budget": budget, "method": method, **losses})
    return found


def choices(work: Path) -> list[Row]:
    """What validation said of learning rates and of settings; the losers stay."""
    found: list[Row] = []
    rates: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in rows_of(work, f"{NAME}_rates"):
        if row["method"] == "random":
            rates[row["variant"], row["budget"], row["rate"]].append(row["heldout_nll"])
    for (variant, budget, rate), values in sorted(rates.items()):
        loss = round(float(np.mean(values)), 5)
        found.append({"what": f"learning rate {rate:g}", "variant": variant, "budget": budget, "heldout_nll": loss})
    rows = rows_of(work, f"{NAME}_settings")
    for method, (loss, count) in sorted(setting_means(rows).items(), key=lambda each: each[1][0]):
        own = [row for row in rows if row["method"] == method]
        jsd = float(np.mean([row["jsd"] for row in own]))
        found.append({"what": method, "to_random": round(loss, 5), "jsd": round(jsd, 6), "trainings": count})
    return found


def _cells(rows: Iterable[Row]) -> dict[tuple[str, float, str], list[Row]]:
    found: dict[tuple[str, float, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["variant"], row["budget"], row["method"]].append(row)
    return found


def _of(rows: Sequence[Row], seed: int) -> Row:
    return next(row for row in rows if row["seed"] == seed)


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


def _where(row: Row) -> Row:
    """Where a row was measured, in short: one line for each of many rows."""
    return {"commit": row["commit"][:12], "gpu": row["hardware"].get("gpu", row["hardware"]["cpu"])}
