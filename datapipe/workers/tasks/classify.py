"""Texts, or pairs of texts, to the logits of classes.

ClassifyItem -> prepare (tokens, types) -> TypedTokens -> forward -> one row a text -> Classification
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np

from datapipe.errors import ItemError, ModelError
from datapipe.workers.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    import torch

    from datapipe.storage.arrays import Float32, Int32
    from datapipe.workers.encoders.classifier import Classifier
    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.protocol import Item
    from datapipe.workers.spec import ModelSpec

__all__ = ["Classification", "ClassifyItem", "ClassifyTask", "PairTokenizer", "TypedTokens"]

_CHUNK_ITEMS = 64
"""Items that are tokenised at once: a token costs some hundred bytes until its id is taken."""


@dataclass(frozen=True, slots=True)
class ClassifyItem:
    """A text to classify.

    Attributes:
        text: Any text.
        pair: A second text for models that judge two, put after the first as the tokenizer's template says.
    """

    text: str
    pair: str | None = None


@dataclass(frozen=True, slots=True)
class Classification:
    """What a classifier says of a text.

    Attributes:
        logits: float32 (classes,), in the order of the task's `labels`.
        tokens: Tokens of the text and its pair, special tokens included, before truncation.
        truncated: Whether the model saw only the beginning of one of them.
    """

    logits: Float32
    tokens: int
    truncated: bool


class TypedTokens(NamedTuple):
    """A text or a pair ready for the model.

    Attributes:
        ids: Token ids with the special tokens, int32 (length,), after truncation.
        types: Which of the two texts each token is of, 0 or 1, int32 (length,).
        total: Tokens before truncation.
    """

    ids: Int32
    types: Int32
    total: int

    @property
    def length(self) -> int:
        """Tokens that the model sees."""
        return len(self.ids)


class PairTokenizer(TextTokenizer):
    """A tokenizer.json for texts and pairs; of an over-long pair the longer text loses its end first."""

    def encode_pairs(self, pairs: Sequence[tuple[str, str | None]], *, first: int = 0) -> list[TypedTokens]:
        """Token ids and types of each text or pair.

        Raises:
            ItemError: Something is not text, holds half a surrogate pair, or has no tokens; its index is counted from
                `first`.
        """
        inputs = [text if pair is None else (text, pair) for text, pair in pairs]
        found: list[TypedTokens] = []
        for start in range(0, len(inputs), _CHUNK_ITEMS):
            try:
                encodings = self._whole.encode_batch_fast(inputs[start : start + _CHUNK_ITEMS])
            except TypeError:
                self._refuse(pairs, first=first)
                raise
            for place, whole in enumerate(encodings, start):
                total = len(whole)
                if not total:
                    raise ItemError(f"item {first + place} has no tokens", index=first + place)
                cut = total > self._limit
                kept = self._cutting.encode(*pairs[place]) if cut else whole
                ids, types = (np.array(values, dtype=np.int32) for values in (kept.ids, kept.type_ids))
                found.append(TypedTokens(ids, types, total))
        return found

    def _refuse(self, pairs: Sequence[tuple[str, str | None]], *, first: int) -> None:
        for index, pair in enumerate(pairs, first):
            for text in pair:
                if text is not None:
                    list(self._encoded([text], first=index))


class ClassifyTask:
    """Classify texts with one sequence classifier.

    Args:
        tokenizer: Of the model.
        model: On its device.

    Attributes:
        labels: Names of the classes, in the order of the logits.
    """

    name: ClassVar[str] = "classify"
    item_type: ClassVar[type] = ClassifyItem
    result_type: ClassVar[type] = Classification

    def __init__(self, tokenizer: PairTokenizer, model: Classifier) -> None:
        self._tokenizer, self._model = tokenizer, model
        self.labels = model.labels
        self.padded, self.dim, self.nbytes = model.padded, len(model.labels), model.nbytes

    @classmethod
    def item_schema(cls) -> pa.Schema:
        """The text, and a second one that may be null."""
        import pyarrow as pa

        return pa.schema([pa.field("text", pa.string(), nullable=False), pa.field("pair", pa.string())])

    @classmethod
    def result_schema(cls) -> pa.Schema:
        """Logits, tokens and whether a text was cut."""
        import pyarrow as pa

        return pa.schema(
            [
                pa.field("logits", pa.list_(pa.float32()), nullable=False),
                pa.field("tokens", pa.int32(), nullable=False),
                pa.field("truncated", pa.bool_(), nullable=False),
            ]
        )

    @classmethod
    def open(cls, folder: ModelFolder, *, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a sequence classifier. Raises `ModelError` if the folder holds none, or one that does not fit."""
        from datapipe.workers.encoders.classifier import Classifier
        from datapipe.workers.encoders.library import max_length_of

        model = Classifier(folder, device=device, dtype=dtype)
        max_length = max_length_of(folder, asked=spec.max_length, positions=model.positions)
        tokenizer = PairTokenizer(folder, max_length=max_length)
        if tokenizer.vocabulary > model.vocabulary:
            raise ModelError(
                f"model {folder.name}: tokenizer.json has {tokenizer.vocabulary} tokens, but the model only "
                f"{model.vocabulary}: they do not belong together"
            )
        return cls(tokenizer, model)

    def prepare(self, item: ClassifyItem) -> TypedTokens:
        """Tokenise one item; see `prepare_many`."""
        return self.prepare_many([item])[0]

    def prepare_many(self, items: Sequence[Item], *, first: int = 0) -> list[TypedTokens]:
        """Tokenise many items. Raises `ItemError` if one is no text, its index counted from `first`."""
        for index, item in enumerate(items, first):
            if not isinstance(item, ClassifyItem):
                raise ItemError(f"item {index} must be a ClassifyItem. Got {type(item).__name__}", index=index)
        return self._tokenizer.encode_pairs([(item.text, item.pair) for item in items], first=first)

    def forward(self, batch: Sequence[TypedTokens]) -> Float32:
        """Logits, float32 (texts, classes), on the host. One copy to the device, one back.

        Raises:
            FloatingPointError: A logit is not finite; names the text's place in the batch.
        """
        from datapipe.workers.encoders.transfer import to_host

        logits: Float32 = to_host(self._model.logits([(tokens.ids, tokens.types) for tokens in batch]))
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            raise FloatingPointError(f"a logit of text {int(finite.argmin())} of the batch is not finite")
        return logits

    def finish(self, raw: Float32, prepared: TypedTokens) -> Classification:
        """Put a row of `forward` beside what was counted when the text was cut."""
        return Classification(raw, prepared.total, prepared.total > prepared.length)
