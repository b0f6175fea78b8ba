"""Refresh a pruner as a Prefect flow: train it again on new labelled data, calibrate it anew, or both.

Training goes on from its last checkpoint and a calibration is written whole, so a retry costs only what is missing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from datapipe.errors import ConfigError
from flows.common import TASK_OPTIONS, gpu_slot
from provence.evaluation.refresh import recalibrate, retrain

MANIFEST = "manifest.json"

OPTIONS = ("split", "check_split", "recall", "limit")
"""Of `provence.evaluation.refresh.recalibrate`."""


@task(name="train", **TASK_OPTIONS)
def train(config: str, data: str, out: str, device: str) -> dict[str, Any]:
    """Train a pruner into `out`; returns its folder and its held-out figures."""
    return retrain(config, data, out, device=device)


@task(name="calibrate", **TASK_OPTIONS)
def calibrate(model: str, sets: list[str], out: str, options: dict[str, Any]) -> dict[str, Any]:
    """Calibrate a model on `sets` and check the promise; returns file, threshold and what was achieved."""
    return recalibrate(model, sets, out, **options)


@flow(name="refresh-pruner", persist_result=True, result_serializer="json")
def refresh_pruner(
    out: str,
    model: str = "default",
    sets: list[str] | None = None,
    config: str | None = None,
    data: str | None = None,
    options: dict[str, Any] | None = None,
    device: str = "auto",
    gpu_limit: str | None = None,
) -> dict[str, Any]:
    """Train and calibrate a pruner; as `provence train CONFIG --data DATA --out OUT`, then `provence calibrate SETS`.

    Args:
        out: Folder of the result.
        model: What is calibrated where nothing is trained.
        sets: Labelled sets, Parquet: calibrated on their `train` split, checked on `test`; None keeps the calibration.
        config: Training to run first, TOML; its model is then the one calibrated.
        data: Folder of the sets that the config names.
        options: Of the calibration: `split`, `check_split`, `recall` (checked; 0.9), `limit` (questions of a set).
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        gpu_limit: Name of a global concurrency limit of which each task takes one slot.

    Returns:
        The manifest, which is also written to `out`/manifest.json.
    """
    if (config is None) != (data is None) or not (config or sets):
        raise ConfigError("flow parameters: give config with data to train, sets to calibrate on, or all three")
    strange = sorted(set(options or {}) - set(OPTIONS))
    if strange:
        raise ConfigError(f"flow parameters: unknown option {strange[0]!r}; there are {', '.join(OPTIONS)}")
    found: dict[str, Any] = {"model": model}
    if config is not None and data is not None:
        with gpu_slot(gpu_limit):
            found |= train(config, data, out, device)
    if sets:
        where = out if config is None else found["model"]
        with gpu_slot(gpu_limit):
            found |= calibrate(found["model"], sets, where, {**(options or {}), "device": device})
    create_markdown_artifact(key="refresh-pruner", markdown=_table(found), description="Figures of the pruner.")
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / MANIFEST).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _table(found: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    rows = ["| | recall | 95 % interval | characters removed |", "|---|---|---|---|"]
    for name, each in found.get("checked", {}).items():
        span = f"{each['recall_low']:.3f}-{each['recall_high']:.3f}"
        rows.append(f"| {name}, at {each['threshold']:.4f} | {each['recall']:.3f} | {span} | {each['removed']:.3f} |")
    for name, figures in found.get("held_out", {}).items():
        rows.append(f"| {name}, held out: {', '.join(f'{key} {value:.3f}' for key, value in figures.items())} | | | |")
    return "\n".join([f"Model `{found['model']}`", "", *rows])


def main() -> None:
    """Run the flow from a shell: `python -m flows.refresh_pruner --out DIR [SET …] [--config C --data D] …`."""
    parser = argparse.ArgumentParser(prog="python -m flows.refresh_pruner", description=refresh_pruner.description)
    parser.add_argument("sets", nargs="*", help="Labelled sets to calibrate on and to check on, Parquet.")
    parser.add_argument("--out", required=True, help="Folder of the result.")
    parser.add_argument("--model", default="default", help="default, a folder, or a cached hub id.")
    parser.add_argument("--config", help="Training to run first, TOML; with --data.")
    parser.add_argument("--data", help="Folder of the sets that the config names.")
    parser.add_argument("--recall", type=float, default=0.9, help="Share of the gold sentences that is checked.")
    parser.add_argument("--limit", type=int, help="Questions of a set and split, at most; default: all.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
    arguments = vars(parser.parse_args())
    options = {name: arguments.pop(name) for name in ("recall", "limit")}
    refresh_pruner(**arguments, options=options)


if __name__ == "__main__":
    main()
