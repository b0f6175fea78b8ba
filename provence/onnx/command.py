"""`provence export`: parse, call `export_onnx`, show."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import Annotated

import typer
from typer import Argument, Option

__all__ = ["export"]


def export(
    model: Annotated[str, Argument(help="default, or a folder or hub id of a pruner of our own layout.")],
    out: Annotated[Path, Argument(help="Folder of the export, new or empty; an earlier one is replaced whole.")],
    as_json: Annotated[bool, Option("--json", help="Print one JSON object on standard output, nothing else.")] = False,  # noqa: FBT002 - a switch
) -> None:
    """Write MODEL as an int8 ONNX graph to OUT, to be pruned with where torch is not installed."""
    from provence.onnx.export import export_onnx

    report = export_onnx(model, out)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **report}))
    else:
        typer.echo(f"{out / 'model.onnx'}: {report['graph_bytes'] / 1e6:.1f} MB")
        typer.echo(f'  Pruner.load({str(out)!r}, backend="onnx")')
