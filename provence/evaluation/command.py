"""`provence evaluate` and `provence calibrate`: parse, call one public function, show."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer import Argument, Option

from datapipe.errors import ConfigError, OutputError
from provence.words import in_words_of_a_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from provence.evaluation.run import Progress
    from provence.pruner import Pruner

__all__ = ["calibrate", "evaluate"]

_Sets = Annotated[list[Path], Argument(help="Parquet with question, context, sent_start, sent_end, relevant, answers.")]
_Model = Annotated[str, Option(help="default, a folder, or a cached hub id.")]
_Backend = Annotated[str, Option(help="torch, or onnx: int8 on the CPU, without torch.")]
_Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1.")]
_Limit = Annotated[int | None, Option(help="Questions of a set, at most, by a hash of their ids; default: all.")]
_Seed = Annotated[int, Option(help="Another seed: other passages without gold, another sample.")]
_Titles = Annotated[bool, Option("--titles", help="Show the model the documents' titles.")]
_Json = Annotated[bool, Option("--json", help="Print one JSON object on standard output and nothing else.")]


def evaluate(  # noqa: PLR0913 - each is an option of the command
    *,
    sets: _Sets,
    model: Annotated[
        str, Option(help="default, a folder, a cached hub id; none measures baselines alone.")
    ] = "default",
    split: Annotated[str, Option(help="Split to measure; all takes every row.")] = "test",
    baselines: Annotated[
        str, Option(help="all, none, or some of keep_all,lead,idf,bm25,sentence_cosine,passage_cosine.")
    ] = "all",
    joint: Annotated[bool, Option("--joint", help="Also with the passages of a question in shared windows.")] = False,
    titles: _Titles = False,
    limit: _Limit = None,
    seed: _Seed = 0,
    device: _Device = "auto",
    backend: _Backend = "torch",
    out: Annotated[Path | None, Option(help="Also write the report as JSON to this file.")] = None,
    as_json: _Json = False,
) -> None:
    """Measure a pruner on SETS: characters removed at a recall, sentence F, answers kept, ranking; with baselines.

    In a terminal a table a set is shown, in a pipe one Markdown table.
    """
    from provence.evaluation import run
    from provence.evaluation.baselines import BASELINES
    from provence.evaluation.report import NOTE

    names = {"all": list(BASELINES), "none": []}.get(baselines, baselines.split(","))
    if model == "none" and not names:
        raise ConfigError("--model none and --baselines none leave nothing to measure: give one of them")
    with in_words_of_a_command(), _bars(Console(stderr=True)) as progress:
        pruner = None if model == "none" else _loaded(model, sets, device, backend)
        report = run.evaluate(
            pruner,
            sets,
            split=None if split == "all" else split,
            baselines=names,
            joint=joint,
            titles=titles,
            limit=limit,
            seed=seed,
            progress=progress,
        )
    found = json.dumps({"model": model, **report.as_dict()}, indent=None if as_json else 1)
    if out is not None:
        with _writing(out):
            out.write_text(found + "\n", encoding="utf-8")
    screen = Console()
    if as_json or not screen.is_terminal:
        typer.echo(found if as_json else report.table())
    else:
        screen.print(*report.screen(), f"[dim]{NOTE}[/]", sep="\n", highlight=False)


def calibrate(  # noqa: PLR0913 - each is an option of the command
    *,
    sets: _Sets,
    out: Annotated[Path, Option(help="File to write, for --target-recall of `provence prune`.")],
    model: _Model = "default",
    domain: Annotated[str | None, Option(help="What the questions are about; default: the names of SETS.")] = None,
    split: Annotated[str, Option(help="Split to calibrate on; all takes every row.")] = "train",
    titles: _Titles = False,
    joint: Annotated[bool, Option("--joint", help="For pruning with the passages of a question together.")] = False,
    limit: _Limit = None,
    seed: _Seed = 0,
    device: _Device = "auto",
    backend: _Backend = "torch",
    as_json: _Json = False,
) -> None:
    """Find the thresholds at which a pruner keeps the asked share of what answers questions like those of SETS."""
    from provence.evaluation.recall import calibrate_pruner

    with in_words_of_a_command(), _bars(Console(stderr=True)) as progress:
        pruner = _loaded(model, sets, device, backend)
        found = calibrate_pruner(
            pruner,
            sets,
            domain=domain,
            split=None if split == "all" else split,
            titles=titles,
            joint=joint,
            limit=limit,
            seed=seed,
            progress=progress,
        )
    with _writing(out):
        found.save(out)
    most = found.questions / (found.questions + 1)
    if as_json:
        about = {"out": str(out), "model": found.model, "domain": found.domain, "questions": found.questions}
        typer.echo(json.dumps({**about, "highest_recall": most}))
    else:
        typer.echo(f"{out}: {found.questions:,} questions of {found.domain}; --target-recall up to {most:.4f}")


def _loaded(model: str, sets: list[Path], device: str, backend: Any) -> Pruner:
    """The pruner; a file that is no set is found before it is loaded."""
    from provence.evaluation.sets import splits_of
    from provence.pruner import Pruner

    for path in sets:
        splits_of(path)
    return Pruner.load(model, device=device, backend=backend)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that is written inside; raises `OutputError` for either."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


@contextmanager
def _bars(console: Console) -> Iterator[Progress | None]:
    """A bar a set and method on a terminal; nothing elsewhere."""
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=32), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        known = {}

        def told(stage: str, done: int, total: int) -> None:
            if stage not in known:
                known[stage] = bars.add_task(stage, total=total)
            bars.update(known[stage], completed=done)

        yield told
