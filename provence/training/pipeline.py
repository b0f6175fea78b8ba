"""A whole run: teacher, its labels, student, and the folder that is shipped.

    TrainingConfig, data folder -> build_bank -> train_teacher -> train_student -> settle (write_student) -> OUT/model

Everything is decided on questions held out of the training splits; test splits are read by `provence evaluate` alone.
A run broken off goes on from its last checkpoint in OUT.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from datapipe.errors import ConfigError
from datapipe.workers.folder import ModelFolder, resolve
from datapipe.workers.spec import EMBEDDED_PREFIX, ModelSpec
from provence.training.bank import Bank, BankBuilder
from provence.training.card import write_card
from provence.training.distil import RoundedDelta, mean_of, pair_windows, taught
from provence.training.epochs import EpochDrawer
from provence.training.network import HEADS, PrunerNetwork, open_network
from provence.training.scorer import held_figures
from provence.training.settle import settle
from provence.training.sources import Guard, read_source
from provence.training.store import Store
from provence.training.templates import open_tokenizer, template_of
from provence.training.train import Loop, Predictions, predict
from provence.training.windows import Template, Windows, protocol_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from provence.training.config import ModelConfig, TrainingConfig

__all__ = [
    "STUDENT_EPOCHS",
    "Host",
    "Trainee",
    "build_bank",
    "drawer",
    "figures",
    "open_trainee",
    "predict_windows",
    "run_training",
    "student_windows",
    "train_on_labels",
    "train_student",
    "write_student",
]

_HELD_QUESTIONS = 300
"""Held-out questions of a source that figures are taken on."""

STUDENT_EPOCHS = 1000
"""Added to the student's seed, so that it sees other windows than the teacher."""


class Host(NamedTuple):
    """How a run uses its machine.

    Attributes:
        out: Where logs and checkpoints go.
        processes: That draw windows ahead; 0 draws when an epoch is needed.
        windows: Where drawn epochs are kept; None keeps none.
        checkpoint_every: Updates between two checkpoints; 0 for none.
    """

    out: Path
    processes: int = 0
    windows: Path | None = None
    checkpoint_every: int = 500


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

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.network.parameters()).device


def run_training(
    config: TrainingConfig,
    data: Path,
    host: Host,
    *,
    device: torch.device,
    teacher_base: str | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, dict[str, float]]:
    """Train what the config describes and write `host.out / "model"` with its threshold, calibration and card.

    Args:
        config: The run.
        data: Folder of the Parquet files.
        host: How this machine is used.
        device: Where to train.
        teacher_base: Where the teacher's base lies, instead of the config's.
        tell: Told what is done.

    Returns:
        Held-out figures of `teacher`, if there is one, and `student`.
    """
    host.out.mkdir(parents=True, exist_ok=True)
    builder = build_bank(config, data)
    tell(f"questions (training, held out): {builder.taken}; left out, for they are protected: {builder.refused}")
    bank = builder.build()
    student = open_trainee(config.student, name="student", device=device)
    found: dict[str, dict[str, float]] = {}
    if config.teacher is None:
        found["student"] = train_on_labels(student, bank, config, config.student, host, name="student")
    else:
        base = replace(config.teacher, source=teacher_base or config.teacher.source)
        teachers = []
        for number in range(config.ensemble):
            name = f"teacher {number + 1}" if config.ensemble > 1 else "teacher"
            model = replace(base, optimiser=replace(base.optimiser, seed=base.optimiser.seed + number))
            teachers.append(open_trainee(model, name=name, device=device, bank=student.folder))
            found[name] = train_on_labels(teachers[-1], bank, config, model, host, name=name.replace(" ", "-"))
            tell(f"{name}: {found[name]}")
        windows = student_windows(bank, config, host)
        said = [predict_windows(teacher, bank, windows) for teacher in teachers]
        found["student"] = train_student(student, said, windows, bank, config, host)
    tell(f"student: {found['student']}")
    folder = host.out / "model"

    def write(threshold: float) -> None:
        write_student(student.network, config, folder, threshold=threshold)

    threshold = settle(folder, config.name, builder.held, write, device=str(device))
    tell(f"threshold: {threshold:.4g}, from {len(builder.held)} held-out questions")
    write_card(folder, config, builder.taken, found, threshold=threshold)
    return found


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
        held = read_source(replace(source, splits=source.validation_splits), data)
        builder.add(source, read_source(source, data), held)
    return builder


def open_trainee(config: ModelConfig, *, name: str, device: torch.device, bank: ModelFolder | None = None) -> Trainee:
    """Open a base encoder with new heads; on a GPU it computes in bfloat16.

    Args:
        config: Names it.
        name: For messages.
        device: Where it is trained.
        bank: Whose tokenizer made the bank; None if it is this one's.
    """
    folder = resolve(ModelSpec(name=name, source=config.source))
    template = template_of(open_tokenizer(folder), None if bank is None else open_tokenizer(bank))
    optimiser = config.optimiser
    network = open_network(folder, layers=config.layers, dropout=optimiser.dropout, seed=optimiser.seed).to(device)
    network.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return Trainee(network, template, folder)


def train_on_labels(
    trainee: Trainee, bank: Bank, config: TrainingConfig, model: ModelConfig, host: Host, *, name: str
) -> dict[str, float]:
    """Train on labels alone, other windows every epoch. Returns the held-out figures; `trainee` is changed in place."""
    with drawer(bank, config, host, seed=model.optimiser.seed) as drawn:

        def epoch(number: int) -> Store:
            return Store.of(bank, drawn.windows(number), trainee.template, device=trainee.device)

        _loop(trainee, model, epoch, host, name, config.digest()).run()
    return figures(trainee, bank, config)


def student_windows(bank: Bank, config: TrainingConfig, host: Host) -> Windows:
    """The windows that the student learns from, for teachers to label."""
    seed = config.student.optimiser.seed
    with drawer(bank, config, host, seed=seed + STUDENT_EPOCHS) as drawn:
        return pair_windows(drawn, pairs=config.distil.pairs, seed=seed)


def predict_windows(trainee: Trainee, bank: Bank, windows: Windows) -> Predictions:
    """What a trained network says of windows, on its device."""
    return predict(trainee.network, Store.of(bank, windows, trainee.template, device=trainee.device))


def train_student(
    student: Trainee,
    said: Sequence[Predictions],
    windows: Windows,
    bank: Bank,
    config: TrainingConfig,
    host: Host,
    *,
    name: str = "student",
) -> dict[str, float]:
    """Train on the teachers' word. Returns the held-out figures; `student` is changed in place.

    Args:
        student: With its base's weights.
        said: Of each teacher, of `windows`.
        windows: Of `student_windows`.
        bank: Where they come from.
        config: How.
        host: How this machine is used.
        name: Of log and checkpoint.
    """
    soft = config.distil.soft
    store = taught(bank, windows, student.template, mean_of(said), soft=soft, device=student.device)
    loop = _loop(student, config.student, lambda _: store, host, name, config.digest())
    if config.bits and config.distil.straight:
        loop.straight = RoundedDelta.of(student.network, bits=config.bits, group=config.group)
        loop.straight_from = 1 - config.distil.straight
    loop.run()
    return figures(student, bank, config)


def drawer(bank: Bank, config: TrainingConfig, host: Host, *, seed: int) -> EpochDrawer:
    """What draws the windows of epochs, as the sources' repeats say."""
    repeats = [source.repeat for source in config.sources]
    return EpochDrawer(bank, config.windows, seed=seed, repeats=repeats, processes=host.processes, folder=host.windows)


def figures(
    trainee: Trainee, bank: Bank, config: TrainingConfig, *, most: int | None = _HELD_QUESTIONS
) -> dict[str, float]:
    """Share of characters removed at 90 % recall on held-out questions, by source, and their mean."""
    room = config.windows.max_tokens - trainee.template.special
    windows = protocol_windows(bank, most=most, room=room)
    store = Store.of(bank, windows, trainee.template, device=trainee.device)
    return held_figures(trainee.network, store, bank, windows, [source.name for source in config.sources])


def write_student(network: PrunerNetwork, config: TrainingConfig, folder: Path, *, threshold: float = 0.5) -> None:
    """Write the native folder: a rounded delta to an embedded base, or all weights.

    Raises:
        ConfigError: A delta is asked for to a base that is not embedded.
    """
    from provence.families.delta import encode_delta
    from provence.families.native import NativeConfig, write_native
    from provence.families.stacking import stacked_config, stacked_tensors

    base = resolve(ModelSpec(name=config.name, source=config.student.source))
    tensors = network.tensors()
    heads = {name: tensors.pop(name) for name in HEADS}
    details = {"name": config.name, "training": asdict(config), "training_digest": config.digest()}
    length, layers = config.windows.max_tokens, config.student.layers
    if config.bits:
        if not config.student.source.startswith(EMBEDDED_PREFIX):
            raise ConfigError(f"bits = {config.bits} needs a student that is embedded. Got {config.student.source!r}")
        whole_base = stacked_tensors(base.tensors(), layers) if layers else base.tensors()
        start = {name: tensor for name, tensor in whole_base.items() if name in tensors}
        stored = encode_delta(start, tensors, bits=config.delta_bits, group=config.group)
        native = NativeConfig(
            base=config.student.source,
            base_digest=base.digest,
            delta="int8" if config.bits == 8 else "int4",  # noqa: PLR2004 - the two there are
            layers=layers or None,
            max_length=length,
            threshold=threshold,
            details=details,
        )
        whole = {f"delta.{name}": tensor for name, tensor in stored.items()}
    else:
        encoder = stacked_config(base.config(), layers) if layers else base.config()
        native = NativeConfig(encoder=encoder, max_length=length, threshold=threshold, details=details)
        whole = {f"encoder.{name}": tensor for name, tensor in tensors.items()}
    write_native(folder, config=native, tensors=whole | heads, tokenizer=base.path("tokenizer.json"))


def _loop(
    trainee: Trainee, model: ModelConfig, epoch: Callable[[int], Store], host: Host, name: str, identity: str
) -> Loop:
    checkpoint = host.out / f"{name}.checkpoint" if host.checkpoint_every else None
    return Loop(
        trainee.network,
        model.optimiser,
        epoch,
        log=host.out / f"{name}.jsonl",
        identity=identity,
        checkpoint=checkpoint,
        checkpoint_every=host.checkpoint_every or 1,
    )
