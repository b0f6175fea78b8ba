"""Curate a data set as a Prefect flow: the same run, bit for bit, as `datapipe curate SOURCE --out OUT`.

Each stage is a task that takes a path and options, makes one library call and returns counts. A stage that is done is
not done again, so a retry costs only what is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast, get_args

from prefect import flow, task
from rich.console import Console

from datapipe.config import CurateConfig, CurateOptions, ExecutorName
from datapipe.curation import Curation
from datapipe.progress import for_terminal
from datapipe.report.table import print_summary, to_markdown
from flows.common import TASK_OPTIONS, gpu_slot, show_run


@task(name="stage", task_run_name="{stage}", **TASK_OPTIONS)
def run_stage(source: str, out: str, options: CurateOptions, stage: str, executor: ExecutorName) -> dict[str, Any]:
    """Bring one stage of the run in `out` up to date; returns its rows, seconds and whether it had been done before."""
    with for_terminal(Console(stderr=True)) as progress:
        return Curation(source, out=out, executor=executor, **options).run_stage(stage, progress=progress)


@task(name="publish", **TASK_OPTIONS)
def publish(source: str, out: str, options: CurateOptions, executor: ExecutorName) -> dict[str, int]:
    """Make the finished stages the result of the run in `out`; returns rows by reason."""
    return Curation(source, out=out, executor=executor, **options).publish().counts


@flow(name="curate", persist_result=True, result_serializer="json")
def curate_flow(
    source: str,
    out: str,
    keep: float | None = None,
    options: dict[str, Any] | None = None,
    gpu_limit: str | None = None,
    executor: ExecutorName = "local",
) -> dict[str, int]:
    """Curate `source` into `out`; the same run as `datapipe curate SOURCE --out OUT --keep KEEP`.

    Args:
        source: What `datapipe.curate` reads.
        out: The run folder.
        keep: Fraction of rows to keep; None takes it from `options`, or 0.3.
        options: Further options of `datapipe.CurateConfig`.
        gpu_limit: Name of a global concurrency limit of which each stage takes one slot.
        executor: `local`, or `ray`: the cluster at `RAY_ADDRESS`, else one that each stage starts for itself.

    Returns:
        Rows by reason; the sum is the number of rows read.
    """
    given = {**(options or {}), **({} if keep is None else {"keep": keep})}
    CurateConfig.from_mapping(given, origin="flow parameters")
    asked = cast("CurateOptions", given)
    timings = []
    for stage in Curation(source, out=out, executor=executor, **asked).stage_names:
        with gpu_slot(gpu_limit):
            timings.append(run_stage(source, out, asked, stage, executor))
    counts = publish(source, out, asked, executor)
    show_run("curate", table=to_markdown(Path(out), timings=timings), report=Path(out) / "report.html")
    print_summary(Path(out), timings=timings, console=Console())
    return counts


def main() -> None:
    """Run the flow from a shell: `python -m flows.curate SOURCE --out DIR [--keep F] [--text-column C] …`."""
    parser = argparse.ArgumentParser(prog="python -m flows.curate", description=curate_flow.description)
    parser.add_argument("source", help="Parquet, CSV, JSON Lines or Arrow; a folder or glob works.")
    parser.add_argument("--out", required=True, help="Folder of the run. A run begun there is resumed.")
    parser.add_argument("--keep", type=float, help="Fraction of rows to keep, 0 < keep <= 1; default 0.3.")
    parser.add_argument("--text-column", help="Column with the text to embed.")
    parser.add_argument("--label-column", help="Column with class labels.")
    parser.add_argument("--executor", choices=get_args(ExecutorName), default="local", help="Where shards are made.")
    arguments = vars(parser.parse_args())
    source, out, keep, executor = (arguments.pop(name) for name in ("source", "out", "keep", "executor"))
    options = {name: value for name, value in arguments.items() if value is not None}
    curate_flow(source, out, keep=keep, options=options, executor=executor)


if __name__ == "__main__":
    main()
