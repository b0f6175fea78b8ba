"""Texts to the probability of each of their tokens, as a causal language model sees them.

CausalItem -> prepare (opening + context + text) -> Continuation -> forward (body, then head in chunks) -> CausalScores

A model reads the opening (the special tokens that the tokenizer's template puts before a text, often none), the
tokens of the context, and those of the text. Context and text are tokenised apart, each as if it stood alone and
without special tokens of the template, so the tokens of a text are the same whatever its context; the template's
closing tokens are left out. Scored is each token of the text that the model sees something before: all of them,
unless there is neither an opening nor a context; then the first token has no probability and is left out, and a text
of one token gives an empty result.

What is over-long loses the beginning of its context first, and only once that is gone the end of the text; the opening
stays. `truncated` says that one of them happened.
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
    from datapipe.workers.encoders.causal import CausalModel
    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.protocol import Item
    from datapipe.workers.spec import ModelSpec

__all__ = ["CausalItem", "CausalScores", "CausalTask", "Continuation"]


@dataclass(frozen=True, slots=True)
class CausalItem:
    """A text to score.

    Attributes:
        text: At least one token.
        context: What stands before it; a chat prompt, say. Special tokens spelt out in it are read as such.
        hidden: Whether the hidden states are wanted.
        scores: Whether the log probabilities are; without them the head is not run.
    """

    text: str
    context: str = ""
    hidden: bool = False
    scores: bool = True


@dataclass(frozen=True, slots=True)
class CausalScores:
    """How probable the tokens of a text are.

    Attributes:
        token_ids: The scored tokens of the text, int32 (scored,).
        log_probabilities: Of each, given everything before it, float32 (scored,), in nats; empty unless asked for.
        tokens: Tokens of opening, context and text before truncation.
        truncated: Whether the model saw less than all of them.
        hidden: The last hidden states that the scored tokens were predicted from, so each of the position before;
            float32 (scored * dim,), row after row; None unless asked for.
        dim: Width of a hidden state.
    """

    token_ids: Int32
    log_probabilities: Float32
    tokens: int
    truncated: bool
    hidden: Float32 | None
    dim: int

    @property
    def states(self) -> Float32 | None:
        """`hidden` as float32 (scored, dim); None unless asked for."""
        return None if self.hidden is None else self.hidden.reshape(-1, self.dim)


class Continuation(NamedTuple):
    """An item ready for the model.

    Attributes:
        ids: Opening, context and text after truncation, int32 (length,).
        begin: Where the first scored token stands, at least 1; `len(ids)` if none is scored.
        total: Tokens before truncation.
        hidden: Whether the hidden states are wanted.
        scores: Whether the log probabilities are.
    """

    ids: Int32
    begin: int
    total: int
    hidden: bool
    scores: bool = True

    @property
    def length(self) -> int:
        """Tokens that the model sees."""
        return len(self.ids)

    @property
    def scored(self) -> Int32:
        """Ids of the scored tokens, int32 (scored,)."""
        return self.ids[self.begin :]


class PlainTokenizer(TextTokenizer):
    """A tokenizer.json whose template is taken apart: texts come without special tokens.

    Attributes:
        opening: What the template puts before a text, int32.
    """

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        dressed = self._whole.encode("a")
        count = next((place for place, special in enumerate(dressed.special_tokens_mask) if not special), 0)
        self.opening: Int32 = np.array(dressed.ids[:count], dtype=np.int32)
        self._whole.post_processor = None

    def plain(self, texts: Sequence[str], *, first: int) -> list[Int32]:
        """Token ids of each text, int32 (tokens,), perhaps none. Raises `ItemError` if one is no text."""
        chunks = (encodings for _, encodings in self._encoded(texts, first=first))
        return [np.array(encoding.ids, dtype=np.int32) for encodings in chunks for encoding in encodings]

    def text(self, ids: Int32) -> str:
        """The text of token ids, without special tokens."""
        return str(self._whole.decode(ids.tolist(), skip_special_tokens=True))

    def token_id(self, token: str) -> int | None:
        """The id of a token, or None if there is no such token."""
        found: int | None = self._whole.token_to_id(token)
        return found


class CausalTask:
    """Score texts with one causal language model.

    Args:
        tokenizer: Of the model.
        model: On its device; other tasks may use its two halves.
        device: That device.
        max_length: Tokens that opening, context and text are cut to.
        folder: Where the model was read from, for tasks that read more of it.

    Attributes:
        model, tokenizer, device, max_length, folder: As given.
    """

    name: ClassVar[str] = "causal"
    item_type: ClassVar[type] = CausalItem
    result_type: ClassVar[type] = CausalScores

    def __init__(
        self,
        tokenizer: PlainTokenizer,
        model: CausalModel,
        *,
        device: torch.device,
        max_length: int,
        folder: ModelFolder,
    ) -> None:
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.device, self.max_length = device, max_length
        self.padded, self.dim, self.nbytes = model.padded, model.dim, model.nbytes

    @classmethod
    def item_schema(cls) -> pa.Schema:
        """Text, context, and whether hidden states and log probabilities are wanted."""
        import pyarrow as pa

        return pa.schema(
            [
                pa.field("text", pa.string(), nullable=False),
                pa.field("context", pa.string(), nullable=False),
                pa.field("hidden", pa.bool_(), nullable=False),
                pa.field("scores", pa.bool_(), nullable=False),
            ]
        )

    @classmethod
    def result_schema(cls) -> pa.Schema:
        """Tokens with their log probabilities, counts, and hidden states where asked for."""
        import pyarrow as pa

        return pa.schema(
            [
                pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
                pa.field("log_probabilities", pa.list_(pa.float32()), nullable=False),
                pa.field("tokens", pa.int32(), nullable=False),
                pa.field("truncated", pa.bool_(), nullable=False),
                pa.field("hidden", pa.list_(pa.float32())),
                pa.field("dim", pa.int32(), nullable=False),
            ]
        )

    @classmethod
    def open(cls, folder: ModelFolder, *, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a causal language model. Raises `ModelError` if the folder holds none, or one that does not fit."""
        from datapipe.workers.encoders.causal import CausalModel
        from datapipe.workers.encoders.library import max_length_of

        tokenizer = PlainTokenizer(folder)
        model = CausalModel(folder, device=device, dtype=dtype)
        if tokenizer.vocabulary > model.vocabulary:
            raise ModelError(
                f"model {folder.name}: tokenizer.json has {tokenizer.vocabulary} tokens, but the model only "
                f"{model.vocabulary}: they do not belong together"
            )
        max_length = max_length_of(folder, asked=spec.max_length, positions=model.positions)
        if max_length < len(tokenizer.opening) + 1:
            raise ModelError(
                f"model {folder.name}: a max_length of {max_length} leaves no room for a text after "
                f"{len(tokenizer.opening)} special tokens"
            )
        return cls(tokenizer, model, device=device, max_length=max_length, folder=folder)

    def prepare(self, item: CausalItem) -> Continuation:
        """Tokenise one item; see `prepare_many`."""
        return self.prepare_many([item])[0]

    def prepare_many(self, items: Sequence[Item], *, first: int = 0) -> list[Continuation]:
        """Tokenise and cut.

        Raises:
            ItemError: An item is no CausalItem of texts, or its text has no tokens; its index is counted from `first`.
        """
        for index, item in enumerate(items, first):
            if not isinstance(item, CausalItem):
                raise ItemError(f"item {index} must be a CausalItem. Got {type(item).__name__}", index=index)
        texts = self.tokenizer.plain([item.text for item in items], first=first)
        contexts = self.tokenizer.plain([item.context for item in items], first=first)
        for index, text in enumerate(texts, first):
            if not len(text):
                raise ItemError(f"item {index} has no tokens to score", index=index)
        return [self._joined(*parts) for parts in zip(items, contexts, texts, strict=True)]

    def forward(self, batch: Sequence[Continuation]) -> list[tuple[Float32, Float32 | None]]:
        """Log probabilities, float32 (scored,), and hidden states, float32 (scored * dim,) or None, of each item.

        Raises:
            FloatingPointError: A log probability is not finite; names the item's place in the batch.
        """
        import torch

        from datapipe.workers.encoders.transfer import to_device, to_host

        wanted = [each.scored if each.scores else each.ids[:0] for each in batch]
        targets = np.concatenate(wanted).astype(np.int64)
        if not sum(len(each.scored) for each in batch if each.scores or each.hidden):
            nothing = np.empty(0, dtype=np.float32)
            return [(nothing, nothing if each.hidden else None) for each in batch]
        with torch.inference_mode():
            states = self.model.hidden([each.ids for each in batch])
            ends = np.cumsum([each.length for each in batch]).tolist()
            rows = [states[end - 1 - len(each.scored) : end - 1] for end, each in zip(ends, batch, strict=True)]
            found = []
            if len(targets):
                scored = torch.cat([own for own, each in zip(rows, batch, strict=True) if each.scores])
                found.append(self.model.log_probabilities(scored, to_device(targets, self.device)))
            kept = [own.flatten().float() for own, each in zip(rows, batch, strict=True) if each.hidden]
            sizes = [*map(len, wanted), *map(len, kept)]
            parts = np.split(to_host(torch.cat([*found, *kept])), np.cumsum(sizes)[:-1])
        hidden = iter(parts[len(batch) :])
        for place, each in enumerate(parts[: len(batch)]):
            if not np.isfinite(each).all():
                raise FloatingPointError(f"a log probability of item {place} of the batch is not finite")
        return [(scores, next(hidden) if each.hidden else None) for scores, each in zip(parts, batch, strict=False)]

    def finish(self, raw: tuple[Float32, Float32 | None], prepared: Continuation) -> CausalScores:
        """Put the numbers of `forward` beside the tokens that they are of."""
        scores, hidden = raw
        truncated = prepared.total > prepared.length
        return CausalScores(prepared.scored, scores, prepared.total, truncated, hidden, self.dim)

    def _joined(self, item: CausalItem, context: Int32, text: Int32) -> Continuation:
        opening = self.tokenizer.opening
        total = len(opening) + len(context) + len(text)
        text = text[: self.max_length - len(opening)]
        context = context[len(context) - min(len(context), self.max_length - len(opening) - len(text)) :]
        begin = max(1, len(opening) + len(context))
        return Continuation(np.concatenate([opening, context, text]), begin, total, item.hidden, item.scores)
