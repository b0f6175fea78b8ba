"""Small random checkpoints, and what transformers' plain modules compute with them in float32, a window at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from datapipe.weights import embedded_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Int32

CPU = torch.device("cpu")
TOKENIZER = embedded_folder("all-MiniLM-L6-v2") / "tokenizer.json"


def spread(module: Any, *, seed: int = 0) -> Any:
    """Fill a module with numbers far from its start values, where norms and biases do nothing; returns it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + norm)
    return module.eval()


def batch_of(lengths: Sequence[int], *, vocabulary: int = 30_522, seed: int = 0) -> list[Int32]:
    """Windows of random tokens."""
    generator = np.random.default_rng(seed)
    return [generator.integers(5, vocabulary, length, dtype=np.int32) for length in lengths]


def reference_states(encoder: Any, batch: Sequence[Int32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states, (tokens, dim), and where each window starts, int64 (windows,)."""
    with torch.inference_mode():
        states = [encoder(input_ids=torch.from_numpy(ids).long()[None])[0][0] for ids in batch]
    lengths = torch.tensor([0, *(len(ids) for ids in batch[:-1])])
    return torch.cat(states), lengths.cumsum(0)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal within 1e-4."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
