"""`datapipe.prove`: train on the rows a run kept, on random rows and on all of them, and say what the difference is.

    run folder, test file -> rows and test rows -> a trainer -> `datapipe.proof.arms` -> RUN/proof.json, RUN/proof.html

Rows to learn from are those that the run could have kept: rows excluded as repeats, matches or unscored are in no arm.
The test rows come from outside the run: kept rows were chosen with a view to all rows of the run, so none of them is a
fair test. Raises `ConfigError` for options, `ColumnError` for labels that are not there, `MetricError` where nothing
can be learnt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from datapipe.errors import ConfigError
from datapipe.proof.arms import ARMS, Arm, Proof, compare
from datapipe.proof.heads import HeadRecipe, HeadTrainer

if TYPE_CHECKING:
    import os

    from datapipe.proof.arms import Trainer
    from datapipe.proof.rows import HeldRows, RunRows
    from datapipe.runs import CurateResult

__all__ = ["ARMS", "TRAINERS", "Arm", "Proof", "TrainerName", "compare", "prove"]

TrainerName: TypeAlias = Literal["head", "finetune", "network"]
TRAINERS: tuple[TrainerName, ...] = get_args(TrainerName)
FEWEST_SEEDS = 2
_NO_SCORING = ("export", "report")


def prove(  # noqa: PLR0913 - run and test; the rest by keyword
    run: str | os.PathLike[str],
    test: str | os.PathLike[str],
    *,
    trainer: TrainerName = "head",
    model: str = "default",
    label_column: str | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    seeds: int = 5,
    steps: int | None = None,
    batch_rows: int | None = None,
    device: str | None = None,
) -> Proof:
    """Train on kept, random and all rows, write RUN/proof.json and RUN/proof.html, and return the outcome.

    The verdicts also become a section of RUN/report.html, as long as the run keeps the same rows.

    Args:
        run: Folder of a finished run that was given a label column.
        test: Parquet, CSV, JSON Lines or Arrow with labelled rows that are not in the run.
        trainer: `head`, linear heads on the run's vectors; `finetune`, a transformer on its texts; or `network`, a
            small ResNet from scratch on its images.
        model: For `finetune`: `default` (the embedder that comes with the package), a local folder, or a hub id.
        label_column: Of the test file; that of the run by default.
        text_column: Of the test file; that of the run by default.
        image_column: Of the test file; that of the run by default.
        seeds: Trainings an arm, >= 2.
        steps: Updates of every training; None takes 1,000, and 300 of a transformer.
        batch_rows: Rows of an update; None takes 128 for a head, 32 for a transformer, 512 for a network.
        device: Where test rows are embedded and models trained: auto, cpu, cuda; default from `DATAPIPE_DEVICE`.

    Raises:
        ConfigError: An option is unknown or out of range.
        ColumnError: The run or the test file has no labels, or the run no vectors or texts.
        MetricError: There is nothing to learn: one class, or no test row of a known class.
        ModelError: The model is no encoder.
        SourceError: The run or the test file cannot be read.
        LockedError: Another process is writing to the run folder; proof.json is there all the same.
    """
    if trainer not in TRAINERS:
        raise ConfigError(f"trainer must be one of {', '.join(TRAINERS)}, got {trainer!r}")
    if model != "default" and trainer != "finetune":
        raise ConfigError(f"model {model!r} has no effect with the trainer {trainer}: it is for finetune")
    for name, value, least in (("seeds", seeds, FEWEST_SEEDS), ("steps", steps, 1), ("batch_rows", batch_rows, 1)):
        if value is not None and value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")
    from datapipe.proof.page import build_page
    from datapipe.publication import publish_proof
    from datapipe.runs import open_run
    from datapipe.storage.atomic import write_atomically

    result = open_run(run)
    given = {name: value for name, value in (("steps", steps), ("batch_rows", batch_rows)) if value is not None}
    asked = _Asked(test, label_column, text_column, image_column, given, model, device)
    rows, held, made = {"head": _heads, "finetune": _texts, "network": _images}[trainer](result, asked)
    scoring, unknown = scoring_seconds(result)
    outcome = compare(
        rows.labels,
        made,
        kept=rows.kept,
        pool=rows.pool,
        test_labels=held.labels,
        seeds=seeds,
        name=trainer,
        scoring=scoring,
        warnings=(*held.warnings, *unknown),
    )
    folder = Path(run)
    body = json.dumps(outcome.as_dict(), indent=1, sort_keys=True, allow_nan=False)
    write_atomically(folder / "proof.json", body.encode() + b"\n")
    write_atomically(folder / "proof.html", build_page(outcome, title=folder.name).encode())
    publish_proof(folder, of=result.manifest)
    return outcome


def scoring_seconds(result: CurateResult) -> tuple[float, tuple[str, ...]]:
    """Seconds of all stages up to the choice of rows when they were made, and a warning where some are not known."""
    stages = [stage for stage in result.manifest["stages"] if stage["name"] not in _NO_SCORING]
    made = result.made_seconds
    here = {timing.stage: timing.seconds for timing in result.timings if not timing.reused}
    found = {
        stage["name"]: made.get(f"{stage['key']}/{stage['manifest']}", here.get(stage["name"])) for stage in stages
    }
    lost = [name for name, seconds in found.items() if seconds is None]
    told = f"Choosing the rows took longer than is said: of {', '.join(lost)} the time was not recorded."
    return sum(seconds for seconds in found.values() if seconds is not None), (told,) if lost else ()


@dataclass(frozen=True)
class _Asked:
    """Options of `prove` that its trainers read."""

    test: str | os.PathLike[str]
    label_column: str | None
    text_column: str | None
    image_column: str | None
    recipe: dict[str, Any]
    model: str
    device: str | None

    @property
    def place(self) -> str:
        from datapipe.settings import Settings
        from datapipe.workers.device import resolve_devices

        return str(resolve_devices(self.device or Settings().device)[0])


_Made: TypeAlias = "tuple[RunRows[Any], HeldRows[Any], Trainer]"


def _heads(result: CurateResult, asked: _Asked) -> _Made:
    from datapipe.proof.rows import ContentColumn, read_rows, read_test
    from datapipe.settings import Settings

    rows, content = read_rows(result), ContentColumn(text=asked.text_column, image=asked.image_column)
    held = read_test(result, asked.test, label_column=asked.label_column, content=content, device=asked.place)
    recipe = replace(HeadRecipe(), **asked.recipe)
    threads = Settings().threads
    return rows, held, HeadTrainer(rows.content, held.content, recipe=recipe, device=asked.place, threads=threads)


def _texts(result: CurateResult, asked: _Asked) -> _Made:
    from datapipe.proof.rows import read_test_texts, read_texts
    from datapipe.proof.text import TextRecipe, TextTrainer
    from datapipe.settings import Settings

    rows = read_texts(result)
    held = read_test_texts(result, asked.test, label_column=asked.label_column, text_column=asked.text_column)
    trainer = TextTrainer(
        rows.content,
        held.content,
        model=asked.model,
        recipe=replace(TextRecipe(), **asked.recipe),
        device=asked.place,
        threads=Settings().threads,
    )
    return rows, held, trainer


def _images(result: CurateResult, asked: _Asked) -> _Made:
    from datapipe.proof.images import ImageRecipe
    from datapipe.proof.run_images import NetworkTrainer, read_images, read_test_images

    rows = read_images(result)
    held = read_test_images(result, asked.test, label_column=asked.label_column, image_column=asked.image_column)
    recipe = replace(ImageRecipe(), **asked.recipe)
    return rows, held, NetworkTrainer(rows.content, held.content, recipe=recipe, device=asked.place)
