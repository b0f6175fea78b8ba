"""Sequence classifiers of every architecture that transformers knows by its `model_type`, run by its own code.

token ids [+ types] -> padded, with a mask -> logits, float32 (texts, classes)
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import ModelError
from datapipe.workers.encoders.library import class_for, config_of, filled, labels_of, nbytes_of, positions_of
from datapipe.workers.encoders.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Int32
    from datapipe.workers.folder import ModelFolder

__all__ = ["Classifier"]

_HEAD = "ForSequenceClassification"


class Classifier:
    """A sequence classifier of transformers on its device.

    Args:
        folder: Where config.json and the safetensors lie.
        device: Where it computes.
        dtype: In which precision.

    Attributes:
        labels: Names of the classes, in the order of the logits.
        vocabulary: Token ids that it knows.
        positions: Tokens that a text may have.
        typed: Whether it tells the two texts of a pair apart by type ids.
        padded: Whether a batch costs as if each text were as long as the longest.
        nbytes: Memory that the tensors hold.

    Raises:
        ModelError: The folder holds no classification head, the architecture is unknown, or tensors do not fit.
    """

    padded = True

    def __init__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        import transformers

        config = config_of(folder)
        named = config.architectures or ()
        if named and not any(name.endswith(_HEAD) for name in named):
            raise ModelError(
                f"model {folder.name}: {folder.root / 'config.json'} describes a {named[0]}, which has no head for "
                f"classes; the task needs a model whose architecture ends in {_HEAD}"
            )
        mapping = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        kind = class_for(folder, config, mapping=mapping, purpose="sequence classifier")
        self._model = filled(kind, config, folder, dtype=dtype).to(device)
        self._device, self._pad = device, config.pad_token_id
        self.labels = labels_of(folder, config, config.num_labels)
        self.vocabulary, self.positions = int(config.vocab_size), positions_of(config)
        takes_types = "token_type_ids" in inspect.signature(self._model.forward).parameters
        self.typed = takes_types and int(getattr(config, "type_vocab_size", 0) or 0) > 1
        self.nbytes = nbytes_of(self._model)

    def logits(self, batch: Sequence[tuple[Int32, Int32]]) -> torch.Tensor:
        """Logits, float32 (texts, classes), on the device.

        Texts run one at a time where config.json names no padding token: then a model may look for the end of a text.

        Args:
            batch: Token ids and types of each text, int32 (tokens,) both.
        """
        import torch

        with torch.inference_mode():
            if self._pad is None:
                return torch.cat([self._padded([text], pad=0) for text in batch])
            return self._padded(batch, pad=int(self._pad))

    def _padded(self, batch: Sequence[tuple[Int32, Int32]], *, pad: int) -> torch.Tensor:
        lengths = [len(ids) for ids, _ in batch]
        there = np.arange(max(lengths)) < np.array(lengths)[:, None]
        host = np.zeros((3, *there.shape), dtype=np.int64)
        host[0] = pad
        host[0][there] = np.concatenate([ids for ids, _ in batch])
        host[1] = there
        host[2][there] = np.concatenate([types for _, types in batch])
        ids, mask, types = to_device(host, self._device)
        extra: dict[str, Any] = {"token_type_ids": types} if self.typed else {}
        logits: torch.Tensor = self._model(input_ids=ids, attention_mask=mask, **extra).logits
        return logits.float()
