"""`datapipe prove RUN --test FILE`: parse, call `prove`, show."""

from __future__ import annotations

import json
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated, Literal

from rich.console import Console
from rich.markup import escape
from typer import Argument, Option


def prove_command(  # noqa: PLR0913, PLR0917 - an option each
    run: Annotated[Path, Argument(help="Folder of a finished run that was given --label-column.")],
    test: Annotated[
        Path, Option(help="Labelled rows from outside the run; kept rows were chosen with a view to all rows of it.")
    ],
    trainer: Annotated[
        Literal["head", "finetune", "network"],
        Option(
            help="head: linear heads on the run's vectors. finetune: a transformer on its texts. network: a small "
            "ResNet on its images. The last two are for a GPU: on a CPU, take few steps."
        ),
    ] = "head",
    model: Annotated[
        str, Option(help="For finetune: default (the embedded all-MiniLM-L6-v2), a local folder, or a hub id.")
    ] = "default",
    label_column: Annotated[str | None, Option(help="Labels of the test file; default: the run's column.")] = None,
    text_column: Annotated[str | None, Option(help="Texts of the test file; default: the run's column.")] = None,
    image_column: Annotated[str | None, Option(help="Images of the test file; default: the run's column.")] = None,
    seeds: Annotated[int, Option(help="Trainings an arm, at least 2; fewer make wider intervals.")] = 5,
    steps: Annotated[
        int | None,
        Option(help="Updates of every training, whatever the rows; default 1,000, and 300 to fine-tune."),
    ] = None,
    batch_rows: Annotated[
        int | None, Option(help="Rows of an update; default 128 for a head, 32 to fine-tune, 512 for a network.")
    ] = None,
    device: Annotated[str | None, Option(help="auto, cpu, cuda, cuda:1.")] = None,
    *,
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON object on standard output and nothing else.")
    ] = False,
) -> None:
    """Train the same model on kept, random and all rows, and say whether they differ; writes RUN/proof.html."""
    from datapipe.proof.page import sentence
    from datapipe.proof.run import prove

    found = prove(
        run,
        test,
        trainer=trainer,
        model=model,
        label_column=label_column,
        text_column=text_column,
        image_column=image_column,
        seeds=seeds,
        steps=steps,
        batch_rows=batch_rows,
        device=device,
    )
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), ensure_ascii=False, indent=1, allow_nan=False) + "\n")
        return
    out, err = Console(), Console(stderr=True)
    for arm in found.arms:
        width = 100 * (arm.accuracy.high - arm.accuracy.mean)
        out.print(
            f"{arm.name:7} {arm.rows:>9,} rows  {100 * arm.accuracy.mean:.2f} ± {width:.2f} %  "
            f"worst class {100 * arm.worst_class.mean:.1f} %",
            highlight=False,
        )
    out.print(sentence("random rows of the same number", found.against_random), highlight=False)
    out.print(sentence("all rows", found.against_full), highlight=False)
    for warning in found.warnings:
        err.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
