"""A native pruner to a folder that runs where neither torch nor the package onnx is installed.

model (default, folder, hub id) -> open_exported -> OUT/model.onnx, config.json, tokenizer.json, LICENSE, README.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datapipe.errors import OutputError
from datapipe.workers.folder import resolve
from datapipe.workers.spec import ModelSpec
from provence.loading import named

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.workers.folder import ModelFolder

__all__ = ["export_onnx", "spec_of_pruner"]

_PAPERS = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "README.md")
"""What goes with a model wherever it goes: its licence, and its card."""


def export_onnx(model: str | Path | ModelSpec, out: Path) -> dict[str, Any]:
    """Write the int8 graph of a pruner of our own layout, what it needs, its licence and its card to `out`.

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
    _copy_papers(folder, out)
    write_exported(out, exported, tokenizer=folder.path("tokenizer.json"))
    return {
        "graph_bytes": len(exported.graph),
        "source_digest": exported.source_digest,
        "digest": exported.digest,
    }


def _copy_papers(folder: ModelFolder, out: Path) -> None:
    """Copy those that are there. Raises `OutputError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in _PAPERS:
            if (folder.root / name).is_file():
                (out / name).write_bytes((folder.root / name).read_bytes())
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error


def spec_of_pruner(model: str | Path | ModelSpec) -> ModelSpec:
    """The spec of a model named in one of the usual ways. Raises `ModelNotFoundError` where no default is installed."""
    return model if isinstance(model, ModelSpec) else named(str(model))
