"""A native pruner to a folder that runs where neither torch nor the package onnx is installed.

model (default, folder, hub id) -> open_exported -> OUT/model.onnx, config.json, tokenizer.json
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datapipe.workers.folder import resolve
from datapipe.workers.spec import ModelSpec
from provence.loading import named

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["export_onnx", "spec_of_pruner"]


def export_onnx(model: str | Path | ModelSpec, out: Path) -> dict[str, Any]:
    """Write the int8 graph of a pruner of our own layout, and what it needs, to `out`.

    Args:
        model: `default`, a folder, a hub id, or a spec.
        out: Folder; made if it is not there, written over if it is.

    Returns:
        `graph_bytes`, `source_digest` and `digest`, to which a calibration of the exported model is bound.

    Raises:
        ModelError: It is no native pruner, or its encoder is no BERT or of its kin.
        MissingExtraError: The package onnx is not installed.
        OutputError: `out` cannot be written.
    """
    from provence.onnx.layout import open_exported, write_exported

    spec = spec_of_pruner(model)
    folder = resolve(spec)
    folder.check(spec.digest)
    exported = open_exported(folder)
    write_exported(out, exported, tokenizer=folder.path("tokenizer.json"))
    return {
        "graph_bytes": len(exported.graph),
        "source_digest": exported.source_digest,
        "digest": exported.digest,
    }


def spec_of_pruner(model: str | Path | ModelSpec) -> ModelSpec:
    """The spec of a model named in one of the usual ways. Raises `ModelNotFoundError` where no default is installed."""
    return model if isinstance(model, ModelSpec) else named(str(model))
