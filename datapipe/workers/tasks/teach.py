"""Texts to what a causal language model says of the token that follows at each place, cut down on the device.

TeachItem -> prepare (as the causal task) -> TaughtTokens -> forward (body, then head in chunks) -> TokenTeaching

A text of n tokens has n x vocabulary logits; they never leave the device. What comes back is, at each scored token,
either the k most probable tokens and the mass of the rest, or the tokens drawn at given points of the unit interval
(`datapipe.distill.codec.draw_points`: of the row's id, the place and a seed alone), with the entropy of the whole.

Several models of one tokenizer speak together as the mean of their log probabilities, normalised again: that is the
distribution of the mean of their logits, since what a model's logits lack of log probabilities is one number a place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self, cast

import numpy as np

from datapipe.errors import ItemError, ModelError
from datapipe.workers.tasks.causal import CausalItem

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    import torch

    from datapipe.storage.arrays import Float32, Float64, Int32
    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.protocol import Item, Task
    from datapipe.workers.spec import ModelSpec
    from datapipe.workers.tasks.causal import CausalTask, Continuation

__all__ = ["TaughtTokens", "TeachItem", "TeachTask", "TokenTeaching"]

_ROW_BYTES = 16


@dataclass(frozen=True, slots=True)
class TeachItem:
    """A text whose tokens a teacher is asked about.

    Attributes:
        text: At least one token; a response, say.
        context: What stands before it; a prompt, say.
        row: Id of the row, 16 bytes.
        k: Most probable tokens wanted at each place; 0 for draws.
        draws: Draws wanted at each place; 0 for the most probable.
        seed: Of the draws.
    """

    text: str
    context: str
    row: bytes
    k: int = 0
    draws: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TokenTeaching:
    """What the teacher says of a text.

    Attributes:
        sequence: Opening, context and text as the model saw them, int32 (length,).
        begin: Place of the first scored token in it; all after it are scored.
        log_probabilities: Of the scored tokens themselves, float32 (scored,), in nats.
        entropy: Of each distribution, float32 (scored,), in nats.
        ids: Tokens, k or draws a place, place after place, int32 (scored * width,): most probable first, or as drawn.
        values: Their log probabilities, float32 (scored * k,); empty with draws.
        tail: Logarithm of the mass of all other tokens, float32 (scored,), -inf for none; empty with draws.
        tokens: Tokens before truncation.
        truncated: Whether the model saw less than all of them.
    """

    sequence: Int32
    begin: int
    log_probabilities: Float32
    entropy: Float32
    ids: Int32
    values: Float32
    tail: Float32
    tokens: int
    truncated: bool


class TaughtTokens(NamedTuple):
    """An item ready for the model.

    Attributes:
        text: Its tokens, and which of them are scored.
        item: What is wanted of it.
    """

    text: Continuation
    item: TeachItem

    @property
    def length(self) -> int:
        """Tokens that the model sees."""
        return self.text.length


class TeachTask:
    """Teach with a loaded causal language model.

    Args:
        base: The `CausalTask` of the model.
        beside: Those of further models, which read the same tokens.

    Attributes:
        dim: Tokens of the vocabulary, over which every distribution runs.
        vocabulary: The same.
    """

    name: ClassVar[str] = "teach"
    derives_from: ClassVar[str] = "causal"
    item_type: ClassVar[type] = TeachItem
    result_type: ClassVar[type] = TokenTeaching

    def __init__(self, base: CausalTask, *, beside: Sequence[CausalTask] = ()) -> None:
        self._base, self._models = base, [base.model, *(task.model for task in beside)]
        self.padded, self.nbytes = base.padded, sum(model.nbytes for model in self._models)
        self.dim = self.vocabulary = base.model.vocabulary

    @classmethod
    def item_schema(cls) -> pa.Schema:
        """Text, context, row and what is wanted."""
        import pyarrow as pa

        texts = [pa.field(name, pa.string(), nullable=False) for name in ("text", "context")]
        numbers = [pa.field(name, pa.int64(), nullable=False) for name in ("k", "draws", "seed")]
        return pa.schema([*texts, pa.field("row", pa.binary(), nullable=False), *numbers])

    @classmethod
    def result_schema(cls) -> pa.Schema:
        """Tokens, what is said of each, and counts."""
        import pyarrow as pa

        whole, real = pa.list_(pa.int32()), pa.list_(pa.float32())
        columns = {
            "sequence": whole,
            "begin": pa.int32(),
            "log_probabilities": real,
            "entropy": real,
            "ids": whole,
            "values": real,
            "tail": real,
            "tokens": pa.int32(),
            "truncated": pa.bool_(),
        }
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])

    @classmethod
    def over(cls, base: Task) -> Self:
        """Bind the task to a causal language model that is loaded already."""
        return cls(cast("CausalTask", base))

    @classmethod
    def open(cls, folder: ModelFolder, *, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a causal language model for this task alone, and those beside it; texts are cut to what all can read.

        Raises:
            ModelError: A folder holds none, or their tokenizers or vocabularies differ; names both.
        """
        from datapipe.workers.folder import resolve
        from datapipe.workers.spec import spec_of
        from datapipe.workers.tasks.causal import CausalTask

        base = CausalTask.open(folder, spec=spec, device=device, dtype=dtype)
        beside = []
        for other in (resolve(spec_of(source)) for source in spec.beside):
            own = CausalTask.open(other, spec=spec, device=device, dtype=dtype)
            if _tokens(own) != _tokens(base):
                raise ModelError(
                    f"models {folder.name} and {other.name} read different tokens ({base.model.vocabulary:,} and "
                    f"{own.model.vocabulary:,}, or other ones): what they say cannot be averaged token by token"
                )
            base.max_length = min(base.max_length, own.max_length)
            beside.append(own)
        return cls(base, beside=beside)

    def prepare(self, item: TeachItem) -> TaughtTokens:
        """Tokenise one item; see `prepare_many`."""
        return self.prepare_many([item])[0]

    def prepare_many(self, items: Sequence[Item], *, first: int = 0) -> list[TaughtTokens]:
        """Tokenise and cut, as the causal task does.

        Raises:
            ItemError: An item is no TeachItem, its text has no tokens, its row no 16 bytes, or it wants neither or both
                of the most probable tokens and draws, or more tokens than there are; its index is counted from `first`.
        """
        for index, item in enumerate(items, first):
            fault = self._fault(item)
            if fault is not None:
                raise ItemError(f"item {index} {fault}", index=index)
        texts = self._base.prepare_many([CausalItem(item.text, item.context) for item in items], first=first)
        return [TaughtTokens(text, item) for text, item in zip(texts, items, strict=True)]

    def _fault(self, item: Item) -> str | None:
        if not isinstance(item, TeachItem):
            return f"must be a TeachItem. Got {type(item).__name__}"
        if len(item.row) != _ROW_BYTES:
            return f"must name its row by {_ROW_BYTES} bytes. Got {item.row!r}"
        if (item.k > 0) == (item.draws > 0) or min(item.k, item.draws) < 0:
            return f"wants the k most probable tokens or draws, and one of them. Got k {item.k}, draws {item.draws}"
        if item.k > self.vocabulary:
            return f"wants the {item.k:,} most probable of {self.vocabulary:,} tokens"
        return None

    def forward(self, batch: Sequence[TaughtTokens]) -> list[tuple[Float32, Float32, Int32, Float32, Float32]]:
        """What is wanted of each item: log probabilities, entropy, ids, values and tail, numpy.

        Raises:
            FloatingPointError: A distribution is not finite; names the item's place in the batch.
        """
        import torch

        with torch.inference_mode():
            states = [model.hidden([each.text.ids for each in batch]) for model in self._models]
            ends = np.cumsum([each.length for each in batch]).tolist()
            found = []
            for place, (end, each) in enumerate(zip(ends, batch, strict=True)):
                scored = each.text.scored
                own = slice(end - 1 - len(scored), end - 1)
                parts = self._taught([part[own] for part in states], scored, each.item)
                if not np.isfinite(parts[1]).all() or np.isnan(parts[0]).any():
                    raise FloatingPointError(f"what follows a token of item {place} of the batch is not finite")
                found.append(parts)
        return found

    def finish(self, raw: tuple[Float32, Float32, Int32, Float32, Float32], prepared: TaughtTokens) -> TokenTeaching:
        """Put the numbers of `forward` beside the tokens that they are of."""
        text = prepared.text
        return TokenTeaching(text.ids, text.begin, *raw, text.total, text.total > text.length)

    def _taught(
        self, states: Sequence[torch.Tensor], scored: Int32, item: TeachItem
    ) -> tuple[Float32, Float32, Int32, Float32, Float32]:
        """Of one item, chunk by chunk of its places."""
        import torch

        from datapipe.workers.encoders.transfer import to_device, to_host

        if not len(scored):
            none = np.empty(0, np.float32)
            return none, none, np.empty(0, np.int32), none, none
        targets = to_device(scored.astype(np.int64), states[0].device)
        points = _points(item, len(scored))
        step = max(
            1, self._models[0].chunk_rows // 4
        )  # beside the logits stand their exponentials, and sums in float64
        rows = []
        for at in range(0, len(scored), step):
            chunk = slice(at, at + step)
            logits = self._logits([part[chunk] for part in states])
            logits -= logits.amax(1, keepdim=True)
            rows.append(_reduced(logits, targets[chunk], item.k, None if points is None else points[chunk]))
        own, entropy, ids, values, tail = (torch.cat(parts) for parts in zip(*rows, strict=True))
        numbers = (to_host(each.float()) for each in (own, entropy, values.flatten(), tail))
        log_probabilities, entropies, kept, rest = numbers
        return log_probabilities, entropies, to_host(ids.flatten()).astype(np.int32), kept, rest

    def _logits(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean of the models' logits, float32 (places, vocabulary), in the memory of the first one's."""
        first, *others = (model.logits(own) for model, own in zip(self._models, states, strict=True))
        for logits in others:
            first += logits
        return first.div_(len(states)) if others else first


def _tokens(task: CausalTask) -> tuple[int, bytes]:
    """What the tokens of two models must have in common."""
    return task.model.vocabulary, task.folder.path("tokenizer.json").read_bytes()


def _reduced(logits: torch.Tensor, targets: torch.Tensor, k: int, points: Float64 | None) -> tuple[torch.Tensor, ...]:
    """Own log probability, entropy, ids, values, tail of (places, vocabulary) logits whose greatest is 0."""
    import torch

    chances = logits.exp()
    total = chances.sum(1, dtype=torch.float64)
    norm = total.log()
    own = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - norm
    products = torch.where(chances > 0, logits, 0.0).mul_(chances)
    entropy = norm - products.sum(1, dtype=torch.float64) / total
    if points is None:
        ids = logits.topk(k, dim=1).indices
        values = logits.gather(1, ids) - norm.unsqueeze(1)
        rest = chances.scatter_(1, ids, 0.0).sum(1, dtype=torch.float64)
        return own, entropy, ids, values, rest.log() - norm
    running = chances.double().cumsum_(1)
    wanted = torch.from_numpy(points).to(logits.device) * running[:, -1:]
    ids = torch.searchsorted(running, wanted, right=True).clamp_(max=logits.shape[1] - 1)
    return own, entropy, ids, logits[:0], own[:0]


def _points(item: TeachItem, places: int) -> Float64 | None:
    """Where each place of an item draws, float64 (places, draws)."""
    if not item.draws:
        return None
    from datapipe.distill.codec import draw_points

    row = np.frombuffer(item.row, ">u8").astype(np.uint64)
    return draw_points(np.tile(row, (places, 1)), np.arange(places), draws=item.draws, seed=item.seed)
