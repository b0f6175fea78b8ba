"""The pruner inside the package; its folder's README says what it saw, how it was made, and how good it is."""

from __future__ import annotations

from pathlib import Path

from datapipe.workers.spec import ModelSpec

__all__ = ["DEFAULT"]

DEFAULT = ModelSpec(
    name="provence-default", source=str(Path(__file__).resolve().parent / "provence-default"), task="prune"
)
"""A 4-bit difference to the embedded all-MiniLM-L6-v2."""
