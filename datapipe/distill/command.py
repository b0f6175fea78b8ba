"""`datapipe soft-labels RUN --teacher MODEL`: parse, call `soft_labels`, show."""

from __future__ import annotations

import json
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape
from typer import Argument, Exit, Option

if TYPE_CHECKING:
    from datapipe.distill.run import SoftLabelResult

INTERRUPTED = 130


def soft_labels_command(  # noqa: PLR0913, PLR0917 - an option each
    run: Annotated[Path, Argument(help="Folder of a finished run.")],
    teacher: Annotated[
        list[str],
        Option(
            help="head (trained on the run's vectors and labels), a classifier or a causal language model: a folder or "
            "a cached hub id. Repeat it to average several."
        ),
    ],
    top_k: Annotated[
        int | None, Option(help="Store the k most probable classes and the mass of the rest; 4 bytes each.")
    ] = None,
    dense: Annotated[bool, Option("--dense", help="Store every class, 2 bytes each; the default up to 128.")] = False,  # noqa: FBT002
    sampled: Annotated[
        int | None, Option(help="Store so many draws of each distribution; unbiased, the default for tokens (64).")
    ] = None,
    wide: Annotated[bool, Option("--wide", help="Allow --dense for more than 128 classes.")] = False,  # noqa: FBT002
    rows: Annotated[str, Option(help="kept, or all: then another budget of this run needs no teacher.")] = "kept",
    task: Annotated[str, Option(help="auto, classify or causal; auto looks at the model.")] = "auto",
    label_map: Annotated[
        Path | None, Option(help="JSON: {teacher's name: run's label}, or the run's labels in the teacher's order.")
    ] = None,
    prompt_column: Annotated[str | None, Option(help="Causal: what stands before each response.")] = None,
    response_column: Annotated[
        str | None, Option(help="Causal: what is taught; without it the run's whole texts are.")
    ] = None,
    tokenizer: Annotated[
        str | None, Option(help="Causal, behind --workers: the model whose tokenizer the teacher uses.")
    ] = None,
    folds: Annotated[
        int, Option(help="head: parts of the rows, each judged by a head that has not seen it; 1 lets it see all.")
    ] = 5,
    contradiction: Annotated[
        float, Option(help="Probability of another class from which a row's label counts for nothing.")
    ] = 0.9,
    noise: Annotated[
        float | None, Option(help="Share of wrong labels, if known; raises the recommended alpha.")
    ] = None,
    device: Annotated[str | None, Option(help="auto, cpu, cuda, cuda:1.")] = None,
    workers: Annotated[str | None, Option(help="URL of a `datapipe serve` that runs the teachers.")] = None,
    seed: Annotated[int, Option(help="Of draws, folds and heads.")] = 0,
    *,
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON object on standard output and nothing else.")
    ] = False,
) -> None:
    """Ask teachers about the rows of RUN; writes RUN/soft_labels.parquet and RUN/teacher_scores.parquet."""
    from datapipe.distill.run import soft_labels
    from datapipe.progress import for_terminal

    console = Console(stderr=True)
    asked = {
        "teacher": teacher,
        "top_k": top_k,
        "dense": dense,
        "sampled": sampled,
        "wide": wide,
        "rows": rows,
        "task": task,
        "label_map": label_map,
        "prompt_column": prompt_column,
        "response_column": response_column,
        "tokenizer": tokenizer,
        "folds": folds,
        "contradiction": contradiction,
        "noise": noise,
        "device": device,
        "workers": workers,
        "seed": seed,
    }
    try:
        with for_terminal(console) as progress:
            found = soft_labels(run, progress=progress, **asked)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        console.print("interrupted; run the same command again to go on where it stopped")
        raise Exit(INTERRUPTED) from None
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), ensure_ascii=False, indent=1, allow_nan=False) + "\n")
        return
    for line in told(found):
        Console().print(escape(line), highlight=False, soft_wrap=True)


def told(found: SoftLabelResult) -> list[str]:
    """What was stored, in sentences."""
    facts = found.facts
    header, alpha = facts["header"], facts["alpha"]
    teachers = " + ".join(teacher["name"] for teacher in header["teachers"])
    size = "" if facts["bytes_a_row"] is None else f", {facts['bytes_a_row']:,.1f} bytes a row"
    speed = "" if found.rows_per_second is None else f", {found.rows_per_second:,.0f} rows/s"
    kind = "classes" if header["level"] == "row" else "tokens"
    what = f"{header['mode']} of {header['classes']:,} {kind}"
    lines = [f"{facts['rows']:,} rows ({facts['of']}) by {teachers}: {what}{size}{speed}"]
    if facts["labelled"]:
        lines.append(
            f"{facts['disagreeing']:,} of {facts['labelled']:,} labels are not the teacher's first choice; "
            f"{facts['contradicted']:,} are contradicted with at least {facts['contradiction']:g} and have alpha 1"
        )
    lines.append(
        f"alpha {alpha['value']:.2f} ({alpha['low']:.2f}-{alpha['high']:.2f}) at {alpha['fraction']:.1%} of the rows: "
        f"{alpha['rests_on']}"
    )
    lines.append(str(found.path))
    return lines
