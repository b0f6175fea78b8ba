"""Soft labels as a Prefect flow: the same files, bit for bit, as `datapipe soft-labels RUN --teacher TEACHER`.

With a source the run is curated first, as a flow of its own. The teachers' pass is one task; its parts are kept, so a
retry costs only what is missing.
"""

from __future__ import annotations

import argparse
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

import datapipe
from datapipe.distill.command import told
from datapipe.errors import ConfigError
from flows.common import TASK_OPTIONS, gpu_slot
from flows.curate import curate_flow

OPTIONS = (
    *("top_k", "dense", "sampled", "wide", "rows", "task", "label_map", "prompt_column", "response_column"),
    *("tokenizer", "folds", "contradiction", "noise", "device", "workers", "seed"),
)
"""Of `datapipe.soft_labels`."""


@task(name="teach", **TASK_OPTIONS)
def teach(run: str, teachers: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Ask the teachers about the rows of `run`; returns what its manifest says of the labels, and the same in words."""
    found = datapipe.soft_labels(run, teacher=teachers, **options)
    return {"soft_labels": dict(found.facts), "told": told(found)}


@flow(name="distill", persist_result=True, result_serializer="json")
def distill_flow(
    out: str,
    teacher: str | list[str] = "head",
    source: str | None = None,
    keep: float | None = None,
    curate_options: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    gpu_limit: str | None = None,
) -> dict[str, Any]:
    """Label the kept rows of the run in `out`; the same as `datapipe soft-labels OUT --teacher TEACHER`.

    Args:
        out: Folder of a finished run, or of the one to make.
        teacher: `head`, a model, or several.
        source: Curated into `out` first; None takes the run that is there.
        keep: Fraction of rows to keep, with a source.
        curate_options: Further options of `datapipe.CurateConfig`, with a source; soft labels level the selectors, so
            `strategy: random` is a good one.
        options: Options of `datapipe.soft_labels`.
        gpu_limit: Name of a global concurrency limit of which each task takes one slot.

    Returns:
        What the run's manifest says of the labels.
    """
    strange = sorted(set(options or {}) - set(OPTIONS))
    if strange:
        raise ConfigError(f"flow parameters: unknown option {strange[0]!r}; there are {', '.join(OPTIONS)}")
    if source is None and (keep is not None or curate_options):
        raise ConfigError("flow parameters: keep and curate_options are for a source, and none is given")
    if source is not None:
        curate_flow(source, out, keep=keep, options=curate_options, gpu_limit=gpu_limit)
    with gpu_slot(gpu_limit):
        found = teach(out, [teacher] if isinstance(teacher, str) else teacher, options or {})
    lines = "\n".join(f"- {line}" for line in found["told"])
    create_markdown_artifact(key="distill", markdown=lines, description="What was stored, and what alpha rests on.")
    facts: dict[str, Any] = found["soft_labels"]
    return facts


def main() -> None:
    """Run the flow from a shell: `python -m flows.distill DIR [--teacher MODEL …] [--source SOURCE --keep F] …`."""
    parser = argparse.ArgumentParser(prog="python -m flows.distill", description=distill_flow.description)
    parser.add_argument("out", help="Folder of the run.")
    parser.add_argument("--teacher", action="append", help="head, or a model; repeat it to average several.")
    parser.add_argument("--source", help="Curated into the folder first.")
    parser.add_argument("--keep", type=float, help="Fraction of rows to keep, 0 < keep <= 1; with --source.")
    parser.add_argument("--text-column", help="Column with the text to embed; with --source.")
    parser.add_argument("--label-column", help="Column with class labels; with --source.")
    given = vars(parser.parse_args())
    columns = {name: given.pop(name) for name in ("text_column", "label_column")}
    chosen = {name: value for name, value in columns.items() if value is not None}
    distill_flow(
        given["out"],
        teacher=given["teacher"] or "head",
        source=given["source"],
        keep=given["keep"],
        curate_options=chosen or None,
    )


if __name__ == "__main__":
    main()
