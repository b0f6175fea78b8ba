"""Our own layout: an encoder of its own, or differences to the embedded one, with a keep head and a score head.

    config.json (NativeConfig), tokenizer.json, model.safetensors -> open_native -> HeadedPruner

Tensors: `keep.weight` (1 or 2, dim) and `keep.bias`, the keep logit of a token (of two rows softmax's second counts);
`score.weight` (1, dim) and `score.bias`, a raw logit from the first token's state; and the encoder's: `encoder.NAME` in
full, or with a base `delta.NAME`, which is added to the base's. Either may be packed (see `delta`). Question and text
are of one token type. Raises `ModelError`, and `DigestError` where the base is not the one that the differences are to.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from datapipe.errors import ConfigError, ModelError
from datapipe.workers.encoders import open_encoder
from datapipe.workers.encoders.checkpoint import refuse_difference
from datapipe.workers.folder import resolve
from datapipe.workers.spec import EMBEDDED_PREFIX, ModelSpec
from provence.families.base import Conduct, Rule
from provence.families.delta import decode_delta, unpack_tensors
from provence.families.heads import Affine, HeadedPruner, KeepHead, ScoreHead
from provence.families.stacking import stacked_config, stacked_tensors
from provence.families.view import FolderView, under

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from datapipe.workers.folder import ModelFolder

__all__ = ["FORMAT", "MODEL_TYPE", "NativeConfig", "native_conduct", "open_native", "write_native"]

MODEL_TYPE = "secateur_pruner"
FORMAT = 1

DeltaKind = Literal["int4", "int8"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ENCODER, _DELTA, _HEADS = "encoder.", "delta.", ("keep.", "score.")
_HEAD_NAMES = ("keep.weight", "keep.bias", "score.weight", "score.bias")
_LEAST_LENGTH = 8


@dataclass(frozen=True, kw_only=True)
class NativeConfig:
    """What config.json of our layout states.

    Attributes:
        base: `embedded:NAME` of the model that the tensors are differences to; None if the encoder is stored in full.
        base_digest: SHA-256 of the base's files (`ModelFolder.digest`); needed with a base.
        encoder: config.json of the encoder with its `model_type`; needed without a base, where it must not be given.
        delta: How differences are packed; None if there are none, then the encoder is the base.
        layers: Layers of the base that the encoder's start from, one each; None for the base's own.
        max_length: Tokens of a window at most, special tokens included, at least 8.
        threshold: Default threshold, 0-1.
        rule: Default rule of decision.
        details: Anything else that is worth keeping beside the weights.

    Raises:
        ConfigError: Fields contradict each other or are out of range.
    """

    base: str | None = None
    base_digest: str | None = None
    encoder: Mapping[str, Any] | None = None
    delta: DeltaKind | None = None
    layers: tuple[int, ...] | None = None
    max_length: int = 512
    threshold: float = 0.5
    rule: Rule = "mean"
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers: Any = self.layers
        if isinstance(layers, list):  # as JSON has it
            object.__setattr__(self, "layers", tuple(layers))
        problem = self._problem()
        if problem is not None:
            raise ConfigError(f"the config of a native pruner {problem}")

    @classmethod
    def of(cls, folder: ModelFolder) -> Self:
        """Read config.json. Raises `ModelError` if it is none of ours, of a later format, or contradicts itself."""
        settings = folder.config()
        if settings.pop("model_type") != MODEL_TYPE:
            raise ModelError(f"model {folder.name}: {folder.root / 'config.json'} states no model_type {MODEL_TYPE}")
        if settings.pop("format", None) != FORMAT:
            raise ModelError(
                f"model {folder.name}: {folder.root / 'config.json'} does not state format {FORMAT}, the only one that "
                "this version reads; a later version of secateur may have written it"
            )
        known = {name: settings.pop(name) for name in _FIELDS if name in settings}
        try:
            return cls(**known, details=settings)
        except ConfigError as error:
            raise ModelError(f"model {folder.name}: {folder.root / 'config.json'}: {error}") from error

    def as_json(self) -> dict[str, Any]:
        """The content of config.json."""
        own = {name: getattr(self, name) for name in _FIELDS if name != "layers" or self.layers is not None}
        return {"model_type": MODEL_TYPE, "format": FORMAT, **own, **self.details}

    def _problem(self) -> str | None:
        length: Any = self.max_length  # of JSON, so of any type
        threshold: Any = self.threshold
        if not isinstance(length, int) or length < _LEAST_LENGTH:
            return f"needs a max_length of at least {_LEAST_LENGTH}. Got {length!r}"
        if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            return f"needs a threshold of 0 to 1. Got {threshold!r}"
        if self.rule not in get_args(Rule):
            return f"must have the rule mean or share. Got {self.rule!r}"
        taken = sorted(self.details.keys() & {"model_type", "format", *_FIELDS})
        if taken:
            return f"has details under names that mean something else: {', '.join(taken)}"
        return self._encoder_problem()

    def _encoder_problem(self) -> str | None:
        if (self.base is None) == (self.encoder is None):
            return "needs either a base or an encoder, and not both"
        if self.delta not in {None, *get_args(DeltaKind)} or (self.delta is not None and self.base is None):
            return f"has a delta of {self.delta!r}; it must be int4 or int8 and needs a base"
        layers: Any = self.layers
        if layers is not None and (
            self.base is None or not isinstance(layers, tuple) or not layers or not all(map(_is_layer, layers))
        ):
            return f"has layers of {layers!r}; they must be numbers of layers of its base"
        if self.encoder is not None:
            typed = isinstance(self.encoder, dict) and isinstance(self.encoder.get("model_type"), str)
            return None if typed else "has an encoder that is no config with a model_type"
        if not str(self.base).startswith(EMBEDDED_PREFIX):
            return f"must name a base inside the package, {EMBEDDED_PREFIX}NAME. Got {self.base!r}"
        if _DIGEST.fullmatch(str(self.base_digest)) is None:
            return f"must state the base_digest of its base, 64 hex digits. Got {self.base_digest!r}"
        return None


def _is_layer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_FIELDS = tuple(each.name for each in fields(NativeConfig) if each.name != "details")


def native_conduct(folder: ModelFolder) -> Conduct:
    """How the model in `folder` wants to be used. Raises `ModelError` as `NativeConfig.of` does."""
    config = NativeConfig.of(folder)
    return Conduct(family="native", rule=config.rule, threshold=config.threshold, max_length=config.max_length)


def open_native(folder: ModelFolder, *, conduct: Conduct, device: torch.device, dtype: torch.dtype) -> HeadedPruner:
    """Load a model of our layout.

    Args:
        folder: Where it lies.
        conduct: Of `native_conduct`, perhaps changed.
        device: Where it computes.
        dtype: In which precision the encoder computes.

    Raises:
        ModelError: Tensors are missing, left over, or of another shape; names them.
        DigestError: The embedded base is another than the one that the differences belong to.
    """
    config = NativeConfig.of(folder)
    tensors = folder.tensors()
    heads = {name: tensor for name, tensor in tensors.items() if name.startswith(_HEADS)}
    rest = {name: tensor for name, tensor in tensors.items() if name not in heads}
    encoder = open_encoder(_encoder_of(folder, config, rest), device=device, dtype=dtype)
    _check_heads(folder, heads, dim=encoder.dim)
    keep = KeepHead.of(heads, "keep", device=device)
    score = ScoreHead(Affine.of(heads, "score", device=device))
    return HeadedPruner(encoder, conduct=conduct, keep=keep, score=score)


def write_native(folder: Path, *, config: NativeConfig, tensors: Mapping[str, torch.Tensor], tokenizer: Path) -> None:
    """Write a folder that `open_model` reads; an existing one is written over, config.json last.

    Args:
        folder: Where to; made if it does not exist.
        config: What config.json states.
        tensors: As the module's docstring names them.
        tokenizer: The tokenizer.json that goes with them.

    Raises:
        ModelError: A tensor's name has no place in the layout, or a head is missing.
    """
    from safetensors.torch import save

    allowed = (_ENCODER if config.base is None else _DELTA, *_HEADS)
    stray = sorted(name for name in tensors if not name.startswith(allowed))
    if stray:
        raise ModelError(f"tensor {stray[0]} has no place in a native pruner: names begin with {', '.join(allowed)}")
    absent = [name for name in _HEAD_NAMES if name not in tensors]
    if absent:
        raise ModelError(f"a native pruner needs the tensors {', '.join(absent)}")
    folder.mkdir(parents=True, exist_ok=True)
    content = tokenizer.read_bytes()
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    _replace(folder / "tokenizer.json", content)
    _replace(folder / "model.safetensors", save(plain, metadata={"format": "pt"}))
    _replace(folder / "config.json", (json.dumps(config.as_json(), indent=2) + "\n").encode())


def _encoder_of(folder: ModelFolder, config: NativeConfig, tensors: dict[str, torch.Tensor]) -> FolderView:
    """The encoder's config and tensors, differences added to the base."""
    inside, stray = under(tensors, _ENCODER if config.base is None else _DELTA)
    refuse_difference(folder, {}, stray)
    if config.encoder is not None:
        return FolderView.of(folder, settings=config.encoder, tensors=unpack_tensors(inside))
    if config.delta is None:
        refuse_difference(folder, {}, {f"{_DELTA}{name}": tensor for name, tensor in inside.items()})
    base = resolve(ModelSpec(name=folder.name, source=str(config.base)))
    base.check(config.base_digest)
    start, settings = base.tensors(), base.config()
    try:
        if config.layers is not None:
            start, settings = stacked_tensors(start, config.layers), stacked_config(settings, config.layers)
        merged = decode_delta(start, inside)
    except ModelError as error:
        raise ModelError(f"model {folder.name}: {folder.root}: {error}") from error
    return FolderView.of(folder, settings=settings, tensors=merged)


def _check_heads(folder: ModelFolder, heads: Mapping[str, torch.Tensor], *, dim: int) -> None:
    rows = 2 if "keep.weight" in heads and heads["keep.weight"].shape == (2, dim) else 1
    expected = {"keep.weight": (rows, dim), "keep.bias": (rows,), "score.weight": (1, dim), "score.bias": (1,)}
    refuse_difference(folder, expected, heads)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
