"""A deeper encoder out of a shallower one: each of its layers starts as a copy of one of the base's.

    base's tensors or config, layers (0, 1, 2, 2) -> stacked tensors, stacked config

Depth up-scaling (Kim et al., arXiv 2312.15166), of single layers. Tensors are only renamed, so any array type will do.
Raises `ModelError` for a layer that the base does not have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

from datapipe.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["stacked_config", "stacked_tensors"]

_T = TypeVar("_T")

_LAYER = re.compile(r"^(.*encoder\.layer\.)(\d+)(\..+)$")


def stacked_tensors(tensors: Mapping[str, _T], layers: Sequence[int]) -> dict[str, _T]:
    """The tensors of an encoder whose layer i is the base's layer `layers[i]`; those outside of layers as they are.

    Args:
        tensors: By name, `encoder.layer.N.` before those of layer N.
        layers: Layers of the base, at least one.

    Raises:
        ModelError: The base has no such layer.
    """
    found: dict[str, _T] = {}
    by_layer: dict[int, list[tuple[str, str, _T]]] = {}
    for name, tensor in tensors.items():
        match = _LAYER.match(name)
        if match is None:
            found[name] = tensor
        else:
            by_layer.setdefault(int(match[2]), []).append((match[1], match[3], tensor))
    for place, layer in enumerate(layers):
        if layer not in by_layer:
            raise ModelError(
                f"layer {place} starts from layer {layer}, but the base has layers 0 to {len(by_layer) - 1}"
            )
        for before, after, tensor in by_layer[layer]:
            found[f"{before}{place}{after}"] = tensor
    return found


def stacked_config(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The base's config.json with the number of layers of the deeper encoder."""
    return {**config, "num_hidden_layers": len(layers)}
