"""Heal a damaged model on chosen instructions, and write it as a folder that loads as any.

    run of PASER, or any instructions -> prompts and answers -> Lessons -> train -> OUT (model, recovery.json)

Reads `train.parquet` of a run, `rewritten.parquet` of a rewriting, or a source in one of the shapes of
`datapipe.storage.instructions`. Nothing is seen at OUT before the training is over. Raises `ConfigError`,
`SourceError`, `ColumnError`, `ModelError` and `MetricError`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapipe.errors import ConfigError, ItemError, SourceError
from datapipe.paser.recovery_training import Course, RecoveryRecipe, learnt_weights, train, with_updates

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from datapipe.paser.lessons import Lessons
    from datapipe.progress import Progress
    from datapipe.storage.instructions import Pair, PoolColumns
    from datapipe.workers.folder import ModelFolder

__all__ = ["Recovered", "RecoveryRecipe", "open_trainable", "recover", "rendered"]

_PUBLISHED = ("train.parquet", "kept.parquet", "rewritten.parquet")
"""Of a run, the first that is there; the first of all has one plain shape, whatever the pool's columns are called."""
_SHOWN_LOSSES = 200
_MAX_CHARS = 1 << 20
_STAGE = "recover"


@dataclass(frozen=True, eq=False)
class Recovered:
    """What came of it.

    Attributes:
        out: Folder of the healed model.
        rows: Rows of the set.
        refused: Rows that hold no instruction with an answer, by reason.
        truncated: Rows that lost tokens.
        course: How the training went.
        recipe: How it was done.
        warnings: What the user should know.
    """

    out: Path
    rows: int
    refused: dict[str, int]
    truncated: int
    course: Course
    recipe: RecoveryRecipe
    warnings: tuple[str, ...]

    @property
    def loss_before(self) -> float:
        """Mean loss of the first twentieth of the steps, at least one, in nats a token."""
        return _mean(self.course.losses[: max(1, self.course.steps // 20)])

    @property
    def loss_after(self) -> float:
        """The same of the last twentieth."""
        return _mean(self.course.losses[-max(1, self.course.steps // 20) :])

    def as_dict(self) -> dict[str, Any]:
        """Everything but single losses, as plain values."""
        told = {name: getattr(self.course, name) for name in ("steps", "tokens", "answer_tokens", "epochs", "seconds")}
        return {
            "out": str(self.out),
            "rows": self.rows,
            "refused": self.refused,
            "truncated": self.truncated,
            **told,
            "loss_before": self.loss_before,
            "loss_after": self.loss_after,
            "recipe": asdict(self.recipe),
            "warnings": list(self.warnings),
        }


def recover(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: RecoveryRecipe | None = None,
    columns: PoolColumns | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Recovered:
    """Train a damaged model on instructions, and write the result.

    Two trainings of the same `tokens` read equally much in equally many steps, whatever their sets. The result is
    stored in the precision of `model`; low-rank updates are added to its weights, so nothing else is needed to load it.

    Args:
        source: Folder of a run of `select_recovery` or `rewrite`, or instructions: a file, a folder, a glob, several.
        model: The damaged model: a folder or a cached hub id.
        out: Folder to be made.
        recipe: How; see `RecoveryRecipe`.
        columns: Which column is what, where the usual names do not stand.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        progress: Is told of the rows that are read, repeats included.

    Raises:
        ConfigError: The recipe is out of range, `out` exists, or the device has too little memory.
        SourceError: There is nothing to read, or no row holds an instruction with an answer.
        ColumnError: The columns are of no known shape.
        ModelError: The model is no causal language model, or cannot be loaded.
        MetricError: A loss is not finite; names the step. Nothing is written.
    """
    import torch

    from datapipe.paser.model_files import refuse_existing, write_model
    from datapipe.progress import Silent
    from datapipe.workers.device import resolve_device
    from datapipe.workers.folder import resolve
    from datapipe.workers.spec import ModelSpec

    recipe, to, where, shown = recipe or RecoveryRecipe(), Path(out), resolve_device(device), progress or Silent()
    recipe.check()
    refuse_existing(to)
    pairs, refused = _read(source, columns)
    folder = resolve(ModelSpec("model", str(model), task="causal"))
    recipe = _fitting(recipe, folder)
    lessons = _lessons(pairs, folder, recipe)
    trained = with_updates(open_trainable(folder, recipe, device=where), recipe, device=where)
    started = time.perf_counter()
    try:
        course = train(trained, lessons, recipe, device=where, watch=_watch(shown))
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the memory of {where} does not hold the training: lower micro_tokens ({recipe.micro_tokens:,}) or "
            f"max_length ({recipe.max_length:,}), or learn low-rank updates (lora) ({error})"
        ) from error
    shown.finish(_STAGE, rows=round(course.epochs * len(lessons)), seconds=time.perf_counter() - started, reused=False)
    told = _warnings(recipe, lessons, refused, course)
    found = Recovered(to, len(lessons), refused, lessons.truncated, course, recipe, told)
    write_model(
        to,
        folder,
        folder.config(),
        learnt_weights(trained, folder.tensors()),
        told={"recovery.json": _record(found, folder)},
    )
    return found


def rendered(pairs: Sequence[Pair], folder: ModelFolder) -> tuple[list[str], list[str]]:
    """Prompts and answers of instructions as a model reads them, by its own chat template.

    Raises:
        ModelError: The template does not take the messages.
    """
    from datapipe.paser.rendering import leading_text, prompt_and_text
    from datapipe.workers.chat import ChatFormat
    from datapipe.workers.tasks.causal import PlainTokenizer

    chat = ChatFormat(folder)
    leading = leading_text(chat, PlainTokenizer(folder))
    rows = [prompt_and_text(chat, vars(pair), leading=leading) for pair in pairs]
    return [prompt for prompt, _ in rows], [text for _, text in rows]


def open_trainable(folder: ModelFolder, recipe: RecoveryRecipe, *, device: torch.device) -> Any:
    """The model of a folder, ready for `with_updates`.

    All weights are learnt in float32. Beside low-rank updates they stay as they are and need no more than bfloat16 on
    a GPU.

    Raises:
        ModelError: The folder holds no causal language model, or one that does not load.
    """
    import torch
    import transformers

    from datapipe.workers.encoders.library import class_for, config_of, filled

    config = config_of(folder)
    kind = class_for(folder, config, mapping=transformers.MODEL_FOR_CAUSAL_LM_MAPPING, purpose="causal language model")
    small = recipe.lora is not None and device.type == "cuda"
    return filled(kind, config, folder, dtype=torch.bfloat16 if small else torch.float32).to(device)


def _read(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], columns: PoolColumns | None
) -> tuple[list[Pair], dict[str, int]]:
    from collections import Counter

    from datapipe.storage.instructions import columns_of, read_pairs
    from datapipe.storage.source import open_source

    named = columns is not None and columns != type(columns)()
    opened = open_source(_published(source, named=named) if isinstance(source, str | Path) else source)
    roles = columns_of(opened.schema.names, columns)
    pairs: list[Pair] = []
    reasons: Counter[str] = Counter()
    for batch in opened.batches(rejected=lambda record: reasons.update([record.reason])):
        found, refused = read_pairs(batch.table, roles, max_chars=_MAX_CHARS)
        pairs += found
        reasons.update(reason for reason, _ in refused.values())
    if not pairs:
        told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
        raise SourceError(f"no row of {source} holds an instruction with an answer: {told or 'there are no rows'}")
    return pairs, dict(sorted(reasons.items()))


def _published(source: str | Path, *, named: bool) -> str | Path:
    """The rows of a run where the path is that of one; those with the pool's own columns where columns were named."""
    files = (Path(source) / name for name in _PUBLISHED[named:])
    return next((file for file in files if file.is_file()), source)


def _fitting(recipe: RecoveryRecipe, folder: ModelFolder) -> RecoveryRecipe:
    """The recipe with rows no longer than the model has positions."""
    from datapipe.workers.encoders.library import config_of, positions_of

    return replace(recipe, max_length=min(recipe.max_length, positions_of(config_of(folder))))


def _lessons(pairs: Sequence[Pair], folder: ModelFolder, recipe: RecoveryRecipe) -> Lessons:
    from datapipe.paser.lessons import lessons_of

    prompts, answers = rendered(pairs, folder)
    try:
        return lessons_of(prompts, answers, folder=folder, max_length=recipe.max_length)
    except ItemError as error:
        raise SourceError(f"{error}: its prompt is {prompts[error.index or 0][:80]!r}") from error


def _watch(progress: Progress) -> Callable[[int, int], None]:
    begun: list[int] = []

    def tell(rows: int, total: int) -> None:
        if not begun:
            begun.append(total)
            progress.start(_STAGE, total=total)
        progress.advance(rows)

    return tell


def _warnings(recipe: RecoveryRecipe, lessons: Lessons, refused: dict[str, int], course: Course) -> tuple[str, ...]:
    return tuple(_told(recipe, lessons, refused, course))


def _told(recipe: RecoveryRecipe, lessons: Lessons, refused: dict[str, int], course: Course) -> Iterator[str]:
    if refused:
        yield f"{sum(refused.values()):,} rows were left out: {', '.join(f'{n:,} {r}' for r, n in refused.items())}"
    if lessons.truncated:
        yield f"{lessons.truncated:,} of {len(lessons):,} rows were cut to {recipe.max_length:,} tokens"
    if course.epochs > 10:  # noqa: PLR2004 - few sets bear to be read so often
        yield f"the set was read {course.epochs:.0f} times: it holds {int(lessons.lengths.sum()):,} tokens"
    if course.epochs < 1:
        yield f"the training ended after {course.epochs:.0%} of the set: raise tokens to read all of it"


def _record(found: Recovered, folder: ModelFolder) -> dict[str, Any]:
    import importlib.metadata

    step = -(-found.course.steps // _SHOWN_LOSSES)
    losses = found.course.losses
    thinned = [round(_mean(losses[at : at + step]), 5) for at in range(0, len(losses), step)]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    told = found.as_dict()
    told.pop("out")
    return {**told, "model": folder.digest, "losses": thinned, "steps_a_loss": step, "versions": versions}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
