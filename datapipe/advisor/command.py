"""`datapipe advise SOURCE`: parse, call `advise`, show."""

from __future__ import annotations

import json
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape
from typer import Argument, Option

if TYPE_CHECKING:
    from datapipe.advisor.decide import Advice


def advise_command(  # noqa: PLR0913 - an option each
    source: Annotated[str, Argument(help="Parquet, CSV, JSON Lines or Arrow; a folder or glob works.")],
    keep: Annotated[
        float | None, Option(help="Fraction to keep, 0 < keep <= 1; left out, the advice says how far to go.")
    ] = None,
    text_column: Annotated[str | None, Option(help="Text; default 'text' or the only string column.")] = None,
    embedding_column: Annotated[str | None, Option(help="Vectors in the source; then nothing is embedded.")] = None,
    label_column: Annotated[
        str | None, Option(help="Class labels; without it no method that needs labels is considered.")
    ] = None,
    image_column: Annotated[
        str | None, Option(help="Images; default the first column of bytes in a source without text.")
    ] = None,
    *,
    teacher: Annotated[bool, Option("--teacher", help="A teacher's soft labels will go with the rows kept.")] = False,
    parameters: Annotated[int | None, Option(help="Parameters of the model to be trained.")] = None,
    pilot: Annotated[
        bool, Option("--pilot", help="Try windows on a sample of at most 4,000 rows first; needs labels.")
    ] = False,
    evidence: Annotated[Path | None, Option(help="JSON file in place of the published evidence.")] = None,
    model: Annotated[
        str, Option(help="Embedder for the sample: default, a folder, or a cached hub id; images need a vision model.")
    ] = "default",
    device: Annotated[str | None, Option(help="auto, cpu, cuda, cuda:1.")] = None,
    seed: Annotated[int, Option(help="Of the pilot's splits.")] = 0,
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON object on standard output and nothing else.")
    ] = False,
) -> None:
    """Say how much of SOURCE to keep, with which method and why, and print the command."""
    from datapipe.advisor.run import advise

    advice = advise(
        source,
        keep=keep,
        text_column=text_column,
        embedding_column=embedding_column,
        label_column=label_column,
        image_column=image_column,
        teacher=teacher,
        parameters=parameters,
        pilot=pilot,
        evidence=evidence,
        model=model,
        device=device,
        seed=seed,
    )
    if as_json:
        sys.stdout.write(json.dumps(advice.as_dict(), ensure_ascii=False, indent=1) + "\n")
        return
    _show(advice)


def _show(advice: Advice) -> None:
    out, err = Console(), Console(stderr=True)
    out.print(f"Keep [bold]{advice.keep:.0%}[/] with [bold]{advice.preset}[/]", highlight=False)
    for name, value in advice.facts.as_dict().items():
        if value is not None:
            shown = f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
            out.print(f"  {name.replace('_', ' ')}: {shown}", highlight=False)
    for sentence in advice.why:
        out.print(f"- {escape(sentence)}", highlight=False)
    if advice.pilot is not None and advice.pilot.curve is not None:
        curve = advice.pilot.curve
        out.print(
            f"- Random rows by the pilot's curve ({curve.form}): error {curve.error:.1%} at {curve.at:,} rows, "
            f"{curve.low:.1%} to {curve.high:.1%}; beyond the sample it is a guess.",
            highlight=False,
        )
    for warning in advice.warnings:
        err.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
    out.print(f"\n{escape(advice.command)}", highlight=False, soft_wrap=True)
