"""`datapipe paser POOL --original MODEL --pruned MODEL --out DIR`: parse, call `select_recovery`, show."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated, Any

from rich.console import Console
from rich.markup import escape
from typer import Argument, BadParameter, Exit, Option

from datapipe.shown import print_json, show_values

INTERRUPTED = 130
WEIGHED = "NAME=WEIGHT, such as code=2; repeat it."


def paser_command(  # noqa: PLR0913, PLR0917 - an option each
    pool: Annotated[
        list[str],
        Argument(help="Instructions with responses, or chats: Parquet, JSON Lines, JSON, CSV; several files are one."),
    ],
    original: Annotated[str, Option(help="The model before it was pruned: a folder or a cached hub id.")],
    pruned: Annotated[
        list[str],
        Option(help="What was made of it. Repeat it for the damage atlas; the first decides which rows are kept."),
    ],
    out: Annotated[Path, Option(help="Folder of the run. A run begun there is resumed.")],
    keep: Annotated[float | None, Option(help="Fraction kept, 0 < keep <= 1; default 0.2. One budget a run.")] = None,
    keep_rows: Annotated[int | None, Option(help="Rows kept.")] = None,
    keep_tokens: Annotated[int | None, Option(help="Tokens of prompts and responses kept, at most.")] = None,
    method: Annotated[
        str | None,
        Option(help="ours (default), paper, or a baseline: random, stratified, longest, ifd, top_jsd."),
    ] = None,
    mode: Annotated[
        str | None, Option(help="paper: the published recipe to the letter; keeps fewer rows than the budget.")
    ] = None,
    clusters: Annotated[int | None, Option(help="Skills to tell apart; default: found, between 4 and 64.")] = None,
    survey: Annotated[
        bool | None,
        Option("--survey", help="Measure a sample of each skill, not all rows: a small part of the time."),
    ] = None,
    rule: Annotated[
        str | None, Option(help="What comes first within a skill: ies (default), jsd, length, random, power:ALPHA.")
    ] = None,
    power: Annotated[
        float | None, Option(help="Budget goes with damage to this power: 0 forgets it, above 1 favours the worst.")
    ] = None,
    size_power: Annotated[
        float | None,
        Option(help="And with its size to this power: 0 (default) as published, 1 tilts the pool's mix."),
    ] = None,
    even: Annotated[float | None, Option(help="Part of the budget that follows the skills' sizes, 0 to 1.")] = None,
    skill_weight: Annotated[list[str] | None, Option(help=f"What a skill is worth by its number. {WEIGHED}")] = None,
    source_weight: Annotated[list[str] | None, Option(help=f"What a source of rows is worth. {WEIGHED}")] = None,
    floor: Annotated[float | None, Option(help="Least part of the budget of each skill.")] = None,
    ceiling: Annotated[float | None, Option(help="Largest part of the budget of one skill.")] = None,
    conflicts: Annotated[
        str | None, Option(help="contradiction: rows at odds with others go out; paper; off. Default: the method's.")
    ] = None,
    prior_rows: Annotated[
        float | None, Option(help="Rows' worth of the mean of all that a skill's damage leans to; default 20.")
    ] = None,
    seed: Annotated[int | None, Option(help="Of every draw; 0 by default.")] = None,
    embedder: Annotated[str | None, Option(help="Embeds instructions: default, a folder, or a cached hub id.")] = None,
    max_length: Annotated[
        int | None, Option(help="Tokens that the models see of a row; longer ones lose the prompt's beginning.")
    ] = None,
    dtype: Annotated[str | None, Option(help="Precision of the models: auto, float32, bfloat16, float16.")] = None,
    token_budget: Annotated[int | None, Option(help="Tokens of a batch; less memory, or more speed.")] = None,
    device: Annotated[str | None, Option(help="auto, cpu, cuda, cuda:1.")] = None,
    instruction_column: Annotated[str | None, Option(help="Default: instruction, question or prompt.")] = None,
    input_column: Annotated[str | None, Option(help="Default: input or context, where there is one.")] = None,
    response_column: Annotated[str | None, Option(help="Default: response, output, answer or completion.")] = None,
    messages_column: Annotated[str | None, Option(help="Chats; default: messages or conversations.")] = None,
    source_column: Annotated[str | None, Option(help="Where a row comes from; default: source, or its file.")] = None,
    max_chars: Annotated[int | None, Option(help="Characters of a row; longer ones are refused.")] = None,
    shard_rows: Annotated[
        int | None, Option(help="Rows of a shard; a killed run loses the shards in the making.")
    ] = None,
    *,
    dry_run: Annotated[bool, Option("--dry-run", help="Say rows, disk and time, and write nothing.")] = False,
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON object on standard output and nothing else.")
    ] = False,
) -> None:
    """Choose the rows of POOL that heal a pruned model, and write them to OUT/kept.parquet."""
    given = {name: value for name, value in locals().items() if value is not None}
    for name in ("pool", "original", "pruned", "out", "dry_run", "as_json"):
        given.pop(name)
    if skill_weight:
        given["prior"] = {int(name): value for name, value in _weights(given.pop("skill_weight"), whole=True).items()}
    if source_weight:
        given["source_prior"] = _weights(given.pop("source_weight"))
    given = {name: value for name, value in given.items() if name not in {"skill_weight", "source_weight"}}
    where: dict[str, Any] = {"original": original, "pruned": pruned}
    if dry_run:
        from datapipe.paser.estimate import estimate_recovery

        show_values(estimate_recovery(pool, **where, **given).as_dict(), as_json=as_json)
        return
    _select(pool, out=out, as_json=as_json, **where, **given)


def _select(pool: list[str], *, as_json: bool, **asked: Any) -> None:
    from datapipe.paser.run import select_recovery
    from datapipe.progress import for_terminal

    console = Console(stderr=True)
    try:
        with for_terminal(console) as progress:
            found = select_recovery(pool, progress=progress, **asked)
    except KeyboardInterrupt:
        console.print("interrupted; run the same command again to go on where it stopped")
        raise Exit(INTERRUPTED) from None
    if as_json:
        print_json(found.as_dict())
        return
    from datapipe.outputs import read_shard
    from datapipe.report.paser_table import print_skills
    from datapipe.report.table import print_summary

    for warning in found.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
    print_summary(found.out, timings=found.timings, console=Console())
    print_skills(read_shard(found.out / "clusters.parquet").to_pylist(), console=Console())


def _weights(given: list[str], *, whole: bool = False) -> dict[str, float]:
    """Names and weights of `NAME=WEIGHT`. Raises `BadParameter` for anything else."""
    found = {}
    for each in given:
        name, equals, weight = each.rpartition("=")
        try:
            found[str(int(name)) if whole else name] = float(weight)
        except ValueError:
            equals = ""
        if not equals or not name:
            kind = "NUMBER=WEIGHT, such as 3=2" if whole else "NAME=WEIGHT, such as code=2"
            raise BadParameter(f"a weight is {kind}; got {each!r}")
    return found
