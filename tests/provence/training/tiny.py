"""A real set, a small bank of it, and a network small enough to be trained in a test."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from datapipe.weights import embedded_folder
from provence.evaluation.sets import Example, read_examples
from provence.training.bank import Bank, BankBuilder
from provence.training.config import SourceConfig, WindowConfig
from provence.training.network import NetworkShape, PrunerNetwork
from provence.training.sources import Guard
from provence.training.templates import open_tokenizer, template_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from provence.training.windows import Template

DATA = Path(__file__).parents[3] / "data"
SQUAD = "squad20_dev"
CPU = torch.device("cpu")
DIM = 32


@cache
def examples() -> tuple[Example, ...]:
    return tuple(read_examples(DATA / f"{SQUAD}.parquet", split="train", limit=120))


@cache
def tokenizer() -> Tokenizer:
    from datapipe.workers.folder import ModelFolder

    return open_tokenizer(ModelFolder("base", embedded_folder("all-MiniLM-L6-v2")))


@cache
def template() -> Template:
    return template_of(tokenizer())


@cache
def bank() -> Bank:
    builder = BankBuilder(tokenizer(), WindowConfig(), Guard())
    builder.add(SourceConfig(name=SQUAD, validation_every=4), examples())
    return builder.build()


def network(*, kind: str = "bert", seed: int = 0, dropout: float = 0.1) -> PrunerNetwork:
    generator = torch.Generator().manual_seed(seed)
    shape = NetworkShape(kind, 2, 4, 1e-12, buckets=32 if kind == "mpnet" else 0, first=2 if kind == "mpnet" else 0)
    torch.manual_seed(seed)
    return PrunerNetwork(shape, tensors(kind, generator), dropout=dropout)


def tensors(kind: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * 0.3

    words, rows = (30_522, 512) if kind == "bert" else (30_527, 514)
    found = {"embeddings.word_embeddings.weight": random(words, DIM)}
    found["embeddings.position_embeddings.weight"] = random(rows, DIM)
    if kind == "bert":
        found["embeddings.token_type_embeddings.weight"] = random(2, DIM)
        parts = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
        norms = ["attention.output.LayerNorm", "output.LayerNorm"]
    else:
        found["encoder.relative_attention_bias.weight"] = random(32, 4)
        parts = [f"attention.attn.{part}" for part in "qkvo"]
        norms = ["attention.LayerNorm", "output.LayerNorm"]
    sizes = dict.fromkeys(parts, (DIM, DIM)) | {"intermediate.dense": (64, DIM), "output.dense": (DIM, 64)}
    for layer in (f"encoder.layer.{number}." for number in range(2)):
        for name, size in sizes.items():
            found |= {f"{layer}{name}.weight": random(*size), f"{layer}{name}.bias": random(size[0])}
        found |= {f"{layer}{name}.weight": 1 + random(DIM) for name in norms}
        found |= {f"{layer}{name}.bias": random(DIM) for name in norms}
    return found | {"embeddings.LayerNorm.weight": 1 + random(DIM), "embeddings.LayerNorm.bias": random(DIM)}
