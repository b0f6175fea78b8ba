"""The encoders that the GPU benchmark measures: shapes of well-known models, random weights, and what a text costs.

MiniLM is the embedded model. The others have the config of their namesake and random weights, since speed depends on
shapes alone; their tokenizer is that of the embedded model. A folder is made once a machine.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from datapipe.weights import embedded_folder
from datapipe.workers.encoders.bert import BertShape
from datapipe.workers.encoders.modernbert import ModernBertShape
from datapipe.workers.folder import ModelFolder

if TYPE_CHECKING:
    from pathlib import Path

MINILM = "MiniLM-L6"
_BASE = {"hidden_size": 768, "num_attention_heads": 12, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
CONFIGS: dict[str, dict[str, Any]] = {
    "BERT-base": _BASE
    | {"model_type": "bert", "num_hidden_layers": 12, "intermediate_size": 3072, "max_position_embeddings": 512}
    | {"vocab_size": 30_522},
    "XLM-R-base": _BASE
    | {"model_type": "xlm-roberta", "num_hidden_layers": 12, "intermediate_size": 3072, "max_position_embeddings": 514}
    | {"vocab_size": 250_002, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
    "ModernBERT-base": {"model_type": "modernbert", "hidden_size": 768, "num_attention_heads": 12}
    | {"num_hidden_layers": 22, "intermediate_size": 1152, "max_position_embeddings": 8192, "vocab_size": 50_368}
    | {"local_attention": 128, "global_attn_every_n_layers": 3, "pad_token_id": 50_283},
}
MAX_LENGTH = {MINILM: 256}
"""Tokens of a text: what the model was made for, else 512."""


@dataclass(frozen=True)
class Model:
    """An encoder in a folder.

    Attributes:
        name: Of the shape.
        folder: Its files.
        products: Columns in and columns out of the products of a layer.
        windows: For each layer how far a token sees; None is the whole text.
        dim: Width of a hidden state.
    """

    name: str
    folder: Path
    products: tuple[tuple[int, int], ...]
    windows: tuple[int | None, ...]
    dim: int

    @property
    def max_length(self) -> int:
        """Tokens that texts are cut to."""
        return MAX_LENGTH.get(self.name, 512)

    def operations(self, length: int) -> float:
        """Multiplications and additions that a text of so many tokens needs: products and attention, nothing else."""
        products = len(self.windows) * 2 * length * sum(rows * columns for rows, columns in self.products)
        return products + sum(4 * self.dim * _pairs(length, window) for window in self.windows)


def _pairs(length: int, window: int | None) -> int:
    if window is None or length - 1 <= window:
        return length * length
    return length * (2 * window + 1) - window * (window + 1)


def open_model(name: str, scratch: Path) -> Model:
    """The model of that name; its folder is made under `scratch` unless it is there."""
    folder = embedded_folder("all-MiniLM-L6-v2") if name == MINILM else scratch / name
    if not folder.exists():
        _make(folder, CONFIGS[name])
    found = ModelFolder(name, folder)
    bert = BertShape.of(found)
    if bert is not None:
        dim, inner = bert.dim, bert.inner
        products = ((dim, 3 * dim), (dim, dim), (dim, inner), (inner, dim))
        return Model(name, folder, products, (None,) * bert.layers, dim)
    modern = ModernBertShape.of(found)
    assert modern is not None  # noqa: S101 - one of the configs above
    dim, inner = modern.dim, modern.inner
    windows = tuple(modern.window if local else None for local in modern.local)
    return Model(name, folder, ((dim, 3 * dim), (dim, dim), (dim, 2 * inner), (inner, dim)), windows, dim)


def _make(folder: Path, config: dict[str, Any]) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy(embedded_folder("all-MiniLM-L6-v2") / "tokenizer.json", partial)
    found = ModelFolder("random", partial)
    shape = BertShape.of(found) or ModernBertShape.of(found)
    assert shape is not None  # noqa: S101 - one of the configs above
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    tensors = {}
    for name, size in shape.tensors().items():
        tensor = torch.randn(size, generator=generator, device=device) * 0.03
        is_norm = "norm" in name.lower() and name.endswith("weight")
        tensors[name] = (tensor + is_norm).to(torch.bfloat16).cpu()
    save_file(tensors, partial / "model.safetensors")
    partial.replace(folder)
