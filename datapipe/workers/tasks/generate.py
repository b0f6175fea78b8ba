"""Prompts to answers, by a causal language model that is loaded already.

GenerateItem -> prepare (chat template, tokens) -> Prompt -> forward (decoding of a batch, with a cache) -> Generated

The task derives from `causal` and shares its tensors. A prompt is never cut: one that leaves no room for an answer gets
an empty one, `cut`. A batch costs the tokens of its prompts and the most that may come, so that what its keys and
values need is bounded by the worker's budget. The answer to a prompt at temperature 0 is the most probable token each
time; above it, draws follow the item's own seed, whatever else is in the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self, cast

import numpy as np

from datapipe.errors import ItemError
from datapipe.workers.chat import ChatFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    import torch

    from datapipe.storage.arrays import Int32
    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.protocol import Item, Task
    from datapipe.workers.spec import ModelSpec
    from datapipe.workers.tasks.causal import CausalTask

__all__ = ["GenerateItem", "GenerateTask", "Generated", "Prompt"]


@dataclass(frozen=True, slots=True)
class GenerateItem:
    """A prompt to be answered.

    Attributes:
        prompt: What the user says. Special tokens spelt out in it are read as such.
        system: What the model is told before; empty for nothing.
        raw: Whether the prompt is continued as it stands, without the model's chat template; `system` must be empty.
        max_new_tokens: Tokens after which an answer is cut, >= 1.
        temperature: 0 for the most probable token each time, else what the logits are divided by.
        top_p: The most probable tokens that together have at least this probability are drawn from, 0 < top_p <= 1.
        seed: Of the draws, 0 <= seed < 2^63; unused at temperature 0.
    """

    prompt: str
    system: str = ""
    raw: bool = False
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer.

    Attributes:
        text: Without special tokens.
        token_ids: As drawn, the token that ended it among them, int32 (tokens,).
        prompt_tokens: Tokens of the prompt in the form that the model saw.
        ended: Whether the model ended it; else it ran into `max_new_tokens` or the model's length.
        cut: Whether the prompt left room for fewer than `max_new_tokens`.
    """

    text: str
    token_ids: Int32
    prompt_tokens: int
    ended: bool
    cut: bool


class Prompt(NamedTuple):
    """An item ready for the model.

    Attributes:
        ids: The whole prompt, int32 (tokens,), at least one.
        limit: Tokens that may come, 0 where there is no room.
        item: What was asked.
    """

    ids: Int32
    limit: int
    item: GenerateItem

    @property
    def length(self) -> int:
        """Tokens of the prompt and the most that may come."""
        return len(self.ids) + self.limit


class GenerateTask:
    """Answer prompts with a loaded causal language model.

    Args:
        base: The `CausalTask` of the model.

    Attributes:
        chat: The model's form of a conversation.
        stops: Ids of the tokens that end an answer.
    """

    name: ClassVar[str] = "generate"
    derives_from: ClassVar[str] = "causal"
    item_type: ClassVar[type] = GenerateItem
    result_type: ClassVar[type] = Generated
    dim = 0

    def __init__(self, base: CausalTask) -> None:
        self._base = base
        self.padded, self.nbytes = base.padded, base.nbytes
        self.chat = ChatFormat(base.folder)
        named = (base.tokenizer.token_id(token) for token in self.chat.stop_tokens)
        self.stops = tuple(sorted({*self.chat.stop_ids, *(each for each in named if each is not None)}))

    @classmethod
    def item_schema(cls) -> pa.Schema:
        """Prompt, system text, and how the answer is drawn."""
        import pyarrow as pa

        fields = {
            "prompt": pa.string(),
            "system": pa.string(),
            "raw": pa.bool_(),
            "max_new_tokens": pa.int32(),
            "temperature": pa.float32(),
            "top_p": pa.float32(),
            "seed": pa.int64(),
        }
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()])

    @classmethod
    def result_schema(cls) -> pa.Schema:
        """The answer as text and tokens, and how it ended."""
        import pyarrow as pa

        fields = {
            "text": pa.string(),
            "token_ids": pa.list_(pa.int32()),
            "prompt_tokens": pa.int32(),
            "ended": pa.bool_(),
            "cut": pa.bool_(),
        }
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()])

    @classmethod
    def over(cls, base: Task) -> Self:
        """Bind the task to a causal language model that is loaded already."""
        return cls(cast("CausalTask", base))

    @classmethod
    def open(cls, folder: ModelFolder, *, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a model for this task alone. Raises `ModelError` if the folder holds no causal language model."""
        from datapipe.workers.tasks.causal import CausalTask

        return cls(CausalTask.open(folder, spec=spec, device=device, dtype=dtype))

    def prepare(self, item: GenerateItem) -> Prompt:
        """Tokenise one item; see `prepare_many`."""
        return self.prepare_many([item])[0]

    def prepare_many(self, items: Sequence[Item], *, first: int = 0) -> list[Prompt]:
        """Put each prompt in the model's form and tokenise it.

        Raises:
            ItemError: An item is no GenerateItem of texts, asks for the impossible, or has no tokens; its index is
                counted from `first`.
            ModelError: The model's chat template does not run.
        """
        for index, item in enumerate(items, first):
            _check(item, index)
        texts = [item.prompt if item.raw else self.chat.render(item.system, item.prompt) for item in items]
        found = self._base.tokenizer.plain(texts, first=first)
        opening = self._base.tokenizer.opening
        prompts = []
        for index, (item, ids) in enumerate(zip(items, found, strict=True), first):
            templated = self.chat.template is not None and not item.raw  # a template writes the opening itself
            whole = ids if templated else np.concatenate([opening, ids])
            if not len(whole):
                raise ItemError(f"item {index} has no tokens to answer", index=index)
            room = max(0, self._base.max_length - len(whole))
            prompts.append(Prompt(whole, min(item.max_new_tokens, room), item))
        return prompts

    def forward(self, batch: Sequence[Prompt]) -> list[Int32]:
        """Tokens of each answer, int32 (tokens,).

        Raises:
            FloatingPointError: The model's output is not finite.
        """
        from datapipe.workers.encoders.decoding import Decoding, decode

        asked = [place for place, prompt in enumerate(batch) if prompt.limit]
        answers = [np.empty(0, np.int32) for _ in batch]
        if not asked:
            return answers
        wanted = [
            Decoding(
                ids=prompt.ids,
                limit=prompt.limit,
                temperature=prompt.item.temperature,
                top_p=prompt.item.top_p,
                draws=np.random.Generator(np.random.Philox(prompt.item.seed)).random(prompt.limit, np.float32),
            )
            for prompt in (batch[place] for place in asked)
        ]
        found = decode(self._base.model, wanted, stops=self.stops, device=self._base.device)
        for place, ids in zip(asked, found, strict=True):
            answers[place] = ids
        return answers

    def finish(self, raw: Int32, prepared: Prompt) -> Generated:
        """Make text of the tokens."""
        ended = bool(len(raw)) and int(raw[-1]) in self.stops
        text = self._base.tokenizer.text(raw[:-1] if ended else raw)
        cut = prepared.limit < prepared.item.max_new_tokens
        return Generated(text, raw, len(prepared.ids), ended, cut)


def _check(item: Item, index: int) -> None:
    texts = [item.prompt, item.system] if isinstance(item, GenerateItem) else [item]
    wrong = [type(text).__name__ for text in texts if not isinstance(text, str)]
    if wrong or not isinstance(item, GenerateItem):
        raise ItemError(f"item {index} must be a GenerateItem of texts. Got {[*wrong, 'str'][0]}", index=index)
    if item.raw and item.system:
        raise ItemError(f"item {index} is raw, so it can have no system text", index=index)
    if item.max_new_tokens < 1:
        raise ItemError(f"max_new_tokens of item {index} must be at least 1. Got {item.max_new_tokens}", index=index)
    if not 0 <= item.temperature < math.inf:
        raise ItemError(f"temperature of item {index} must be 0 or more. Got {item.temperature}", index=index)
    if not 0 < item.top_p <= 1:
        raise ItemError(f"top_p of item {index} must be above 0 and at most 1. Got {item.top_p}", index=index)
    if not 0 <= item.seed < 1 << 63:
        raise ItemError(f"seed of item {index} must be in [0, 2^63). Got {item.seed}", index=index)
