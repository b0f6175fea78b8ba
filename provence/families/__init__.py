"""Checkpoints of several families, read natively: safetensors and JSON only, no code of a folder runs.

    folder -> family (by model_type, else by the names of its tensors) -> conduct -> encoder and heads on the device

A folder that is of no family is refused with what was found and what would be read (`ModelError`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from datapipe.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch

    from datapipe.workers.folder import ModelFolder
    from provence.families.base import Conduct, PrunerModel

__all__ = ["conduct_of", "open_model"]

_READABLE = {
    "native": "model_type secateur_pruner",
    "provence": "model_type Provence, or tensors deberta.* and token_classifier.*",
    "xprovence": "model_type XProvence, or tensors roberta.* and token_classifier.*",
    "open_provence": "model_type open_provence, or tensors pruning_head.*",
}
"""By what a family is recognised."""

_BY_TYPE = {
    "secateur_pruner": "native",
    "provence": "provence",
    "xprovence": "xprovence",
    "open_provence": "open_provence",
}
_EXPORTED = "secateur_onnx"


def open_model(
    folder: ModelFolder, *, device: torch.device, dtype: torch.dtype, max_length: int | None = None
) -> PrunerModel:
    """Load a pruner of any family.

    Args:
        folder: Where it lies.
        device: Where it computes.
        dtype: In which precision the encoder computes; heads are float32.
        max_length: Tokens of a window at most; None takes the model's own. Never more than its positions.

    Raises:
        ModelNotFoundError: There is no config.json or no safetensors.
        UnsafeModelError: Weights are there as pickles only.
        ModelError: It is of no family, a file is damaged, or tensors are missing or left over; names them.
        ConfigError: `max_length` is not positive.
    """
    if max_length is not None and max_length < 1:
        raise ConfigError(f"max_length must be at least 1. Got {max_length}")
    family = _family_of(folder)
    conduct = _conduct(folder, family)
    if max_length is not None:
        conduct = replace(conduct, max_length=max_length)
    if family == "native":
        from provence.families.native import open_native

        return open_native(folder, conduct=conduct, device=device, dtype=dtype)
    if family == "open_provence":
        from provence.families.open_provence import open_open_provence

        return open_open_provence(folder, conduct=conduct, device=device, dtype=dtype)
    from provence.families.provence import PROVENCE, XPROVENCE, open_naver

    kind = PROVENCE if family == "provence" else XPROVENCE
    return open_naver(folder, kind, conduct=conduct, device=device, dtype=dtype)


def conduct_of(folder: ModelFolder) -> Conduct:
    """How the pruner in `folder` wants to be used, from its config and the names of its tensors alone.

    Raises:
        ModelError: As `open_model` does.
    """
    return _conduct(folder, _family_of(folder))


def _conduct(folder: ModelFolder, family: str) -> Conduct:
    if family == "native":
        from provence.families.native import native_conduct

        return native_conduct(folder)
    if family == "open_provence":
        from provence.families.open_provence import open_provence_conduct

        return open_provence_conduct(folder)
    from provence.families.provence import PROVENCE, XPROVENCE, naver_conduct

    return naver_conduct(folder, PROVENCE if family == "provence" else XPROVENCE)


def _family_of(folder: ModelFolder) -> str:
    kind = str(folder.config()["model_type"])
    if kind.lower() in _BY_TYPE:
        return _BY_TYPE[kind.lower()]
    if kind == _EXPORTED:
        raise ModelError(
            f"model {folder.name}: {folder.root} is an ONNX export, which torch does not read; load it with "
            "backend='onnx' (--backend onnx)"
        )
    from provence.families.view import tensor_names

    starts = {name.partition(".")[0] for name in tensor_names(folder)}
    if "pruning_head" in starts:
        return "open_provence"
    if "token_classifier" in starts and starts & {"deberta", "roberta"}:
        return "provence" if "deberta" in starts else "xprovence"
    tried = "; ".join(f"{family} ({sign})" for family, sign in _READABLE.items())
    raise ModelError(
        f"model {folder.name}: {folder.root} holds no pruner that can be read: its model_type is {kind!r} and its "
        f"tensors begin with {', '.join(sorted(starts)[:8]) or 'nothing'}. Tried: {tried}"
    )
