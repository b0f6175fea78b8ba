"""Which model: a name, where it lies, and what must be true of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from datapipe.errors import ConfigError

__all__ = ["DEFAULT_EMBEDDER", "EMBEDDED_PREFIX", "DtypeName", "ModelSpec", "spec_of"]

EMBEDDED_PREFIX = "embedded:"

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelSpec:
    """A model that a worker can load.

    Attributes:
        name: What callers ask for.
        source: `embedded:NAME` (weights inside this package), a local folder, or a hub id (`owner/name`).
        revision: Branch, tag or commit of a hub id; None is its default branch. Refused for other sources.
        digest: SHA-256 that the model's files must have (see `ModelFolder.digest`); None checks nothing.
        task: Name of the task that opens the model.
        dtype: Precision of the computation. `auto` follows the hardware, never a timing: bfloat16 on CUDA and on
            processors with AMX-BF16 or AVX512-BF16, float32 elsewhere.
        max_length: Tokens after which a text is cut; None takes what the model states. Never more than its positions.
        beside: Sources of further models, whose word counts as much as this one's; for the task `teach`.

    Raises:
        ConfigError: A field is empty or out of range.
    """

    name: str
    source: str
    revision: str | None = None
    digest: str | None = None
    task: str = "embed"
    dtype: DtypeName = "auto"
    max_length: int | None = None
    beside: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or not self.source or "\0" in self.source:
            raise ConfigError(f"a model needs a name and a source. Got name {self.name!r}, source {self.source!r}")
        if self.digest is not None and _DIGEST.fullmatch(self.digest) is None:
            raise ConfigError(f"the digest of model {self.name} must be 64 hex digits (SHA-256). Got {self.digest!r}")
        if self.dtype not in _DTYPES:
            raise ConfigError(f"the dtype of model {self.name} must be one of {', '.join(_DTYPES)}. Got {self.dtype!r}")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"the max_length of model {self.name} must be at least 1. Got {self.max_length}")
        if self.beside and self.task != "teach":
            raise ConfigError(f"several models together can teach, model {self.name} is for the task {self.task!r}")
        if self.revision is not None and self.source.startswith(EMBEDDED_PREFIX):
            raise ConfigError(f"model {self.name} is embedded and has no revisions. Got revision {self.revision!r}")


DEFAULT_EMBEDDER = ModelSpec(name="all-MiniLM-L6-v2", source="embedded:all-MiniLM-L6-v2")
"""The embedder that comes with the package: all-MiniLM-L6-v2, 384 dimensions, texts of up to 256 tokens."""

DEFAULT_NAME = "default"


def spec_of(model: str, *, task: str = "embed") -> ModelSpec:
    """The spec of a model named by its source alone: `default`, `embedded:NAME`, a local folder, or a hub id."""
    if model == DEFAULT_NAME and task == DEFAULT_EMBEDDER.task:
        return replace(DEFAULT_EMBEDDER, name=model)
    return ModelSpec(name=model, source=model, task=task)
