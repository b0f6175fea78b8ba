"""Pruning on the CPU without torch: int8 graphs, run by onnxruntime.

    native folder -> tensors (numpy) -> int8 graph -> onnxruntime -> the same probabilities and scores, nearly

    Pruner.load("default", worker=OnnxWorker())

Names are loaded when they are first used; all need the extra `onnx`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from provence.onnx.export import export_onnx
    from provence.onnx.worker import OnnxWorker

_HOME = {"OnnxWorker": "worker", "export_onnx": "export"}

__all__ = ["OnnxWorker", "export_onnx"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'provence.onnx' has no attribute {name!r}")
    return getattr(importlib.import_module(f"provence.onnx.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
