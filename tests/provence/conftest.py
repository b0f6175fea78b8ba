"""A real native checkpoint for tests: the embedded encoder under random heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
import torch

from datapipe.weights import embedded_folder
from datapipe.workers import LocalWorker
from datapipe.workers.folder import ModelFolder
from datapipe.workers.spec import ModelSpec
from provence.families.native import NativeConfig, write_native

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from provence.pruner import Pruner

BASE = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Sample:
    """A question with its text, of which people marked the sentences that answer it."""

    question: str
    text: str
    spans: tuple[tuple[int, int], ...]
    relevant: tuple[int, ...]


def write_pruner(folder: Path, *, max_length: int = 128, seed: int = 0) -> Path:
    """A native pruner with heads from a seed; about half of all tokens are kept at a threshold of 0.5."""
    base = embedded_folder(BASE)
    generator = torch.Generator().manual_seed(seed)
    width = 384
    tensors = {
        "keep.weight": torch.randn((1, width), generator=generator) * 0.2,
        "keep.bias": torch.zeros(1),
        "score.weight": torch.randn((1, width), generator=generator) * 0.2,
        "score.bias": torch.zeros(1),
    }
    config = NativeConfig(
        base=f"embedded:{BASE}", base_digest=ModelFolder(BASE, base).digest, max_length=max_length, threshold=0.5
    )
    write_native(folder, config=config, tensors=tensors, tokenizer=base / "tokenizer.json")
    return folder


@pytest.fixture(scope="session")
def pruner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a native checkpoint with windows of 128 tokens and a default threshold of 0.5."""
    return write_pruner(tmp_path_factory.mktemp("models") / "random-pruner")


@pytest.fixture(scope="session")
def pruner_spec(pruner_folder: Path) -> ModelSpec:
    """The same as a worker is told of it, in float32."""
    return ModelSpec(name="random-pruner", source=str(pruner_folder), task="prune", dtype="float32")


@pytest.fixture(scope="session")
def pruner_worker(pruner_spec: ModelSpec) -> Iterator[LocalWorker]:
    """A worker in process that knows it by the name `random-pruner`."""
    with LocalWorker([pruner_spec], device="cpu") as worker:
        yield worker


@pytest.fixture(scope="session")
def pruner(pruner_worker: LocalWorker) -> Pruner:
    """A pruner on that worker."""
    from provence.pruner import Pruner

    return Pruner.load("random-pruner", worker=pruner_worker)


@pytest.fixture(scope="session")
def samples(data: Path) -> list[Sample]:
    """Forty paragraphs of SQuAD 2.0, each another one, with a question."""
    rows = pq.read_table(data / "squad20_dev.parquet").slice(0, 1000).to_pylist()
    return [
        Sample(
            row["question"],
            row["context"],
            tuple(zip(row["sent_start"], row["sent_end"], strict=True)),
            tuple(row["relevant"]),
        )
        for row in list({row["context"]: row for row in rows}.values())[:40]
    ]
