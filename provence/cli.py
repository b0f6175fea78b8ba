"""`provence …`: parse, call one public function, show.

`prune` is here; the other commands live with what they command and are imported when asked for. What is kept is printed
as it stands in the file: of JSON that is some of its lines, which are no longer JSON.

Raises what pruning does, in the words of a command: `--cut-question` for `cut_question`, a file for an item's place.
"""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer import Argument, Option
from typer.core import TyperGroup

from datapipe.errors import ConfigError, DatapipeError, OutputError, SourceError
from provence.words import STDIN, called, in_words_of_a_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from provence.pruner import Pruner
    from provence.render import Shown
    from provence.results import PrunedContext

__all__ = ["app", "main"]

_ELSEWHERE = {
    "train": "provence.training.command",
    "labels": "provence.training.silver_command",
    "export": "provence.onnx.command",
    "calibrate": "provence.evaluation.command",
    "evaluate": "provence.evaluation.command",
}
_KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".log": "log",
    ".markdown": "markdown",
    ".md": "markdown",
} | dict.fromkeys((".c", ".cc", ".cpp", ".go", ".h", ".java", ".js", ".py", ".rb", ".rs", ".sh", ".sql", ".ts"), "code")


class _Commands(TyperGroup):
    """Commands of which some are imported only when they are named."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_ELSEWHERE]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name)(getattr(importlib.import_module(_ELSEWHERE[cmd_name]), cmd_name))
        return typer.main.get_command(alone)


app = typer.Typer(
    name="provence",
    cls=_Commands,
    help="Cut from retrieved texts what a question does not need.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _several() -> None:
    pass


@app.command()
def prune(  # noqa: PLR0913 - each is an option
    *,
    files: Annotated[
        list[str] | None, Argument(help="Text files, UTF-8, each a document; - or none is standard input.")
    ] = None,
    question: Annotated[str | None, Option("--question", "-q", help="What the text is to answer.")] = None,
    threshold: Annotated[
        float | None, Option(help="Keep probability above which a part is kept, 0-1; default: the model's own.")
    ] = None,
    target_recall: Annotated[
        float | None, Option(help="Share of the needed parts to keep, 0-1, by --calibration.")
    ] = None,
    budget_tokens: Annotated[int | None, Option(help="Tokens kept of all files together, at most.")] = None,
    top_n: Annotated[int | None, Option(help="Give so many files, best first; default: all, in their order.")] = None,
    min_keep: Annotated[int, Option(help="Parts kept of each file, at least.")] = 0,
    always_keep_first: Annotated[bool, Option("--always-keep-first", help="Keep the first part of each file.")] = False,
    pin: Annotated[
        list[str] | None,
        Option(help="headings, table_headers, lead_ins, signatures or title: kept with what needs it. Repeatable."),
    ] = None,
    repair: Annotated[
        bool, Option("--repair", help="Keep what a kept sentence refers to with its first word.")
    ] = False,
    title: Annotated[
        list[str] | None, Option(help="Read by the model before the text, never cut; once for each file.")
    ] = None,
    kind: Annotated[
        str | None,
        Option(
            help="auto, prose, markdown, code, json or log; default: by the file's name, else auto. What is kept of "
            "json is no longer JSON."
        ),
    ] = None,
    joint: Annotated[
        bool, Option("--joint", help="Show the model several files at once, for evidence that lies in more than one.")
    ] = False,
    cut_question: Annotated[
        bool, Option("--cut-question", help="Cut a question too long for the model instead of refusing it.")
    ] = False,
    calibration: Annotated[
        Path | None,
        Option(help="File of `provence calibrate`, for --target-recall; default: the model's own, also at --server."),
    ] = None,
    model: Annotated[str, Option(help="default, a folder, a cached hub id, or a name at --server.")] = "default",
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    backend: Annotated[str, Option(help="torch, or onnx: int8 on the CPU, without torch.")] = "torch",
    server: Annotated[str | None, Option(help="URL of a `datapipe serve` that runs the model instead.")] = None,
    html: Annotated[Path | None, Option(help="Also write a page that shows what was kept and cut, and why.")] = None,
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON object on standard output and nothing else.")
    ] = False,
) -> None:
    """Cut from FILES what the question does not need, and print the rest.

    In a terminal the whole text is shown: what is kept highlighted, what is cut dimmed.

    In a pipe only what is kept is printed, as it stands in the file; of JSON that is some lines, no longer JSON.
    """
    if question is None or not question.strip():
        raise ConfigError(f"the question is {'missing' if question is None else 'empty'}: give it with --question")
    if html is not None and not html.parent.is_dir():
        raise OutputError(f"{html} cannot be written: there is no folder {html.parent}")  # before the work, not after
    names = files or [STDIN]
    _refuse_together(kind, server=server, device=device, backend=backend)
    if calibration is not None and target_recall is None:
        raise ConfigError("--calibration is for --target-recall, which is not given: give both or neither")
    policy: Any = {
        "threshold": threshold,
        "target_recall": target_recall,
        "budget_tokens": budget_tokens,
        "top_n": top_n,
        "min_keep": min_keep,
        "always_keep_first": always_keep_first,
        "pin": tuple(pin or ()),
        "repair": repair,
    }
    reading: Any = {
        "titles": _titles(title, names),
        "kinds": [kind or _KINDS.get(Path(name).suffix.lower(), "auto") for name in names],
        "joint": joint,
        "cut_question": cut_question,
    }
    from provence.policy import Policy

    with in_words_of_a_command(names):
        Policy.of(policy)  # a mistake is found before a model is loaded
        texts = _read(names)
        engine: Any = {"device": device, "backend": backend, "calibration": calibration}
        waiting = Console(stderr=True).status("reading the model and the texts")  # shown in a terminal only
        with waiting, _opened(model, server=server, **engine) as pruner:
            contexts = pruner.prune(question, texts, **reading, **policy)

    shown = [_shown(names[context.index], texts[context.index], context) for context in contexts]
    if html is not None:
        _write(html, question, shown, model=model)
    if as_json:
        _print_json({"question": question, "model": model, "results": [_told(found) for found in shown]})
    else:
        _print(shown)


def _refuse_together(kind: str | None, *, server: str | None, device: str, backend: str) -> None:
    """Raise `ConfigError` for a kind that is none, and for options that say where a model runs beside a server."""
    from provence.units.unit import TEXT_KINDS

    if kind is not None and kind not in TEXT_KINDS:
        raise ConfigError(f"--kind must be one of {', '.join(TEXT_KINDS)}. Got {kind!r}")
    for option, given in (("--backend", backend != "torch"), ("--device", device != "auto")):
        if given and server is not None:
            raise ConfigError(f"{option} and --server exclude each other: the server says how its model runs")


def _read(names: Sequence[str]) -> list[str]:
    """Texts of files as they stand; raises `SourceError`."""
    if names.count(STDIN) > 1:
        raise ConfigError("standard input can be read once; - is given several times")
    texts = []
    for name in names:
        try:
            content = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
            texts.append(content.decode())
        except OSError as error:
            raise SourceError(f"{name} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise SourceError(f"{name} is not UTF-8 text: byte {error.start:,} is wrong") from error
    return texts


def _titles(given: Sequence[str] | None, names: Sequence[str]) -> list[str | None] | None:
    if given and len(given) != len(names):
        raise ConfigError(f"--title is given once for each file. Got {len(given)} for {len(names)}")
    return list(given) if given else None


@contextmanager
def _opened(model: str, *, server: str | None, **engine: Any) -> Iterator[Pruner]:
    """A pruner at a server, or one of this process; `engine` is what `Pruner.load` takes."""
    from provence.pruner import Pruner

    if server is None:
        with Pruner.load(model, **engine) as pruner:
            yield pruner
        return
    from datapipe.workers import HttpWorker

    with HttpWorker(server) as worker:
        yield Pruner.load(model, worker=worker, **engine)


def _shown(name: str, text: str, context: PrunedContext) -> Shown:
    from provence.render import Shown

    return Shown(called(name), text, context)


def _told(shown: Shown) -> dict[str, Any]:
    from provence.render import values

    return {"source": shown.name, **values(shown.context)}


def _print(several: Sequence[Shown]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        kept = [shown.context.text for shown in several if shown.context.text]
        text = "\n\n".join(kept)
        sys.stdout.buffer.write(text.encode() + b"\n" * (bool(text) and not text.endswith("\n")))
        sys.stdout.buffer.flush()
        return
    from provence.render import plain, summary, terminal

    for shown in several:
        console.rule(f"[bold]{escape(plain(shown.name))}[/]", align="left")
        console.print(terminal(shown), soft_wrap=True)
        console.print(f"[dim]{escape(summary(shown))}[/]")


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def _write(path: Path, question: str, shown: Sequence[Shown], *, model: str) -> None:
    from provence.render import page

    try:
        path.write_text(page(question, shown, model=model), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def main() -> None:
    """Run the command; an expected error is one line on standard error and exit 1."""
    try:
        app()
    except DatapipeError as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
