"""A small random language model with a real tokenizer and a chat template, and what two kinds of damage make of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from datapipe.paser.damage import drop_blocks, round_weights
from tests.workers.tiny import text_folder

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def small_llama(folder: Path, **settings: Any) -> Path:
    """Save a random Llama of four blocks with 256 positions, the embedded model's tokenizer and a chat template."""
    folder.mkdir(parents=True)
    given: dict[str, Any] = {
        "num_hidden_layers": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        **settings,
    }
    text_folder(folder, "llama", mapping="MODEL_FOR_CAUSAL_LM_MAPPING", **given)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def tiny_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the original model."""
    return small_llama(tmp_path_factory.mktemp("paser") / "original")


@pytest.fixture(scope="session")
def tiny_pruned(tiny_original: Path) -> Path:
    """The same without half of its blocks."""
    folder = tiny_original.with_name("pruned")
    drop_blocks(tiny_original, folder, keep=2, texts=["Name three tools of a carpenter, and what they are for."])
    return folder


@pytest.fixture(scope="session")
def tiny_rounded(tiny_original: Path) -> Path:
    """The same with weights of three bits."""
    folder = tiny_original.with_name("rounded")
    round_weights(tiny_original, folder, bits=3, group=32)
    return folder
