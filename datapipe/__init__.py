"""Score and prune training datasets into Parquet, and prove that nothing was lost.

The public names are loaded on first use, so that `import datapipe` costs milliseconds and pulls in neither torch nor
Polars.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datapipe.advisor.decide import Advice
    from datapipe.advisor.run import advise
    from datapipe.config import CurateConfig
    from datapipe.curation import curate
    from datapipe.distill.run import SoftLabelResult, soft_labels
    from datapipe.frames import score, select
    from datapipe.paser.run import RecoveryResult, select_recovery
    from datapipe.proof.run import Proof, prove
    from datapipe.runs import CurateResult, open_run
    from datapipe.selection.budget import Budget
    from datapipe.storage.source import scan
    from datapipe.storage.verify import verify

__version__ = "0.1.0"

_HOME = {
    "Advice": "datapipe.advisor.decide",
    "advise": "datapipe.advisor.run",
    "Budget": "datapipe.selection.budget",
    "CurateConfig": "datapipe.config",
    "CurateResult": "datapipe.runs",
    "open_run": "datapipe.runs",
    "curate": "datapipe.curation",
    "Proof": "datapipe.proof.run",
    "prove": "datapipe.proof.run",
    "RecoveryResult": "datapipe.paser.run",
    "scan": "datapipe.storage.source",
    "SoftLabelResult": "datapipe.distill.run",
    "soft_labels": "datapipe.distill.run",
    "score": "datapipe.frames",
    "select": "datapipe.frames",
    "select_recovery": "datapipe.paser.run",
    "verify": "datapipe.storage.verify",
}

__all__ = [
    "Advice",
    "Budget",
    "CurateConfig",
    "CurateResult",
    "Proof",
    "RecoveryResult",
    "SoftLabelResult",
    "__version__",
    "advise",
    "curate",
    "open_run",
    "prove",
    "scan",
    "score",
    "select",
    "select_recovery",
    "soft_labels",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'datapipe' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
