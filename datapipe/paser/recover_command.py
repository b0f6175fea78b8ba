"""`datapipe recover SOURCE` and `datapipe damage MODEL`: parse, call one function, show."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape
from typer import Argument, Option

if TYPE_CHECKING:
    from datapipe.paser.damage import Damage

_json = Option("--json", help="Print one JSON object on standard output and nothing else.")


def recover_command(  # noqa: PLR0913, PLR0917 - an option each
    source: Annotated[
        str, Argument(help="Folder of a PASER run, or instructions with responses: Parquet, JSON Lines, CSV.")
    ],
    model: Annotated[str, Option(help="The damaged model: a folder or a hub id.")],
    out: Annotated[Path, Option(help="Folder to be made; it loads as any model.")],
    lora: Annotated[
        int | None, Option(help="Rank of low-rank updates, merged at the end; default: all weights learn.")
    ] = None,
    tokens: Annotated[
        int | None, Option(help="Tokens read in all, whatever the set, so that sets compare. Excludes --epochs.")
    ] = None,
    epochs: Annotated[float | None, Option(help="Passes over the set; default 2. Excludes --tokens.")] = None,
    learning_rate: Annotated[
        float | None, Option(help="Greatest rate; default 2e-4, and 5e-4 for low-rank updates.")
    ] = None,
    batch_tokens: Annotated[int, Option(help="About so many tokens a step.")] = 8192,
    micro_tokens: Annotated[int, Option(help="Tokens at once; lower it where memory is short.")] = 8192,
    max_length: Annotated[int, Option(help="Rows longer than that lose the beginning of their prompt.")] = 1024,
    seed: Annotated[int, Option(help="Of the order of rows and the start of the updates.")] = 0,
    instruction_column: Annotated[str | None, Option(help="Default: instruction, question or prompt.")] = None,
    input_column: Annotated[str | None, Option(help="Default: input or context, where there is one.")] = None,
    response_column: Annotated[str | None, Option(help="Default: response, output, answer or completion.")] = None,
    messages_column: Annotated[str | None, Option(help="Chats; default: messages or conversations.")] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    *,
    as_json: Annotated[bool, _json] = False,
) -> None:
    """Train a damaged MODEL on the answers of SOURCE and write what is healed to OUT."""
    from datapipe.errors import ConfigError
    from datapipe.paser.recovery import RecoveryRecipe, recover
    from datapipe.progress import for_terminal
    from datapipe.shown import print_json
    from datapipe.storage.instructions import PoolColumns

    if tokens is not None and epochs is not None:
        raise ConfigError("--tokens says how much is read in all, --epochs how often the set is read; give one of them")
    recipe = RecoveryRecipe(
        tokens=tokens,
        epochs=2.0 if epochs is None else epochs,
        lora=lora,
        learning_rate=learning_rate,
        batch_tokens=max(batch_tokens, max_length),
        micro_tokens=micro_tokens,
        max_length=max_length,
        seed=seed,
    )
    columns = PoolColumns(
        instruction=instruction_column, input=input_column, response=response_column, messages=messages_column
    )
    err = Console(stderr=True)
    with for_terminal(err) as progress:
        found = recover(source, model=model, out=out, recipe=recipe, columns=columns, device=device, progress=progress)
    if as_json:
        print_json(found.as_dict())
        return
    course = found.course
    Console().print(
        f"{found.rows:,} rows, {course.steps:,} steps, {course.tokens:,} tokens ({course.epochs:.1f} passes) in "
        f"{course.seconds:.0f} s; loss {found.loss_before:.3f} -> {found.loss_after:.3f} nats a token; {found.out}",
        highlight=False,
        soft_wrap=True,
    )
    for warning in found.warnings:
        err.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


def damage_command(  # noqa: PLR0913, PLR0917 - an option each
    model: Annotated[str, Argument(help="A Llama-type model: a folder or a hub id.")],
    out: Annotated[Path, Option(help="Folder to be made; it loads as any model.")],
    blocks: Annotated[
        int | None, Option(help="Blocks that stay: those that change their input most. Needs --texts.")
    ] = None,
    width: Annotated[
        float | None, Option(help="Part of each feed-forward layer's neurons that stays, 0 < width < 1. Needs --texts.")
    ] = None,
    bits: Annotated[int | None, Option(help="Bits that a weight of a projection is rounded to, 1 ... 8.")] = None,
    group: Annotated[int, Option(help="With --bits: neighbouring inputs that share a scale.")] = 64,
    texts: Annotated[
        str | None,
        Option(help="Texts or instructions on which blocks and neurons are measured; a few hundred rows do."),
    ] = None,
    text_column: Annotated[
        str | None, Option(help="Column of the texts; default: text, else instructions with their responses.")
    ] = None,
    rows: Annotated[int, Option(help="Rows of the texts that are read, the first ones.")] = 128,
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    *,
    as_json: Annotated[bool, _json] = False,
) -> None:
    """Make a smaller or coarser copy of MODEL, to have something to heal: --blocks, --width or --bits."""
    from dataclasses import asdict

    from datapipe.paser.damage_run import damage
    from datapipe.shown import print_json

    found = damage(
        model,
        out,
        blocks=blocks,
        width=width,
        bits=bits,
        group=group,
        texts=texts,
        text_column=text_column,
        rows=rows,
        device=device,
    )
    if as_json:
        print_json({**asdict(found), "share_left": found.left / found.parameters})
        return
    Console().print(_told(found), highlight=False, soft_wrap=True)


def _told(found: Damage) -> str:
    part = f"{found.parameters:,} weights -> {found.left:,} ({found.left / found.parameters:.1%})"
    removed = f"; without blocks {', '.join(map(str, found.removed))}" if found.removed else ""
    return f"{part}{removed}; {found.folder}"
