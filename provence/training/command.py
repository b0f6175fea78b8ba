"""`provence train`: parse, call `run_training`, show."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import Annotated

import typer
from typer import Argument, Option

__all__ = ["train"]


def train(
    config: Annotated[Path, Argument(help="TOML: sources, windows, student, and perhaps teacher and distil.")],
    *,
    data: Annotated[Path, Option(help="Folder of the sets that it names, NAME.parquet each.")],
    out: Annotated[Path, Option(help="Folder of the result; a run that was broken off there goes on.")],
    teacher_base: Annotated[
        str | None, Option(help="Folder or hub id of the teacher's base, instead of the config's.")
    ] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    processes: Annotated[int, Option(help="Processes that draw windows ahead; 0 draws when needed.")] = 0,
    checkpoint_every: Annotated[int, Option(help="Updates between two checkpoints; 0 writes none.")] = 500,
    as_json: Annotated[bool, Option("--json", help="Print the held-out figures as one JSON object.")] = False,
) -> None:
    """Train a pruner as CONFIG says and write it with its card to OUT/model; figures while training: OUT/*.jsonl."""
    from datapipe.workers.device import resolve_devices
    from provence.training.config import load_config
    from provence.training.pipeline import Host, run_training

    run = load_config(config)
    found = run_training(
        run,
        data,
        Host(out, processes=processes, checkpoint_every=checkpoint_every),
        device=resolve_devices(device)[0],
        teacher_base=teacher_base,
        tell=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        typer.echo(json.dumps({"model": str(out / "model"), "removed_at_90": found}))
