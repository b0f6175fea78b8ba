"""The model card: what a pruner saw, how it was trained, and what it reaches.

TrainingConfig, counts of questions, held-out figures -> model_card -> FOLDER/README.md
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from provence.loading import CALIBRATION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from provence.training.config import ModelConfig, TrainingConfig

__all__ = ["model_card", "write_card"]


def model_card(
    config: TrainingConfig,
    taken: Mapping[str, tuple[int, int]],
    held: Mapping[str, Mapping[str, float]],
    *,
    threshold: float,
    settled: bool,
) -> str:
    """The card as Markdown.

    Args:
        config: The run.
        taken: Questions trained on and held out, by source.
        held: Share of characters removed at 90 % recall on held-out questions, by model and source.
        threshold: The model's own.
        settled: Whether held-out questions decided it.
    """
    lines = [f"# {config.name}", "", *_opening(config)]
    why = "chosen on held-out questions; `calibration.json` holds others"
    lines += ["", f"Its own threshold is {threshold:.4g}, {why if settled else 'for too few questions were held out'}."]
    lines += ["", "## Data", ""]
    lines += ["| set | splits | questions | held out | licence |", "|---|---|---|---|---|"]
    for source in config.sources:
        trained, kept = taken.get(source.name, (0, 0))
        cells = [source.name, ", ".join(source.splits), f"{trained:,}", f"{kept:,}", source.licence or "not stated"]
        lines.append(f"| {' | '.join(cells)} |")
    if config.protected:
        lines += [
            "",
            f"Nothing of the test splits of {', '.join(config.protected)} was seen: no title, no document, no",
        ]
        lines += ["question of theirs."]
    lines += [
        "",
        "## Held-out questions",
        "",
        "Share of characters removed when 90 % of the gold sentences are kept.",
        "",
    ]
    names = list(dict.fromkeys(name for figures in held.values() for name in figures))
    lines += [f"| model | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for model, figures in held.items():
        lines.append(f"| {model} | {' | '.join(_share(figures.get(name)) for name in names)} |")
    lines += ["", "## Training", "", *_training(config)]
    return "\n".join(lines) + "\n"


def write_card(
    folder: Path,
    config: TrainingConfig,
    taken: Mapping[str, tuple[int, int]],
    held: Mapping[str, Mapping[str, float]],
    *,
    threshold: float,
) -> None:
    """Write README.md into a model's folder, as `model_card` makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    card = model_card(config, taken, held, threshold=threshold, settled=(folder / CALIBRATION).is_file())
    (folder / "README.md").write_text(card, encoding="utf-8")


def _opening(config: TrainingConfig) -> list[str]:
    stored = f"a {config.bits}-bit difference to" if config.bits else "all weights, from"
    taught = f" It learnt from a teacher trained from {config.teacher.source}." if config.teacher else ""
    return [
        f"A context pruner: {stored} `{config.student.source}`, with a keep probability a token and a relevance score",
        f"a window, windows of up to {config.windows.max_tokens} tokens.{taught}",
    ]


def _training(config: TrainingConfig) -> list[str]:
    lines = [f"Digest of the config: `{config.digest()}`.", "", "| | " + " | ".join(_models(config)) + " |"]
    lines.append("|---" * (len(_models(config)) + 1) + "|")
    for item in dataclasses.fields(config.student.optimiser):
        values = [str(getattr(model.optimiser, item.name)) for model in _models(config).values()]
        lines.append(f"| {item.name} | {' | '.join(values)} |")
    settings = {"windows": config.windows} | ({"distil": config.distil} if config.teacher else {})
    for name, table in settings.items():
        values = [f"{key} {value}" for key, value in dataclasses.asdict(table).items()]
        lines += ["", f"{name}: {', '.join(values)}."]
    return lines


def _models(config: TrainingConfig) -> dict[str, ModelConfig]:
    return ({"teacher": config.teacher} if config.teacher else {}) | {"student": config.student}


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".removeprefix("0")
