"""Which rows heal a pruned model: nine ways to choose 5, 10 and 20 % of a pool, at equal tokens and steps.

    pack (any host) -> data.parquet -> prepare -> scores -> rates, settle -> settings, settle -> table -> merge

`rates` and `settings` are trained on and read by validation rows alone; `settle` freezes what they chose; `table` reads
the test rows. `--shard i/n` takes every n-th training, so that n processes, several a GPU, share a stage; each writes
results-I/NAME.json under the work folder, and a finished row is never measured again.

Run: python -m benchmarks.paser_recovery STAGE --work FOLDER [--device cuda] [--shard 0/4] [--limit-seconds 500].
FOLDER/models/original is SmolLM2-135M-Instruct; `pack` is told by --data where the public sets lie.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import paser_data, paser_plans, paser_scores, paser_tables
from benchmarks.paser_plans import Run
from datapipe.storage.digest import digest_of, file_sha256

STAGES = ("pack", "prepare", "scores", "rates", "settings", "settle", "references", "table", "merge")
NAMES = {
    "rates": "paser_recovery_rates",
    "settings": "paser_recovery_settings",
    "references": paser_tables.ROWS,
    "table": paser_tables.ROWS,
}


def main() -> None:
    options = _options()
    options.deadline = time.perf_counter() + options.limit_seconds
    stage = options.stage
    if stage == "pack":
        print(
            json.dumps(paser_data.pack(options.data, options.work / paser_scores.DATA, scale=options.scale), indent=1)
        )
    elif stage == "prepare":
        paser_scores.prepare(
            options.work, max_length=options.max_length, device=options.device, clusters=options.clusters
        )
    elif stage == "scores":
        for variant in _shard(options, list(_variants(options))):
            paser_scores.score(options.work, variant, device=options.device)
    elif stage == "settle":
        paser_tables.settle(options.work)
    elif stage == "merge":
        paser_tables.merge(options.work)
    else:
        _train(options)


def _train(options: argparse.Namespace) -> None:
    from benchmarks.paser_bench import Bench

    name = NAMES[options.stage]
    done = {row["digest"] for row in paser_tables.rows_of(options.work, name)}
    runs = [run for run in _runs(options) if digest_of(run.config) not in done]
    own = _shard(options, runs)
    print(f"{options.stage}: {len(runs)} trainings are to be done, {len(own)} here", flush=True)
    if own:
        # A variant stays loaded while its trainings last.
        Bench(options).measure(name, own, done)


def _runs(options: argparse.Namespace) -> list[Run]:
    base = _base(options)
    variants, budgets = _variants(options), _budgets(options)
    if options.stage == "rates":
        return [*paser_plans.rate_runs(base, variants), *(_untrained(base, variant) for variant in variants)]
    rates = _frozen(options.work, "rates")
    if options.stage == "settings":
        return list(
            paser_plans.setting_runs(
                base, variants, budgets, range(options.seeds), rates, _frozen(options.work, "pilots")
            )
        )
    if options.stage == "references":
        return list(paser_plans.reference_runs(base, variants, rates, options.seeds))
    ours = _frozen(options.work, "ours")
    pilots = _frozen(options.work, "pilots")
    return list(paser_plans.table_runs(base, variants, budgets, options.seeds, rates, ours, pilots))


def _untrained(base: Run, variant: str) -> Run:
    return replace(base, variant=variant, method="none", budget=0.0, rate=0.0)


def _base(options: argparse.Namespace) -> Run:
    data = (
        file_sha256(options.work / paser_scores.DATA)[:16],
        paser_scores.model_folder(options.work, paser_plans.ORIGINAL).digest[:16],
        file_sha256(options.work / "clusters.npz")[:16],
    )
    return Run(
        variant="",
        method="",
        budget=0.0,
        seed=0,
        part="validation",
        rate=0.0,
        batch_tokens=options.batch_tokens,
        max_length=options.max_length,
        setting=None,
        data=data,
    )


def _frozen(work: Path, name: str) -> dict[str, Any]:
    path = work / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path} is not there: run `settle` after the stage before")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _variants(options: argparse.Namespace) -> tuple[str, ...]:
    asked = options.variants or ",".join(
        paser_plans.SETTING_VARIANTS if options.stage == "settings" else paser_plans.VARIANTS
    )
    return tuple(asked.split(","))


def _budgets(options: argparse.Namespace) -> tuple[float, ...]:
    if options.budgets:
        return tuple(float(each) for each in options.budgets.split(","))
    return paser_plans.SETTING_BUDGETS if options.stage == "settings" else paser_plans.BUDGETS


def _shard(options: argparse.Namespace, what: list[Any]) -> list[Any]:
    shard, shards = (int(each) for each in options.shard.split("/"))
    return what[shard::shards]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="pack: folder of the public sets")
    parser.add_argument("--scale", type=float, default=1.0, help="pack: part of the rows, for a rehearsal")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--limit-seconds", type=float, default=1e9)
    parser.add_argument("--variants", default="")
    parser.add_argument("--budgets", default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clusters", type=int, help="prepare: number of clusters; default: found")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=512)
    return parser.parse_args()


if __name__ == "__main__":
    main()
