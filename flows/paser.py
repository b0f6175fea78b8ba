"""Recovery data as a Prefect flow: the same files, bit for bit, as `datapipe paser POOL --original M --pruned M2`.

The selection is one task; its stages are kept, so a retry costs only what is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prefect import flow, task
from rich.console import Console

import datapipe
from datapipe.paser.options import RecoveryConfig
from datapipe.progress import for_terminal
from datapipe.report.table import to_markdown
from flows.common import TASK_OPTIONS, gpu_slot, show_run


@task(name="select_recovery", **TASK_OPTIONS)
def select(pool: list[str], original: str, pruned: list[str], out: str, options: dict[str, Any]) -> dict[str, Any]:
    """Choose the rows; returns rows by reason and what each stage took."""
    with for_terminal(Console(stderr=True)) as progress:
        found = datapipe.select_recovery(
            pool, original=original, pruned=pruned, out=out, progress=progress, **options
        ).as_dict()
    return {"counts": found["counts"], "timings": found["timings"]}


@flow(name="paser", persist_result=True, result_serializer="json")
def paser_flow(
    pool: str | list[str],
    original: str,
    pruned: str | list[str],
    out: str,
    keep: float | None = None,
    options: dict[str, Any] | None = None,
    gpu_limit: str | None = None,
) -> dict[str, int]:
    """Choose the rows of `pool` that heal `pruned`; the same as `datapipe paser POOL --original M --pruned M2`.

    Args:
        pool: What `datapipe.select_recovery` reads.
        original: The model before it was pruned.
        pruned: What was made of it; the first of several decides.
        out: The run folder.
        keep: Fraction of rows to keep; None takes it from `options`, or 0.2.
        options: Further options of `datapipe.paser.options.RecoveryConfig`.
        gpu_limit: Name of a global concurrency limit of which the task takes one slot.

    Returns:
        Rows by reason; the sum is the number of rows read.
    """
    given = {**(options or {}), **({} if keep is None else {"keep": keep})}
    RecoveryConfig.from_mapping(given)
    files, models = ([each] if isinstance(each, str) else each for each in (pool, pruned))
    with gpu_slot(gpu_limit):
        found = select(files, original, models, out, given)
    show_run("paser", table=to_markdown(Path(out), timings=found["timings"]), report=Path(out) / "report.html")
    counts: dict[str, int] = found["counts"]
    return counts


def main() -> None:
    """Run the flow from a shell: `python -m flows.paser POOL --original M --pruned M2 --out DIR [--keep F] …`."""
    parser = argparse.ArgumentParser(prog="python -m flows.paser", description=paser_flow.description)
    parser.add_argument("pool", nargs="+", help="Instructions with responses, or chats.")
    parser.add_argument("--original", required=True, help="The model before it was pruned.")
    parser.add_argument("--pruned", required=True, action="append", help="What was made of it; repeat it.")
    parser.add_argument("--out", required=True, help="Folder of the run. A run begun there is resumed.")
    parser.add_argument("--keep", type=float, help="Fraction of rows to keep, 0 < keep <= 1; default 0.2.")
    parser.add_argument("--method", help="ours, paper, or a baseline.")
    given = vars(parser.parse_args())
    method = given.pop("method")
    paser_flow(**given, options=None if method is None else {"method": method})


if __name__ == "__main__":
    main()
