"""What two language models say after each state, compared; and which two cannot be.

    states of both, bfloat16 -> head of each, in chunks -> `divergence.token_divergence` -> (tokens, 6) on the host

States are rounded to bfloat16 before the heads, as they are kept on disk; so one model measured against itself differs
by exactly nothing. Raises `ModelError`.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import MetricError, ModelError
from datapipe.paser.divergence import columns, token_divergence
from datapipe.workers.tokenizer import TextTokenizer

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from datapipe.paser.divergence import Head
    from datapipe.storage.arrays import Float32, Int32
    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.registry import LoadedModel

__all__ = ["Heads", "refuse_not_finite", "refuse_other_tokens"]

TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 8192}
"""Tokens that go to the heads in one call; on the CPU each thread has a call of its own."""


class Heads:
    """The heads of two models, which compare what both say after each state; safe to share between threads.

    Args:
        original: As the worker loaded it.
        pruned: The same.

    Attributes:
        dims: Widths of their states.
    """

    def __init__(self, original: LoadedModel, pruned: LoadedModel) -> None:
        from datapipe.metrics.pool import ChunkPool

        self._sides = (_side(original), _side(pruned))
        self.dims = (original.dim, pruned.dim)
        # Each thread keeps two buffers of logits for itself, on the device; so there is one where they are large.
        self._threads = ChunkPool(None if original.device.type == "cpu" else 1)

    def compare(self, states_o: NDArray[np.uint16], states_p: NDArray[np.uint16], ids: Int32) -> Float32:
        """Numbers of each token by `divergence.columns`, float32 (tokens, 6).

        Args:
            states_o: The original's state before each token, bfloat16 as uint16 (tokens, its dim).
            states_p: The same of the damaged version.
            ids: The tokens, int32 (tokens,).

        Raises:
            ModelError: The two do not know the same tokens, or what they say is not finite.
        """
        found = np.empty((len(ids), len(columns())), np.float32)
        step = TOKENS_AT_ONCE[self._sides[0].device.type]

        def work(at: int) -> None:
            part = slice(at, at + step)
            found[part] = self._compared(states_o[part], states_p[part], ids[part])

        self._threads.map(work, range(0, len(ids), step))
        return found

    def close(self) -> None:
        """Let the threads end."""
        self._threads.close()

    def _compared(self, states_o: NDArray[np.uint16], states_p: NDArray[np.uint16], ids: Int32) -> Float32:
        import torch

        from datapipe.workers.encoders.transfer import to_device, to_host

        one, other = self._sides
        # Kernels run on the current device, which a thread has to be told.
        there = torch.cuda.device(one.device) if one.device.type == "cuda" else nullcontext()
        with torch.inference_mode(), there:
            targets = to_device(ids.astype(np.int64), one.device)
            try:
                found = token_divergence(one.head, other.head, one.states(states_o), other.states(states_p), targets)
            except MetricError as error:
                raise ModelError(f"models {one.name} and {other.name}: {error}") from error
            numbers: Float32 = to_host(torch.stack([getattr(found, name) for name in columns()], dim=1))
        return numbers


@dataclass(frozen=True)
class _Side:
    name: str
    head: Head
    device: torch.device
    dtype: torch.dtype

    def states(self, rounded: NDArray[np.uint16]) -> torch.Tensor:
        import torch

        from datapipe.workers.encoders.transfer import to_device

        # A copy, since what was read from a file cannot be written to, which torch minds.
        return to_device(rounded.view(np.int16).copy(), self.device).view(torch.bfloat16).to(self.dtype)


def _side(loaded: LoadedModel) -> _Side:
    task: Any = loaded.task
    return _Side(loaded.spec.name, task.model, loaded.device, loaded.dtype)


def refuse_not_finite(folder: ModelFolder) -> None:
    """Raise `ModelError` naming the first tensor of a model that holds a number which is NaN or infinite."""
    from safetensors import SafetensorError, safe_open

    for path in folder.weight_files():
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    tensor = file.get_tensor(name)
                    if not _finite(tensor):
                        raise ModelError(
                            f"model {folder.name}: tensor {name} in {path} holds numbers that are NaN or infinite; the "
                            "model was damaged beyond use, or overflowed in float16 when it was written"
                        )
        except (SafetensorError, OSError) as error:
            raise ModelError(f"model {folder.name}: {path} is not a readable safetensors file ({error})") from error


def _finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are finite; the extremes are not, where one is NaN."""
    import torch

    if tensor.dtype not in {torch.float16, torch.bfloat16, torch.float32, torch.float64} or not tensor.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor))


def refuse_other_tokens(original: ModelFolder, other: ModelFolder) -> None:
    """Raise `ModelError` unless both models have the same vocabulary, token by token, and as many logits.

    How texts are cut into those tokens is compared on the rows themselves.
    """
    from datapipe.workers.encoders.library import config_of

    advice = "take a version of this very model; tokens of two tokenizers cannot be compared one by one"
    ours, theirs = _vocabularies(original, other)
    if len(ours) != len(theirs):
        raise ModelError(
            f"models {original.name} and {other.name} have different tokenizers: {len(ours):,} tokens and "
            f"{len(theirs):,}; {advice}"
        )
    for number, token in ours.items():
        if theirs.get(number) != token:
            raise ModelError(
                f"models {original.name} and {other.name} have different tokenizers: token {number} is {token!r} to "
                f"the one and {theirs.get(number)!r} to the other; {advice}"
            )
    sizes = [int(config_of(folder).get_text_config().vocab_size) for folder in (original, other)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"models {original.name} and {other.name} have one tokenizer, but {sizes[0]:,} and {sizes[1]:,} logits; "
            "give both as many, by resize_token_embeddings of transformers"
        )


def _vocabularies(original: ModelFolder, other: ModelFolder) -> tuple[dict[int, str], dict[int, str]]:
    """Both, unless one file says the same as the other, which is so for most versions of a model."""
    files = [folder.path("tokenizer.json") for folder in (original, other)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return {}, {}
    return _Vocabulary(original).tokens, _Vocabulary(other).tokens


class _Vocabulary(TextTokenizer):
    @property
    def tokens(self) -> dict[int, str]:
        """Every token by its id, in the order of the ids."""
        known = self._whole.get_vocab(with_added_tokens=True)
        return {number: token for token, number in sorted(known.items(), key=lambda each: each[1])}
