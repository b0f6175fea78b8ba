"""`datapipe …`: parse, call one public function, show."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer import Argument, Option

from datapipe.advisor.command import advise_command
from datapipe.distill.command import soft_labels_command
from datapipe.distill.rewrite_command import rewrite_command
from datapipe.errors import ConfigError, DatapipeError
from datapipe.metrics.base import metrics_told
from datapipe.paser.command import paser_command
from datapipe.paser.recover_command import damage_command, recover_command
from datapipe.proof.command import prove_command
from datapipe.selection.presets import presets_told
from datapipe.shown import print_json, show_values
from datapipe.workers.http.command import serve_command

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(
    name="datapipe",
    help="Score and prune training datasets into Parquet, and prove that nothing was lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130
_json_option = Option("--json", help="Print one JSON object on standard output and nothing else.")


@app.command()
def curate(
    source: Annotated[str | None, Argument(help="Parquet, CSV, JSON Lines or Arrow; a folder or glob works.")] = None,
    out: Annotated[Path | None, Option(help="Folder of the run. A run begun there is resumed.")] = None,
    keep: Annotated[float | None, Option(help="Fraction kept, 0 < keep <= 1; default 0.3. One budget a run.")] = None,
    keep_rows: Annotated[int | None, Option(help="Rows kept, exactly.")] = None,
    keep_tokens: Annotated[int | None, Option(help="Tokens kept, at most; the run's tokenizer counts.")] = None,
    metric: Annotated[str | None, Option(help=f"How rows are scored; default prototypes.\n\n{metrics_told()}")] = None,
    strategy: Annotated[
        str | None,
        Option(
            help="auto, hard, easy, random or strata. auto follows the evidence and says why; hard and easy are obeyed."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        Option(help=f"A published method by name; sets metric and choice. One of {presets_told()}."),
    ] = None,
    window_start: Annotated[
        float | None, Option(help="With --preset bws: part of the rows, hardest first, before the window.")
    ] = None,
    balance: Annotated[str | None, Option(help="Column; each value gets at least half of an equal share.")] = None,
    text_column: Annotated[str | None, Option(help="Text to embed; default 'text' or the only string column.")] = None,
    embedding_column: Annotated[str | None, Option(help="Vectors in the source; then nothing is embedded.")] = None,
    label_column: Annotated[
        str | None, Option(help="Class labels: set the number of prototypes and the strata.")
    ] = None,
    image_column: Annotated[
        str | None, Option(help="Images to embed instead of texts: files in cells or paths; needs --model FOLDER.")
    ] = None,
    id_column: Annotated[str | None, Option(help="Unique names of the rows; default: ids from the content.")] = None,
    split_column: Annotated[str | None, Option(help="Parts of the source; only --split is chosen from.")] = None,
    split: Annotated[str | None, Option(help="The part to choose from; default train.")] = None,
    leaks: Annotated[
        str | None,
        Option(
            help="Rows of --split that go out for a row of another part: exact (default) those that are equal; near "
            "also those that quote one or, with vectors, say the same."
        ),
    ] = None,
    dedup: Annotated[
        str | None, Option(help="none; exact: repeats of a text or an image go; semantic: and rows that say the same.")
    ] = None,
    dedup_threshold: Annotated[
        float | None, Option(help="Cosine from which two rows say the same; default 0.95. A lower one takes out more.")
    ] = None,
    dedup_keep: Annotated[
        str | None, Option(help="Which row stays: first (lower row id, the default), longest, hardest or easiest.")
    ] = None,
    protect: Annotated[
        str | None, Option(help="Evaluation file; rows that match it, exactly or nearly, go out.")
    ] = None,
    protect_threshold: Annotated[float | None, Option(help="Cosine from which a row matches nearly.")] = None,
    model: Annotated[str | None, Option(help="Embedder: default (texts), a local folder, or a cached hub id.")] = None,
    tokenizer: Annotated[str | None, Option(help="Model whose tokenizer counts tokens; default the embedder.")] = None,
    device: Annotated[str | None, Option(help="auto, cpu, cuda, cuda:1.")] = None,
    prototypes: Annotated[int | None, Option(help="Centroids; default: classes, else the root of the rows.")] = None,
    dynamics: Annotated[
        str | None, Option(help="File of a DynamicsRecorder: aum, el2n, dual, ... come from it; no proxy is trained.")
    ] = None,
    scores: Annotated[str | None, Option(help="With --metric imported: file of scores.")] = None,
    scores_column: Annotated[str | None, Option(help="Column of the scores; default 'score'.")] = None,
    scores_id: Annotated[
        str | None, Option(help="Column of the ids, values of --id-column or row ids; default 'row_id'.")
    ] = None,
    scores_higher: Annotated[
        str | None, Option(help="What high scores mean: harder (default), easier, rarer, better.")
    ] = None,
    seed: Annotated[int | None, Option(help="Another seed, another random choice; 0 by default.")] = None,
    max_rejected: Annotated[int | None, Option(help="Refuse the run when more rows than this are rejected.")] = None,
    shard_rows: Annotated[
        int | None, Option(help="Rows of a shard; a killed run loses the shards in the making.")
    ] = None,
    workers: Annotated[
        int | None, Option(help="Threads, default one a core; with ray actors. The result does not depend on it.")
    ] = None,
    executor: Annotated[
        str | None,
        Option(help="local, or ray: the cluster at RAY_ADDRESS, else one started here. The result is the same."),
    ] = None,
    config: Annotated[Path | None, Option(help="TOML file with any of these options; the command line wins.")] = None,
    update: Annotated[
        bool | None,
        Option(
            "--update",
            help="Add SOURCE to the run in OUT: its files stay, its prototypes too unless the new rows have drifted.",
        ),
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Say rows, disk and time, and write nothing.")] = False,
    as_json: Annotated[bool, _json_option] = False,
) -> None:
    """Score SOURCE and write the rows worth training on to OUT/kept.parquet."""
    given = {name: value for name, value in locals().items() if value is not None}
    for name in ("config", "dry_run", "as_json"):
        given.pop(name, None)
    options, source_, out_ = _merge(given, config)
    own = ("workers", "executor", "update")
    where: dict[str, Any] = {name: options.pop(name) for name in own if name in options}

    from datapipe.curation import Curation
    from datapipe.progress import for_terminal

    curation = Curation(source_, out=out_, **where, **options)
    if dry_run:
        show_values(curation.estimate().as_dict(), as_json=as_json)
        return
    console = Console(stderr=True)
    try:
        with for_terminal(console) as progress, _interrupts(console):
            result = curation.run(progress=progress)
    except KeyboardInterrupt:
        console.print("interrupted; run the same command again to go on where it stopped")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(result.as_dict())
        return
    from datapipe.report.table import print_summary

    for warning in result.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
    print_summary(result.out, timings=result.timings, console=Console())
    if result.update is not None:
        from datapipe.runs import update_in_words

        console.print(update_in_words(result.update), highlight=False)


@app.command()
def verify(
    run: Annotated[Path, Argument(help="Folder of a finished run.")],
    as_json: Annotated[bool, _json_option] = False,
) -> None:
    """Hash every file of RUN again and compare with its manifests. Exit 1 where one differs."""
    from datapipe.storage.verify import verify as verify_run

    found = verify_run(run)
    if as_json:
        print_json({"ok": found.ok, "files": found.files, "bytes": found.bytes, "problems": list(found.problems)})
    elif found.ok:
        Console().print(f"{found.files:,} files, {found.bytes:,} bytes: all as their manifests say")
    else:
        for problem in found.problems:
            Console(stderr=True).print(f"[red]{escape(problem)}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if found.ok else 1)


@app.command()
def report(
    run: Annotated[Path, Argument(help="Folder of a finished run.")],
    as_json: Annotated[bool, _json_option] = False,
) -> None:
    """Show what RUN kept and dropped, and where its page is."""
    from datapipe.storage.verify import read_run_manifest

    if as_json:
        print_json(read_run_manifest(run))
        return
    from datapipe.report.table import print_summary

    print_summary(run, timings=(), console=Console())


app.command(name="advise")(advise_command)
app.command(name="paser")(paser_command)
app.command(name="recover")(recover_command)
app.command(name="damage")(damage_command)
app.command(name="prove")(prove_command)
app.command(name="serve")(serve_command)
app.command(name="rewrite")(rewrite_command)
app.command(name="soft-labels")(soft_labels_command)


@app.command(name="config")
def show_config(*, as_json: Annotated[bool, _json_option] = False) -> None:
    """Show the settings of this environment (`DATAPIPE_…`)."""
    from datapipe.settings import Settings

    show_values(Settings().model_dump(), as_json=as_json)


@contextmanager
def _interrupts(console: Console) -> Iterator[None]:
    """Answer the first Ctrl-C at once, for the batch in hand may take a while; the second does not wait for it."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def stop(*_: object) -> NoReturn:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        console.print("stopping after the batch in hand; Ctrl-C again stops at once, and costs no finished shard")
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _merge(given: dict[str, Any], config: Path | None) -> tuple[dict[str, Any], str | list[str], Path]:
    from datapipe.config import read_config_file

    options = {**(read_config_file(config) if config is not None else {}), **given}
    where = f"{config} or the command line" if config is not None else "the command line"
    for name in ("source", "out"):
        if name not in options:
            raise ConfigError(f"{name} is missing: give it on {where}")
    return options, options.pop("source"), Path(options.pop("out"))


def main() -> None:
    """Run the command; an expected error is one line on standard error and exit 1."""
    try:
        app()
    except DatapipeError as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
