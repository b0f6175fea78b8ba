"""Which model a pruner means, and which calibration goes with it.

default | folder | hub id -> resolved -> ModelSpec, ModelFolder        calibration | file | nothing -> read_calibration
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datapipe.errors import ModelNotFoundError
from datapipe.workers.spec import ModelSpec
from provence.calibration import Calibration

if TYPE_CHECKING:
    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.spec import DtypeName

__all__ = ["CALIBRATION", "DEFAULT", "Backend", "named", "read_calibration", "resolved"]

DEFAULT = "default"

Backend = Literal["torch", "onnx"]
"""What a worker of a pruner's own computes with."""

CALIBRATION = "calibration.json"
"""In a model's folder: the calibration that is used where none is given."""


def resolved(model: str, *, dtype: DtypeName | None, max_length: int | None) -> tuple[ModelSpec, ModelFolder]:
    """What a worker of our own is told of a model, and the model's folder.

    Args:
        model: `default`, a folder, or a hub id.
        dtype: Precision; None leaves it to the task (`PruneTask.precision`), as a server does.
        max_length: Tokens of a window at most; None takes the model's own.

    Raises:
        ModelError: There is no such model.
        ConfigError: An option is out of range.
    """
    from datapipe.workers.folder import resolve

    spec = named(model)
    return replace(spec, dtype=dtype or spec.dtype, max_length=max_length or spec.max_length), resolve(spec)


def named(model: str) -> ModelSpec:
    """The spec of `default`, of a folder or of a hub id. Raises `ModelNotFoundError` where no default is installed."""
    return _default_spec() if model == DEFAULT else ModelSpec(name=model, source=model, task="prune")


def _default_spec() -> ModelSpec:
    try:
        weights = importlib.import_module("provence.weights")
    except ModuleNotFoundError as error:
        raise ModelNotFoundError(
            "this installation comes without a default pruner; name a folder or a hub id of one"
        ) from error
    found: ModelSpec = weights.DEFAULT
    return found


def read_calibration(given: Calibration | str | Path | None, folder: ModelFolder | None = None) -> Calibration | None:
    """The calibration given, that of a file, or the one in the model's folder. Raises `ConfigError`."""
    if given is None and folder is not None and (folder.root / CALIBRATION).is_file():
        given = folder.root / CALIBRATION
    return Calibration.load(given) if isinstance(given, str | Path) else given
