"""Prune retrieved context for a question."""

from __future__ import annotations

__all__: list[str] = []
