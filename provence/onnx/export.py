"""A native pruner to a folder that runs where neither torch nor the package onnx is installed.

model (default, folder, hub id) -> open_exported -> OUT/model.onnx, config.json, tokenizer.json, LICENSE, README.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datapipe.errors import OutputError
from datapipe.workers.folder import resolve
from datapipe.workers.spec import ModelSpec
from provence.loading import CALIBRATION, named

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
        out: Folder; made if it is not there. An earlier export in it is replaced whole, its calibration included,
            which is of other probabilities; a folder with anything else in it is refused.

    Returns:
        `graph_bytes`, `source_digest` and `digest`, to which a calibration of the exported model is bound.

    Raises:
        ModelError: It is no native pruner, or its encoder is no BERT or of its kin.
        MissingExtraError: The package onnx is not installed.
        OutputError: `out` cannot be written, is the model's own folder, or holds what no export wrote.
    """
    from provence.onnx.layout import FILES, open_exported, write_exported

    spec = spec_of_pruner(model)
    folder = resolve(spec)
    folder.check(spec.digest)
    stale = _stale(out, folder)
    exported = open_exported(folder)
    papers = _copy_papers(folder, out)
    write_exported(out, exported, tokenizer=folder.path("tokenizer.json"))
    _remove([path for path in stale if path.name not in {*FILES, *papers}])
    return {
        "graph_bytes": len(exported.graph),
        "source_digest": exported.source_digest,
        "digest": exported.digest,
    }


def _stale(out: Path, folder: ModelFolder) -> list[Path]:
    """Files of an earlier export in a folder, none if it is empty or new. Raises `OutputError` for any other folder."""
    from provence.onnx.layout import FILES, is_exported

    found = sorted(out.iterdir()) if out.is_dir() else []
    if found and out.resolve() == folder.root.resolve():
        raise OutputError(f"{out} is the folder of the model that is exported; name another")
    strange = [path.name for path in found if path.name not in {*FILES, *_PAPERS, CALIBRATION} or path.is_dir()]
    if strange or (found and not is_exported(out)):
        raise OutputError(
            f"{out} is not empty, and {strange[0] if strange else found[0].name} in it is of no earlier export; name "
            "another folder, or empty this one"
        )
    return found


def _remove(stale: list[Path]) -> None:
    """Remove files. Raises `OutputError`."""
    for path in stale:
        try:
            path.unlink()
        except OSError as error:
            raise OutputError(f"cannot remove {path}: {error.strerror or error}") from error


def _copy_papers(folder: ModelFolder, out: Path) -> list[str]:
    """Copy those that are there, and tell which. Raises `OutputError`."""
    there = [name for name in _PAPERS if (folder.root / name).is_file()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in there:
            (out / name).write_bytes((folder.root / name).read_bytes())
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    return there


def spec_of_pruner(model: str | Path | ModelSpec) -> ModelSpec:
    """The spec of a model named in one of the usual ways. Raises `ModelNotFoundError` where no default is installed."""
    return model if isinstance(model, ModelSpec) else named(str(model))
