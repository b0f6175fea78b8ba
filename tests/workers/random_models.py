"""Random models of an architecture that transformers knows, written by transformers, and what it computes with them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from datapipe.weights import embedded_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from datapipe.storage.arrays import Int32

SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 30_522,
    "pad_token_id": 1,
}


def random_model(folder: Path, kind: str, **settings: Any) -> Path:
    """A folder with a random model: config, safetensors, and the tokenizer of the embedded model."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **SMALL | settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # far from the start values, where norms and biases do nothing
            parameter.copy_(torch.randn_like(parameter) * 0.2 + ("norm" in name.lower() and name.endswith("weight")))
    folder.mkdir()
    model.config.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(embedded_folder("all-MiniLM-L6-v2") / "tokenizer.json", folder)
    return folder


def reference(folder: Path, batch: Sequence[Int32], *, one_by_one: bool = True) -> torch.Tensor:
    """Hidden states by transformers in float32, a text at a time or all texts padded; (tokens of all texts, dim)."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model: Any = transformers.AutoModel.from_config(config).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    with torch.inference_mode():
        if one_by_one:
            return torch.cat([model(input_ids=torch.from_numpy(ids).long()[None])[0][0] for ids in batch])
        ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(ids).long() for ids in batch], batch_first=True)
        there = torch.arange(ids.shape[1]) < torch.tensor([len(text) for text in batch])[:, None]
        states: torch.Tensor = model(input_ids=ids.where(there, config.pad_token_id), attention_mask=there.long())[0]
        return states[there]


def batch_of(lengths: Sequence[int], *, seed: int = 0) -> list[Int32]:
    """Texts of random tokens."""
    generator = np.random.default_rng(seed)
    return [generator.integers(1000, 30_000, length, dtype=np.int32) for length in lengths]
