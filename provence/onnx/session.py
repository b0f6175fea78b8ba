"""A graph in onnxruntime, on the CPU, one thread a run; a session may be run by several threads at once.

Raises `MissingExtraError` where onnxruntime is not installed, and `ModelError` for a graph that does not load.
"""

from __future__ import annotations

from typing import Any, Final

from datapipe.errors import MissingExtraError, ModelError
from datapipe.workers.device import cpu_flags

__all__ = ["open_session"]

_EXACT: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Instructions that sum products of int8 without overflow. Without any, onnxruntime is told to take its slower way."""


def open_session(graph: bytes, *, name: str) -> Any:
    """Load a serialised graph; `name` is for messages."""
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError.of("onnxruntime", extra="onnx", purpose="pruning without torch") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # windows differ in length, so no plan of the memory is used twice
    options.log_severity_level = 3
    if not _EXACT & cpu_flags():
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # what onnxruntime raises has no common base
        raise ModelError(f"model {name}: onnxruntime cannot run its graph ({error})") from error
