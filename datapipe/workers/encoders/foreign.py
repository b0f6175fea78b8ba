"""Encoders of every architecture that transformers knows by its `model_type`, run by transformers' own code.

The class comes from `model_type` alone; the tensors are read by us, so neither code nor an adapter that a folder names
is ever loaded, and a checkpoint that does not fit is refused by the names of its tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import ModelError
from datapipe.workers.encoders.checkpoint import UNUSED_TENSORS, refuse_difference
from datapipe.workers.encoders.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Int32
    from datapipe.workers.folder import ModelFolder

__all__ = ["ForeignEncoder"]
_COUNT_FROM_PADDING = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})
"""Architectures whose first position follows the padding id: so many rows of their table stand for no token."""


class ForeignEncoder:
    """A transformers model on its device.

    Args:
        folder: Where config.json and the safetensors lie.
        device: Where it computes.
        dtype: In which precision.

    Raises:
        ModelError: The architecture is unknown, or a tensor is missing, left over, or of another shape.
    """

    padded = True
    kernels = "torch"

    def __init__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        import torch

        config = _config(folder)
        with torch.random.fork_rng(devices=[]):  # the constructor fills tensors with random numbers, all replaced below
            model = _construct(folder, config)
        _fill(model, folder)
        self._model = model.eval().requires_grad_(requires_grad=False).to(device=device, dtype=dtype)
        self._device = device
        self._pad = int(getattr(config, "pad_token_id", None) or 0)
        self.dim = int(config.hidden_size)
        self.vocabulary = int(config.vocab_size)
        self.positions = _positions(config)
        self.nbytes = sum(tensor.numel() * tensor.element_size() for tensor in self._model.parameters())

    def hidden(self, batch: Sequence[Int32]) -> torch.Tensor:
        """Hidden states of the last layer, (tokens of all texts, dim), on the device, text after text."""
        import torch

        lengths = [len(ids) for ids in batch]
        longest = max(lengths)
        there = np.arange(longest) < np.array(lengths)[:, None]
        padded = np.full((2, len(batch), longest), self._pad, dtype=np.int64)
        padded[0][there] = np.concatenate(batch)
        padded[1] = there
        with torch.inference_mode():
            ids, mask = to_device(padded, self._device)
            states: torch.Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            return states[mask.bool()]


def _config(folder: ModelFolder) -> Any:
    from transformers import CONFIG_MAPPING

    settings = folder.config()
    kind = settings.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"model {folder.name}: transformers knows no model_type {kind!r}; code of the model's own is never run"
        )
    for key in ("dtype", "torch_dtype", "quantization_config", "attn_implementation", "_attn_implementation"):
        settings.pop(key, None)
    try:
        return CONFIG_MAPPING[kind].from_dict(settings)
    except Exception as error:  # what a damaged config raises is up to its class
        raise ModelError(f"model {folder.name}: {folder.root / 'config.json'} is no {kind} config ({error})") from error


def _construct(folder: ModelFolder, config: Any) -> Any:
    from transformers import AutoModel

    try:
        return AutoModel.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise ModelError(f"model {folder.name}: {config.model_type} has no encoder to load ({error})") from error


def _fill(model: Any, folder: ModelFolder) -> None:
    prefix = f"{model.base_model_prefix}."
    expected = {name: value for name, value in model.state_dict().items() if not name.startswith(UNUSED_TENSORS)}
    given = {name.removeprefix(prefix): value for name, value in folder.tensors().items()}
    given = {name: value for name, value in given.items() if not name.startswith(UNUSED_TENSORS)}
    refuse_difference(folder, {name: tuple(value.shape) for name, value in expected.items()}, given)
    model.load_state_dict(given, strict=False)


def _positions(config: Any) -> int:
    positions = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
    return positions - (int(config.pad_token_id or 0) + 1 if config.model_type in _COUNT_FROM_PADDING else 0)
