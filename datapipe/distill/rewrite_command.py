"""`datapipe rewrite POOL --model MODEL --out DIR`: parse, call `rewrite`, show."""

from __future__ import annotations

import json
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

from rich.console import Console
from typer import Argument, Option


def rewrite_command(  # noqa: PLR0913, PLR0917 - an option each
    pool: Annotated[str, Argument(help="Instructions with responses, or chats of one turn: Parquet, JSON Lines, CSV.")],
    model: Annotated[str, Option(help="The original model, before pruning: a folder, a hub id, a name at --workers.")],
    out: Annotated[Path, Option(help="Folder of the result. A rewriting begun there is resumed.")],
    instruction_column: Annotated[str | None, Option(help="Default: instruction, question or prompt.")] = None,
    input_column: Annotated[str | None, Option(help="Default: input or context, where there is one.")] = None,
    response_column: Annotated[str | None, Option(help="Default: response, output, answer or completion.")] = None,
    messages_column: Annotated[str | None, Option(help="Chats; default: messages or conversations.")] = None,
    max_new_tokens: Annotated[int, Option(help="An answer not ended by then is not taken.")] = 512,
    temperature: Annotated[float, Option(help="0: the most probable token each time, the same every time.")] = 0.0,
    top_p: Annotated[float, Option(help="With a temperature: the most probable tokens of this mass are drawn.")] = 1.0,
    seed: Annotated[int, Option(help="Of the draws.")] = 0,
    shard_rows: Annotated[int, Option(help="Rows of a shard; a killed run loses the shards in the making.")] = 512,
    device: Annotated[str | None, Option(help="auto, cpu, cuda, cuda:1.")] = None,
    workers: Annotated[str | None, Option(help="URL of a datapipe serve with the model, task=causal.")] = None,
    tokenizer: Annotated[str | None, Option(help="With --workers: model whose tokenizer counts tokens.")] = None,
    token_budget: Annotated[int | None, Option(help="Tokens of a batch; less memory, or more speed.")] = None,
    *,
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON object on standard output and nothing else.")
    ] = False,
) -> None:
    """Have MODEL say the answers of POOL in its own words; what fails a check keeps the human answer."""
    from datapipe.distill.rewrite import rewrite
    from datapipe.progress import for_terminal

    with for_terminal(Console(stderr=True)) as progress:
        found = rewrite(
            pool,
            model=model,
            out=out,
            instruction_column=instruction_column,
            input_column=input_column,
            response_column=response_column,
            messages_column=messages_column,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            shard_rows=shard_rows,
            device=device,
            workers=workers,
            tokenizer=tokenizer,
            token_budget=token_budget,
            progress=progress,
        )
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), ensure_ascii=False, indent=1, allow_nan=False) + "\n")
        return
    console = Console()
    for name, rows in found.counts.items():
        console.print(f"{rows:>9,} {name.replace('_', ' ')}", highlight=False)
    tokens = found.manifest["tokens"]
    console.print(
        f"{found.share:.1%} of {found.manifest['rows']:,} answers are the model's; "
        f"{tokens['human']:,} tokens became {tokens['final']:,}; {found.out / 'rewritten.parquet'}",
        highlight=False,
        soft_wrap=True,
    )
