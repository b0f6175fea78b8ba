"""Encoders of every architecture that transformers knows by its `model_type`, run by transformers' own code.

The class comes from `model_type` alone; the tensors are read by us, so neither code nor an adapter that a folder names
is ever loaded, and a checkpoint that does not fit is refused by the names of its tensors.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from datapipe.workers.encoders.checkpoint import UNUSED_TENSORS
from datapipe.workers.encoders.library import class_for, config_of, filled, nbytes_of, positions_of
from datapipe.workers.encoders.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Int32
    from datapipe.workers.folder import ModelFolder

__all__ = ["ForeignEncoder"]

_SPARE = re.compile(rf"^(\w+\.)?({'|'.join(map(re.escape, UNUSED_TENSORS))})")


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
        from transformers import MODEL_MAPPING

        config = config_of(folder)
        kind = class_for(folder, config, mapping=MODEL_MAPPING, purpose="encoder")
        self._model = filled(kind, config, folder, dtype=dtype, spare=_SPARE).to(device)
        self._device = device
        self._pad = int(getattr(config, "pad_token_id", None) or 0)
        self.dim = int(config.hidden_size)
        self.vocabulary = int(config.vocab_size)
        self.positions = positions_of(config)
        self.nbytes = nbytes_of(self._model)

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
