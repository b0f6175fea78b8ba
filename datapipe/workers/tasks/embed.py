"""Texts to vectors.

TextItem -> prepare -> Tokens -> forward -> one row a text -> finish -> Embedding
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from datapipe.errors import ItemError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    import torch

    from datapipe.storage.arrays import Float32
    from datapipe.workers.encoders import Encoder
    from datapipe.workers.encoders.layout import SentenceLayout
    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.protocol import Item
    from datapipe.workers.spec import ModelSpec
    from datapipe.workers.tokenizer import TextTokenizer, Tokens

__all__ = ["EmbedTask", "Embedding", "TextItem"]


@dataclass(frozen=True, slots=True)
class TextItem:
    """A text to embed.

    Attributes:
        text: Any text, the empty one too.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of a text.

    Attributes:
        vector: float32 (dim,); of unit length if the model normalises.
        tokens: Tokens of the text as the model's tokenizer counts them, special tokens included, before truncation.
        truncated: Whether the model saw only the beginning of the text.
    """

    vector: Float32
    tokens: int
    truncated: bool


class EmbedTask:
    """Embed texts with one encoder.

    Args:
        tokenizer: Of the model.
        encoder: On its device.
        layout: How hidden states become a vector.
    """

    name: ClassVar[str] = "embed"
    item_type: ClassVar[type] = TextItem
    result_type: ClassVar[type] = Embedding

    def __init__(self, tokenizer: TextTokenizer, encoder: Encoder, layout: SentenceLayout) -> None:
        self._tokenizer, self._encoder, self._layout = tokenizer, encoder, layout
        self.padded, self.dim, self.nbytes = encoder.padded, encoder.dim, encoder.nbytes

    @classmethod
    def item_schema(cls) -> pa.Schema:
        """One column of text."""
        import pyarrow as pa

        return pa.schema([pa.field("text", pa.string(), nullable=False)])

    @classmethod
    def result_schema(cls) -> pa.Schema:
        """Vector, tokens and whether the text was cut."""
        import pyarrow as pa

        return pa.schema(
            [
                pa.field("vector", pa.list_(pa.float32()), nullable=False),
                pa.field("tokens", pa.int32(), nullable=False),
                pa.field("truncated", pa.bool_(), nullable=False),
            ]
        )

    @classmethod
    def open(cls, folder: ModelFolder, *, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Self:
        """Load an embedder. Raises `ModelError` if the folder holds none, or one that we would compute wrongly."""
        from datapipe.workers.encoders import open_encoder
        from datapipe.workers.encoders.layout import SentenceLayout
        from datapipe.workers.tokenizer import TextTokenizer

        layout = SentenceLayout.of(folder)
        encoder = open_encoder(layout.encoder, device=device, dtype=dtype)
        limits = (spec.max_length or layout.max_length, encoder.positions)
        max_length = min(limit for limit in limits if limit is not None)
        tokenizer = TextTokenizer(layout.encoder, max_length=max_length, lower=layout.lower, prefix=layout.prefix)
        if tokenizer.vocabulary > encoder.vocabulary:
            raise ModelError(
                f"model {folder.name}: tokenizer.json has {tokenizer.vocabulary} tokens, but the encoder only "
                f"{encoder.vocabulary}: they do not belong together"
            )
        return cls(tokenizer, encoder, layout)

    def prepare(self, item: TextItem) -> Tokens:
        """Tokenise one text; `length` counts tokens after truncation. Raises `ItemError` if the item is no text."""
        return self.prepare_many([item])[0]

    def prepare_many(self, items: Sequence[Item], *, first: int = 0) -> list[Tokens]:
        """Tokenise many texts. Raises `ItemError` if one is no text, its index counted from `first`."""
        for place, item in enumerate(items):
            if not isinstance(item, TextItem):
                message = f"item {first + place} must be a TextItem. Got {type(item).__name__}"
                raise ItemError(message, index=first + place)
        return self._tokenizer.encode([item.text for item in items], first=first)

    def forward(self, batch: Sequence[Tokens]) -> Float32:
        """Vectors, float32 (texts, dim), on the host. One copy to the device, one back.

        Raises:
            FloatingPointError: A vector is not finite; names the text's place in the batch.
        """
        import numpy as np
        import torch

        from datapipe.workers.encoders.pooling import pool
        from datapipe.workers.encoders.transfer import to_host

        with torch.inference_mode():
            hidden = self._encoder.hidden([tokens.ids for tokens in batch])
            pooled = pool(
                hidden,
                [tokens.length for tokens in batch],
                mode=self._layout.pooling,
                normalised=self._layout.normalised,
            )
            vectors: Float32 = to_host(pooled)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise FloatingPointError(f"the vector of text {int(finite.argmin())} of the batch is not finite")
        return vectors

    def finish(self, raw: Float32, prepared: Tokens) -> Embedding:
        """Put a row of `forward` beside what was counted when the text was cut."""
        return Embedding(raw, prepared.total, prepared.truncated)
