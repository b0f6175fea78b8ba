"""Small random models of transformers in folders, as their authors would save them, for tests of what reads them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from pathlib import Path

_TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
_STAGES = {"hidden_sizes": [16, 32], "depths": [1, 1]}

VISION: dict[str, dict[str, Any]] = {
    "beit": _TRANSFORMER,
    "bit": _STAGES | {"embedding_size": 8, "num_groups": 4},
    "clip_vision_model": _TRANSFORMER,
    "convnext": _STAGES | {"num_stages": 2},
    "convnextv2": _STAGES | {"num_stages": 2},
    "deit": _TRANSFORMER,
    "dinov2": _TRANSFORMER,
    "dinov2_with_registers": _TRANSFORMER,
    "ijepa": _TRANSFORMER,
    "regnet": _STAGES | {"embedding_size": 8, "groups_width": 8},
    "resnet": _STAGES | {"embedding_size": 8},
    "siglip_vision_model": _TRANSFORMER,
    "swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32, "window_size": 4},
    "vit": _TRANSFORMER,
    "vit_mae": _TRANSFORMER,
    "vit_msn": _TRANSFORMER,
}
"""Vision backbones for pictures of 32 x 32."""

PROCESSOR: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.6, 0.7],
}


def save_model(folder: Path, model: Any, *, seed: int = 0) -> Any:
    """Fill a model with random numbers large enough to matter, save it, and return it ready to compare with."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.15)
    model.save_pretrained(folder)
    return model.eval()


def vision_folder(folder: Path, kind: str, *, mapping: str = "MODEL_MAPPING", **settings: Any) -> Any:
    """Save a random vision model of that architecture; returns it."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **(VISION[kind] | settings))
    made = getattr(transformers, mapping)[type(config)](config)
    model = save_model(folder, made)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model
