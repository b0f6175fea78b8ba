"""Small real models, built where a test needs one that is broken; the embedded model everywhere else."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from datapipe.weights import embedded_folder
from datapipe.workers.encoders.bert import BertShape

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TINY: dict[str, Any] = {
    "model_type": "bert",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "vocab_size": 30_522,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}


def random_tensors(shape: BertShape, *, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(size, generator=generator) * 0.2 for name, size in shape.tensors().items()}
    return {name: tensor + ("LayerNorm.weight" in name) for name, tensor in tensors.items()}


@pytest.fixture
def tiny_bert(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder with a random BERT of 2 layers, 32 wide, 40 positions, and the tokenizer of the embedded model."""

    def make(name: str = "tiny", *, config: dict[str, Any] | None = None, seed: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        settings = TINY | (config or {})
        (folder / "config.json").write_text(json.dumps(settings))
        shape = BertShape(
            layers=settings["num_hidden_layers"],
            heads=settings["num_attention_heads"],
            dim=settings["hidden_size"],
            inner=settings["intermediate_size"],
            vocabulary=settings["vocab_size"],
            positions=settings["max_position_embeddings"],
            types=settings["type_vocab_size"],
            epsilon=settings["layer_norm_eps"],
        )
        save_file(random_tensors(shape, seed=seed), folder / "model.safetensors")
        shutil.copy(embedded_folder("all-MiniLM-L6-v2") / "tokenizer.json", folder)
        return folder

    return make


FOREIGN: dict[str, dict[str, Any]] = {
    "bert": {"hidden_act": "relu", "max_position_embeddings": 40},
    "distilbert": {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64, "max_position_embeddings": 40},
    "mpnet": {"max_position_embeddings": 42},
    "roberta": {"max_position_embeddings": 42},
    "modernbert": {"max_position_embeddings": 40, "local_attention": 8, "global_attn_every_n_layers": 2},
}
"""Configs of random models with 40 usable positions; relu sends the BERT past our own forward pass."""


@pytest.fixture
def tiny_foreign(tmp_path: Path) -> Callable[[str], Path]:
    """Make a folder with a random model of that architecture, written by transformers."""

    def make(kind: str) -> Path:
        folder = tmp_path / kind
        wide = {name: value for name, value in TINY.items() if name not in {"model_type", "max_position_embeddings"}}
        settings = ({} if kind == "distilbert" else wide) | {"vocab_size": 30_522, "pad_token_id": 1} | FOREIGN[kind]
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **settings))
        folder.mkdir()
        model.config.save_pretrained(folder)
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors"
        )
        shutil.copy(embedded_folder("all-MiniLM-L6-v2") / "tokenizer.json", folder)
        return folder

    return make
