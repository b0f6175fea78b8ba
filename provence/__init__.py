"""Prune retrieved context for a question: verbatim, with offsets, scores and a relevance a text, in one pass.

    import provence
    pruner = provence.load()
    pruner.prune("who wrote it?", [text, …], threshold=0.1) -> [PrunedContext(text, kept_spans, …), …]

The names below are loaded on first use, so importing this package is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from provence.calibration import Calibration
    from provence.policy import Policy
    from provence.pruner import Pruner
    from provence.results import PrunedContext, ScoredSentence

    load = Pruner.load

_HOME = {
    "Calibration": "calibration",
    "Policy": "policy",
    "PrunedContext": "results",
    "Pruner": "pruner",
    "ScoredSentence": "results",
}

__all__ = ["Calibration", "Policy", "PrunedContext", "Pruner", "ScoredSentence", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module("provence.pruner").Pruner.load
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'provence' has no attribute {name!r}")
    return getattr(importlib.import_module(f"provence.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
