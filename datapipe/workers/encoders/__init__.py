"""Forward passes of embedding models: token ids in, hidden states out, packed without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Int32
    from datapipe.workers.folder import ModelFolder

__all__ = ["Encoder", "open_encoder"]


class Encoder(Protocol):
    """An encoder on its device.

    Attributes:
        dim: Width of a hidden state.
        positions: Tokens that a text may have.
        vocabulary: Token ids that it knows.
        padded: Whether a batch costs as if each text were as long as the longest.
        nbytes: Memory that the tensors hold.
    """

    dim: int
    positions: int
    vocabulary: int
    padded: bool
    nbytes: int

    @property
    def kernels(self) -> str:
        """What computes the steps between products, for they differ in the last bits: `torch` or `triton`."""

    def hidden(self, batch: Sequence[Int32]) -> torch.Tensor:
        """Hidden states of the last layer, (tokens of all texts, dim), on the device, text after text."""


def open_encoder(folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> Encoder:
    """Load the encoder in `folder`: ours for BERT and its kin, ModernBERT and DeBERTa-v2, else transformers'.

    Raises:
        ModelError: The architecture is unknown, or tensors are missing or left over.
    """
    from datapipe.workers.encoders.bert import BertEncoder, BertShape
    from datapipe.workers.encoders.deberta import DebertaEncoder, DebertaShape
    from datapipe.workers.encoders.foreign import ForeignEncoder
    from datapipe.workers.encoders.modernbert import ModernBertEncoder, ModernBertShape

    bert = BertShape.of(folder)
    if bert is not None:
        return BertEncoder(folder, bert, device=device, dtype=dtype)
    modern = ModernBertShape.of(folder)
    if modern is not None:
        return ModernBertEncoder(folder, modern, device=device, dtype=dtype)
    deberta = DebertaShape.of(folder)
    if deberta is not None:
        return DebertaEncoder(folder, deberta, device=device, dtype=dtype)
    return ForeignEncoder(folder, device=device, dtype=dtype)
