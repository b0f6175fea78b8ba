"""`provence labels`: parse, call `make_labels`, show."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from provence.training.silver import Labeller
    from provence.training.silver_report import LabelReport

__all__ = ["labels"]


def labels(  # noqa: PLR0913, PLR0917 - each is an option of the command
    source: Annotated[Path, Argument(help="Parquet or JSON Lines with the columns question and context.")],
    out: Annotated[Path, Option(help="Folder of the result; a run that was broken off there goes on.")],
    model: Annotated[
        str | None, Option(help="Causal language model: a folder or hub id; with --endpoint, its name there.")
    ] = None,
    endpoint: Annotated[
        str | None, Option(help="OpenAI-compatible address such as http://127.0.0.1:8000/v1, instead of a local model.")
    ] = None,
    key_variable: Annotated[
        str, Option(help="Environment variable that holds the endpoint's key; unset sends none.")
    ] = "OPENAI_API_KEY",
    limit: Annotated[int | None, Option(help="Passages labelled at most; default: all.")] = None,
    sentences: Annotated[int, Option(help="Sentences of a passage at most; longer contexts are cut.")] = 10,
    max_new_tokens: Annotated[
        int, Option(help="Tokens of a reply at most; longer ones are rejected as cut off.")
    ] = 256,
    concurrency: Annotated[int, Option(help="Requests to the endpoint at a time.")] = 8,
    timeout: Annotated[float, Option(help="Seconds after which a silent endpoint is tried again.")] = 120.0,
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N, for a local model.")] = "auto",
    as_json: Annotated[bool, Option("--json", help="Print one JSON object on standard output, nothing else.")] = False,  # noqa: FBT002 - a switch
) -> None:
    """Let a language model mark the sentences that answer each question of SOURCE, as rows to train a pruner on."""
    from provence.training.silver import make_labels
    from provence.training.silver_source import check_source

    check_source(source)  # before a model is loaded
    labeller = _labeller(
        model,
        endpoint,
        key_variable=key_variable,
        max_new_tokens=max_new_tokens,
        concurrency=concurrency,
        timeout=timeout,
        device=device,
    )

    def show(done: int) -> None:
        typer.echo(f"{done:,} passages", err=True)

    report = make_labels(
        source, labeller, out=out, sentences=sentences, limit=limit, progress=None if as_json else show
    )
    typer.echo(json.dumps(asdict(report)) if as_json else _shown(report, out))


def _labeller(
    model: str | None,
    endpoint: str | None,
    *,
    key_variable: str,
    max_new_tokens: int,
    concurrency: int,
    timeout: float,
    device: str,
) -> Labeller:
    if model is None:
        needed = (
            "name the model that it serves with --model" if endpoint else "give --model, or --endpoint with --model"
        )
        raise ConfigError(f"labels need a language model: {needed}")
    if endpoint is None:
        from provence.training.silver_local import LocalLabeller

        return LocalLabeller(model, device=device, max_new_tokens=max_new_tokens)
    if device != "auto":
        raise ConfigError("--device is for a local model; the endpoint computes where it stands")
    from provence.training.silver_endpoint import EndpointLabeller

    return EndpointLabeller(
        endpoint,
        model,
        key_variable=key_variable,
        max_new_tokens=max_new_tokens,
        concurrency=concurrency,
        timeout=timeout,
    )


def _shown(report: LabelReport, out: Path) -> str:
    lines = [
        f"{report.labelled:,} of {report.passages:,} passages labelled by {report.model}: {out / 'labels.parquet'}",
        f"  replies that could be read   {report.parse_rate:7.1%}   ({report.asked:,} of {report.replies:,} asked now)",
        f"  sentences kept               {report.kept:7.1%}   ({report.nothing_relevant:,} passages keep none)",
        f"  citations out of range       {report.out_of_range:7,} of {report.citations:,}",
    ]
    if report.rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in report.rejected.items())
        lines.append(f"  rejected                     {reasons}")
    found = report.agreement
    if found is not None:
        lines.append(
            f"  against human labels         precision {found.precision:.3f}, recall {found.recall:.3f}, "
            f"F1 {found.f1:.3f}, kappa {found.kappa:.3f} ({found.sentences:,} sentences of {found.rows:,} passages)"
        )
    return "\n".join(lines)
