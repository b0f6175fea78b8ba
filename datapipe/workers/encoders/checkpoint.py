"""Whether a checkpoint holds the tensors of its encoder: all of them, and nothing that would silently be left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapipe.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from datapipe.workers.folder import ModelFolder

__all__ = ["UNUSED_TENSORS", "refuse_difference"]

UNUSED_TENSORS = ("pooler.", "embeddings.position_ids")
"""What the names of tensors begin with that a checkpoint may hold or lack: hidden states do not need them."""

_SHOWN = 5


def refuse_difference(
    folder: ModelFolder, expected: Mapping[str, tuple[int, ...]], given: Mapping[str, torch.Tensor]
) -> None:
    """Raise `ModelError` unless `given` holds exactly the tensors `expected`; names the first that differ."""
    missing = sorted(expected.keys() - given.keys())
    if missing:
        raise ModelError(f"model {folder.name}: tensors are missing from {folder.root}: {_listed(missing)}")
    left_over = sorted(given.keys() - expected.keys())
    if left_over:
        raise ModelError(
            f"model {folder.name}: {folder.root} holds tensors that its encoder lacks: {_listed(left_over)}"
        )
    for name, shape in expected.items():
        found = tuple(given[name].shape)
        if found != shape:
            raise ModelError(f"model {folder.name}: tensor {name} has shape {found}, but config.json means {shape}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
