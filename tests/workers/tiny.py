"""Small random models of transformers in folders, as their authors would save them, for tests of what reads them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import torch
import transformers

from datapipe.weights import embedded_folder

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

_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 30_522,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "bert": _TEXT | {"type_vocab_size": 2},
    "distilbert": _TEXT | {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64},
    "llama": _TEXT,
    "modernbert": _TEXT | {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
    "roberta": _TEXT | {"pad_token_id": 1, "max_position_embeddings": 42, "type_vocab_size": 1},
}
"""Text classifiers with 40 positions."""

CAUSAL: dict[str, dict[str, Any]] = {
    "cohere": _TEXT | {"logit_scale": 0.3},
    "gemma2": _TEXT | {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 30_522, "n_positions": 40, "bos_token_id": 1},
    "gpt_neox": _TEXT,
    "granite": _TEXT | {"logits_scaling": 3.0},
    "llama": _TEXT | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "opt": _TEXT | {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "phi": _TEXT,
    "qwen2": _TEXT | {"num_key_value_heads": 2, "tie_word_embeddings": False},
}
"""Causal language models with 40 positions."""

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


def text_folder(folder: Path, kind: str, *, mapping: str, bare: bool = False, **settings: Any) -> Any:
    """Save a random text model of that architecture with the tokenizer of the embedded model; returns it.

    Args:
        folder: Where to.
        kind: Its model_type.
        mapping: Of transformers: what for.
        bare: Whether the tokenizer's template adds no special tokens.
        settings: Of the config.
    """
    torch.manual_seed(0)
    known = (CAUSAL if mapping == "MODEL_FOR_CAUSAL_LM_MAPPING" else CLASSIFIERS).get(kind, _TEXT)
    config = transformers.AutoConfig.for_model(kind, **(known | settings))
    model = save_model(folder, getattr(transformers, mapping)[type(config)](config))
    path = embedded_folder("all-MiniLM-L6-v2") / "tokenizer.json"
    if bare:
        tokenizer = json.loads(path.read_text(encoding="utf-8")) | {"post_processor": None}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    else:
        shutil.copy(path, folder)
    return model
