"""A whole run: teacher, its labels, student, and the folder that is shipped.

    TrainingConfig, data folder -> build_bank -> train_teacher -> distil -> write_student -> OUT/model, OUT/log.jsonl

Everything is decided on questions held out of the training splits; test splits are read by `provence evaluate` alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from datapipe.errors import ConfigError
from datapipe.workers.folder import ModelFolder, resolve
from datapipe.workers.spec import EMBEDDED_PREFIX, ModelSpec
from provence.training.bank import BankBuilder
from provence.training.distil import RoundedDelta, pair_windows, teach
from provence.training.epochs import EpochDrawer
from provence.training.network import HEADS, PrunerNetwork, open_network
from provence.training.scorer import held_figures
from provence.training.sources import Guard, read_source
from provence.training.store import Store
from provence.training.templates import open_tokenizer, template_of
from provence.training.train import Loop
from provence.training.windows import Template, Windows, protocol_windows

if TYPE_CHECKING:
    from pathlib import Path

    from provence.training.bank import Bank
    from provence.training.config import ModelConfig, TrainingConfig

__all__ = ["Trainee", "build_bank", "open_trainee", "train_student", "train_teacher", "write_student"]

_HELD_QUESTIONS = 300
"""Held-out questions of a source that figures are taken on while training."""


@dataclass(frozen=True, eq=False)
class Trainee:
    """A base encoder ready for training.

    Attributes:
        network: On the device.
        template: Its pair of texts, in the bank's ids.
        folder: Of the base.
    """

    network: PrunerNetwork
    template: Template
    folder: ModelFolder


def build_bank(config: TrainingConfig, data: Path) -> BankBuilder:
    """Read and check all sources; `build()` of what comes back tokenises them.

    Args:
        config: Names them.
        data: Folder of the Parquet files.

    Raises:
        SourceError: A file is missing or damaged.
        ConfigError: A source names its test split.
    """
    from provence.evaluation.sets import read_examples

    protected = [e for name in config.protected for e in read_examples(data / f"{name}.parquet", split="test")]
    folder = resolve(ModelSpec(name=config.name, source=config.student.source))
    builder = BankBuilder(open_tokenizer(folder), config.windows, Guard.over(protected))
    for source in config.sources:
        held = [
            example
            for split in source.validation_splits
            for example in read_examples(data / f"{source.name}.parquet", split=split)
        ]
        builder.add(source, read_source(source, data), held)
    return builder


def open_trainee(
    config: ModelConfig, *, name: str, device: torch.device, student: ModelFolder | None = None
) -> Trainee:
    """Open a base encoder with new heads.

    Args:
        config: Names it.
        name: For messages.
        device: Where it is trained.
        student: Whose tokenizer made the bank; None if it is this one's.
    """
    folder = resolve(ModelSpec(name=name, source=config.source))
    other = None if student is None else open_tokenizer(student)
    template = template_of(open_tokenizer(folder), other)
    network = open_network(folder, dropout=config.optimiser.dropout, seed=config.optimiser.seed).to(device)
    return Trainee(network, template, folder)


def train_teacher(
    trainee: Trainee, bank: Bank, config: TrainingConfig, *, out: Path, processes: int = 0, checkpoints: bool = True
) -> dict[str, float]:
    """Train on labels alone, other windows every epoch. Returns the held-out figures; `trainee` is changed in place."""
    optimiser = (config.teacher or config.student).optimiser
    device = next(trainee.network.parameters()).device
    with drawer(bank, config, seed=optimiser.seed, processes=processes) as drawn:

        def epoch(number: int) -> Store:
            return Store.of(bank, drawn.windows(number), trainee.template, device=device)

        checkpoint = out / "teacher.checkpoint" if checkpoints else None
        Loop(trainee.network, optimiser, epoch, log=out / "teacher.jsonl", checkpoint=checkpoint).run()
    return figures(trainee, bank, config)


def train_student(
    student: Trainee,
    teacher: Trainee,
    bank: Bank,
    config: TrainingConfig,
    *,
    out: Path,
    processes: int = 0,
    checkpoints: bool = True,
) -> dict[str, float]:
    """Train on the teacher's word. Returns the held-out figures; `student` is changed in place."""
    optimiser, distil = config.student.optimiser, config.distil
    with drawer(bank, config, seed=optimiser.seed + 1000, processes=processes) as drawn:
        windows = pair_windows(drawn, pairs=distil.pairs, seed=optimiser.seed)
    store, _ = teach(teacher.network, bank, windows, (teacher.template, student.template), soft=distil.soft)
    checkpoint = out / "student.checkpoint" if checkpoints else None
    loop = Loop(student.network, optimiser, lambda _: store, log=out / "student.jsonl", checkpoint=checkpoint)
    if config.bits and distil.straight:
        loop.straight = RoundedDelta.of(student.network, bits=config.bits)
        loop.straight_from = 1 - distil.straight
    loop.run()
    return figures(student, bank, config)


def drawer(bank: Bank, config: TrainingConfig, *, seed: int, processes: int) -> EpochDrawer:
    """What draws the windows of epochs, as the sources' repeats say."""
    repeats = [source.repeat for source in config.sources]
    return EpochDrawer(bank, config.windows, seed=seed, repeats=repeats, processes=processes)


def figures(
    trainee: Trainee, bank: Bank, config: TrainingConfig, *, most: int | None = _HELD_QUESTIONS
) -> dict[str, float]:
    """Share of characters removed at 90 % recall on held-out questions, by source, and their mean."""
    windows: Windows = protocol_windows(bank, most=most)
    store = Store.of(bank, windows, trainee.template, device=next(trainee.network.parameters()).device)
    return held_figures(trainee.network, store, bank, windows, [source.name for source in config.sources])


def write_student(network: PrunerNetwork, config: TrainingConfig, folder: Path, *, threshold: float = 0.5) -> None:
    """Write the native folder: a rounded delta to an embedded base, or all weights.

    Raises:
        ConfigError: A delta is asked for to a base that is not embedded.
    """
    from provence.families.delta import encode_delta
    from provence.families.native import NativeConfig, write_native

    base = resolve(ModelSpec(name=config.name, source=config.student.source))
    tensors = network.tensors()
    heads = {name: tensors.pop(name) for name in HEADS}
    details = {"name": config.name, "training": asdict(config), "training_digest": config.digest()}
    length = config.windows.max_tokens
    if config.bits:
        if not config.student.source.startswith(EMBEDDED_PREFIX):
            raise ConfigError(f"bits = {config.bits} needs a student that is embedded. Got {config.student.source!r}")
        start = {name: tensor for name, tensor in base.tensors().items() if name in tensors}
        stored = encode_delta(start, tensors, bits=8 if config.bits == 8 else 4)  # noqa: PLR2004
        native = NativeConfig(
            base=config.student.source,
            base_digest=base.digest,
            delta="int8" if config.bits == 8 else "int4",  # noqa: PLR2004
            max_length=length,
            threshold=threshold,
            details=details,
        )
        whole = {f"delta.{name}": tensor for name, tensor in stored.items()}
    else:
        native = NativeConfig(encoder=base.config(), max_length=length, threshold=threshold, details=details)
        whole = {f"encoder.{name}": tensor for name, tensor in tensors.items()}
    write_native(folder, config=native, tensors=whole | heads, tokenizer=base.path("tokenizer.json"))
