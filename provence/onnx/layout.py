"""The folder of an exported pruner (config.json, model.onnx, tokenizer.json), and the graph of any folder.

    folder of ours (native)   -> read_native, build_graph -> Exported, in memory
    folder of an export       -> config.json, model.onnx  -> Exported

Both give the same graph. Reading an export needs neither torch nor the package onnx. Raises `ModelError`.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from datapipe.errors import MissingExtraError, ModelError, ModelNotFoundError, OutputError
from provence.families.base import Conduct

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.workers.folder import ModelFolder

__all__ = ["FILES", "MODEL_TYPE", "Exported", "is_exported", "open_exported", "write_exported"]

MODEL_TYPE: Final = "secateur_onnx"
FORMAT: Final = 1

_GRAPH: Final = "model.onnx"
_KIND: Final = "int8"

FILES: Final = ("config.json", _GRAPH, "tokenizer.json")
"""What an export consists of, papers not counted."""


@dataclass(frozen=True)
class Exported:
    """A pruner as a graph.

    Attributes:
        graph: Serialised; see `graph` for its inputs and outputs.
        conduct: How the model wants to be used.
        vocabulary: Token ids that it knows.
        positions: Tokens that a window may have.
        source_digest: SHA-256 of the files that it was made of.
    """

    graph: bytes
    conduct: Conduct
    vocabulary: int
    positions: int
    source_digest: str

    @property
    def digest(self) -> str:
        """SHA-256 to which a calibration is bound: int8 gives other probabilities than the model it was made of."""
        return hashlib.sha256(f"{MODEL_TYPE} {FORMAT} {_KIND} {self.source_digest}".encode()).hexdigest()


def open_exported(folder: ModelFolder) -> Exported:
    """The graph in a folder, or that of the native pruner in it.

    Raises:
        ModelError: It is neither, or damaged.
        MissingExtraError: Its graph must be built first, which needs the package onnx.
    """
    config = folder.config()
    if config["model_type"] != MODEL_TYPE:
        return _built(folder)
    path = folder.path(_GRAPH)
    if not path.is_file():
        raise ModelNotFoundError(f"model {folder.name}: {folder.root} has no {_GRAPH}; export the pruner again")
    try:
        if config["format"] != FORMAT:
            raise ModelError(f"model {folder.name}: {folder.root} is of format {config['format']}, not {FORMAT}")
        graph = path.read_bytes()
        if hashlib.sha256(graph).hexdigest() != config["graph_sha256"]:
            raise ModelError(f"model {folder.name}: {path} is damaged: it is not the file that config.json names")
        return Exported(
            graph=graph,
            conduct=Conduct(**config["conduct"]),
            vocabulary=int(config["vocabulary"]),
            positions=int(config["positions"]),
            source_digest=str(config["source_digest"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"model {folder.name}: {folder.root / 'config.json'} is incomplete ({error})") from error


def is_exported(folder: Path) -> bool:
    """Whether a folder says of itself that it is an export."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def write_exported(folder: Path, exported: Exported, *, tokenizer: Path) -> None:
    """Write a folder that `open_exported` reads; config.json last. Raises `OutputError`."""
    config: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "format": FORMAT,
        "kind": _KIND,
        "conduct": asdict(exported.conduct),
        "vocabulary": exported.vocabulary,
        "positions": exported.positions,
        "source_digest": exported.source_digest,
        "graph_sha256": hashlib.sha256(exported.graph).hexdigest(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "tokenizer.json", tokenizer.read_bytes())
        _replace(folder / _GRAPH, exported.graph)
        _replace(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error


def _built(folder: ModelFolder) -> Exported:
    try:
        import onnx  # noqa: F401 - asked for before anything is read
    except ImportError as error:
        raise MissingExtraError.of("onnx", extra="onnx", purpose="building the int8 graph of a pruner") from error
    from provence.onnx.graph import build_graph
    from provence.onnx.outliers import wide_channels
    from provence.onnx.read import read_native
    from provence.tokens import UnitTokenizer

    pruner = read_native(folder)
    graph = build_graph(pruner, wide_channels(pruner, UnitTokenizer(folder)))
    config, shape = pruner.config, pruner.shape
    longest = min(config.max_length, shape.usable)
    conduct = Conduct(family="native", rule=config.rule, threshold=config.threshold, max_length=longest)
    return Exported(graph, conduct, shape.vocabulary, shape.usable, folder.digest)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
