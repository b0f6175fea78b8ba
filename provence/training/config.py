"""What a training run depends on, read from TOML.

    config.toml -> load_config -> TrainingConfig -> digest() binds checkpoints to the run

Raises `ConfigError` for unknown keys, wrong types and values out of range, naming the key as it stands in the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from datapipe.errors import ConfigError

__all__ = [
    "DistilConfig",
    "ModelConfig",
    "OptimiserConfig",
    "SourceConfig",
    "TrainingConfig",
    "WindowConfig",
    "load_config",
]

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A labelled set.

    Attributes:
        name: Its Parquet file, without the suffix, in the data folder.
        splits: Splits that are trained on; never `test`.
        validation_splits: Splits held out for choices.
        validation_every: One document in so many of `splits` is held out too, by title where there is one; 0: none.
        repeat: How often an epoch draws windows for each of its questions.
        licence: For the model card.
    """

    name: str
    splits: tuple[str, ...] = ("train",)
    validation_splits: tuple[str, ...] = ()
    validation_every: int = 0
    repeat: int = 1
    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How questions and documents become windows.

    Attributes:
        max_tokens: Tokens of a window at most, special tokens included.
        max_question: Tokens of a question; more are cut.
        max_sentence: Tokens of a sentence; more are cut.
        title_share: Share of windows that show the title of their document, not scored, where there is one.
        random_share: Share of passages of 1-10 sentences; the others hold what fits `passage_tokens`.
        passage_tokens: Tokens of the other passages.
        joined_share: Share of windows in which further passages follow or precede, up to `max_tokens`.
        gold_windows: Windows a question and epoch at most that hold gold.
        near: Windows a question and epoch without gold from the same document.
        far: Windows a question and epoch, on average, from another document of the same set.
        duplicates: Most of an epoch's windows, 0-1, that may repeat question and passage of another.
    """

    max_tokens: int = 512
    max_question: int = 96
    max_sentence: int = 384
    title_share: float = 0.3
    random_share: float = 0.4
    passage_tokens: int = 300
    joined_share: float = 0.15
    gold_windows: int = 3
    near: int = 2
    far: float = 0.5
    duplicates: float = 0.15


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """How weights are changed.

    Attributes:
        steps: Updates.
        seconds: Wall clock after which the schedule ends however few updates were made; 0 for no such end.
        batch_tokens: Tokens of an update, padding included.
        learning_rate: Peak of AdamW's.
        head_rate: The same for the two heads.
        warmup: Share of the updates in which the rate rises from 0; then it falls to 0 along a cosine.
        weight_decay: Of matrices; norms and biases have none.
        dropout: Of hidden states.
        clip: Largest norm of the gradient.
        score_weight: lambda of the score loss.
        average: Decay of the running mean of the weights that is kept at the end; 0 keeps the last.
        frozen: Beginnings of names of tensors that do not change.
        seed: Of weights, windows and dropout.
    """

    steps: int = 2000
    seconds: float = 0.0
    batch_tokens: int = 32_768
    learning_rate: float = 3e-5
    head_rate: float = 1e-3
    warmup: float = 0.06
    weight_decay: float = 0.01
    dropout: float = 0.1
    clip: float = 1.0
    score_weight: float = 0.05
    average: float = 0.0
    frozen: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """What the teacher says, and how much it counts.

    Attributes:
        pairs: Windows that the teacher labels.
        soft: Weight of the teacher's probabilities against labels, 0-1.
        straight: Share of the updates, at the end, made with the delta quantised in the forward pass.
    """

    pairs: int = 400_000
    soft: float = 0.7
    straight: float = 0.2


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A base encoder and how it is trained.

    Attributes:
        source: Folder, hub id, or `embedded:NAME`.
        layers: Layers of the base that the network's start from, one each; empty for the base's own.
        optimiser: How.
    """

    source: str
    layers: tuple[int, ...] = ()
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A whole run.

    Attributes:
        name: Of the model made.
        student: The model made.
        sources: Labelled sets.
        protected: Sets, by name, whose `test` split nothing may touch.
        windows: How they are cut.
        teacher: Trained first if given; the student then learns from it.
        ensemble: Teachers, each of the next seed; the student learns from their mean.
        distil: How.
        bits: Bits of a weight of the student's delta, 4 or 8; 0 writes whole weights.
        group: Columns of the student's delta that share a step.
    """

    name: str
    student: ModelConfig
    sources: tuple[SourceConfig, ...]
    protected: tuple[str, ...] = ()
    windows: WindowConfig = field(default_factory=WindowConfig)
    teacher: ModelConfig | None = None
    ensemble: int = 1
    distil: DistilConfig = field(default_factory=DistilConfig)
    bits: int = 4
    group: int = 64

    def __post_init__(self) -> None:
        if self.bits not in {0, 4, 8}:
            raise ConfigError(f"bits must be 0, 4 or 8. Got {self.bits}")

    @property
    def delta_bits(self) -> Literal[4, 8]:
        """Bits of the delta as `encode_delta` takes them."""
        return 8 if self.bits == 8 else 4  # noqa: PLR2004 - the two there are

    def digest(self) -> str:
        """SHA-256 of all values, first 16 hexadecimal digits; a key of `_LATER` counts only away from its default."""
        whole = _without_later(dataclasses.asdict(self))
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


_LATER: dict[str, Any] = {"layers": (), "ensemble": 1, "group": 64}
"""Defaults of keys that came after weights were shipped, whose configs must keep their digest."""


def _without_later(table: Any) -> Any:
    if not isinstance(table, dict):
        return table
    return {k: _without_later(v) for k, v in table.items() if not (k in _LATER and v == _LATER[k])}


_RANGES: dict[str, tuple[float, float]] = {
    "validation_every": (0, 1 << 20),
    "repeat": (1, 1000),
    "max_tokens": (16, 1 << 16),
    "max_question": (1, 1 << 16),
    "max_sentence": (1, 1 << 16),
    "title_share": (0, 1),
    "random_share": (0, 1),
    "passage_tokens": (1, 1 << 16),
    "joined_share": (0, 1),
    "gold_windows": (1, 1000),
    "near": (0, 1000),
    "far": (0, 1000),
    "duplicates": (0, 1),
    "steps": (1, 1 << 31),
    "seconds": (0, float("inf")),
    "batch_tokens": (16, 1 << 31),
    "learning_rate": (0, 1),
    "head_rate": (0, 1),
    "warmup": (0, 1),
    "weight_decay": (0, 1),
    "dropout": (0, 0.9),
    "clip": (1e-6, float("inf")),
    "score_weight": (0, float("inf")),
    "average": (0, 0.9999999),
    "seed": (0, (1 << 63) - 1),
    "pairs": (1, 1 << 31),
    "soft": (0, 1),
    "straight": (0, 1),
    "bits": (0, 8),
    "group": (16, 4096),
    "ensemble": (1, 100),
}


def load_config(path: Path | str) -> TrainingConfig:
    """Read a run's config.

    Raises:
        ConfigError: The file is missing or no TOML, holds an unknown key, lacks one, or a value is out of range.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not valid TOML: {error}") from error
    try:
        return _built(TrainingConfig, content, "")
    except ConfigError as error:
        raise ConfigError(f"config {path}: {error}") from None


def _built(kind: type[_T], content: Any, where: str) -> _T:
    if not isinstance(content, dict):
        raise ConfigError(f"{where or 'the file'} must be a table. Got {content!r}")
    hints = typing.get_type_hints(kind)
    declared: Any = kind
    fields = {item.name: item for item in dataclasses.fields(declared)}
    unknown = sorted(content.keys() - fields.keys())
    if unknown:
        raise ConfigError(f"unknown key {where}{unknown[0]}; there are: {', '.join(fields)}")
    missing = dataclasses.MISSING
    for name, item in fields.items():
        if name not in content and item.default is missing and item.default_factory is missing:
            raise ConfigError(f"key {where}{name} is missing")
    return kind(**{name: _value(hints[name], value, where + name) for name, value in content.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    plain = [part for part in typing.get_args(hint) if part not in {type(None), ...}]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list. Got {value!r}")
        return tuple(_value(plain[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    kind = plain[0] if plain else hint
    if dataclasses.is_dataclass(kind):
        return _built(cast("type[Any]", kind), value, where + ".")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{where} must be of type {kind.__name__}. Got {value!r}")
    low, high = _RANGES.get(where.rpartition(".")[2], (float("-inf"), float("inf")))
    if isinstance(value, int | float) and not low <= value <= high:
        raise ConfigError(f"{where} must be in {low:g} to {high:g}. Got {value}")
    return value
