"""The worker tasks of a pruner: keep probabilities of units and a relevance score, in one forward pass.

    PruneItem -> prepare (units, tokens, windows) -> PreparedText -> forward (both heads, sums a unit on the device)
    -> RawScores -> finish -> PruneScores

`PruneRerankTask` derives from it: the same pass, of which the score alone is given, between 0 and 1. Both are
registered when this module is imported, so that a worker of this process knows them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from datapipe.errors import ItemError, ModelError
from datapipe.workers.tasks.lookup import register
from datapipe.workers.tasks.rerank import RerankItem, RerankScore, RerankTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    import torch

    from datapipe.storage.arrays import Float32, Int32
    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.protocol import Item, Task
    from datapipe.workers.spec import DtypeName, ModelSpec
    from provence.families.base import Conduct, PrunerModel
    from provence.prepare import PreparedText, Preparer, RawScores
    from provence.units.unit import TextKind, UnitKind

__all__ = ["PruneItem", "PruneRerankTask", "PruneScores", "PruneTask", "marked", "prune_items"]

MOST_READ = 1 << 15
"""Characters of a document that reranking reads: some twenty windows of 512, which a lane computes in one go."""


@dataclass(frozen=True, slots=True)
class PruneItem:
    """A text to be scored for a question.

    Attributes:
        question: Any text.
        text: Any text; an empty one has no units. It is computed in one go, however long (see `sliced`).
        title: Shown to the model at the head of each window, not scored; cut to an eighth of one.
        kind: How the text is read (`provence.units.TextKind`).
        starts: Offsets at which the caller's own units begin; None lets the text be split.
        ends: Where they end; as many.
        cut_question: Whether a question too long for the model is cut; otherwise it is refused.
        share_at: Token threshold of the `share` rule; None takes the model's own.
    """

    question: str
    text: str
    title: str | None = None
    kind: TextKind = "auto"
    starts: Sequence[int] | Int32 | None = None
    ends: Sequence[int] | Int32 | None = None
    cut_question: bool = False
    share_at: float | None = None


@dataclass(frozen=True, slots=True)
class PruneScores:
    """What the model says of a text; the arrays have one entry a unit, in order.

    Attributes:
        starts: Offset of each unit's first character in the text.
        ends: Offset after its last.
        kinds: What it is (`UnitKind`).
        parents: Place of the unit that gives it its sense; -1 for none.
        lengths: Tokens of each unit.
        probabilities: Mean keep probability of its tokens, 0-1.
        shares: Share of its tokens with a keep probability above `share_at`; None where the model's rule is `mean`.
        score: Relevance of the text, on the model's own scale; the best of its windows. A text without a token has
            `prepare.EMPTY_SCORE`.
        tokens: Tokens of question, title and text, special tokens not counted; those of the text's units alone
            where texts share windows.
        truncated: Whether the question was cut.
        rule: The model's published decision rule, `mean` or `share`.
        threshold: Its published default threshold.
    """

    starts: Int32
    ends: Int32
    kinds: Sequence[UnitKind]
    parents: Int32
    lengths: Int32
    probabilities: Float32
    shares: Float32 | None
    score: float
    tokens: int
    truncated: bool
    rule: str
    threshold: float


class PruneTask:
    """Prune with one model.

    Args:
        preparer: Readies items for the model.
        model: On its device.
        chunk_tokens: Tokens of windows that are computed at once.

    Attributes:
        reranker: Name of the task by which routes that rerank use the same model.
    """

    name: ClassVar[str] = "prune"
    reranker: ClassVar[str] = "prune_rerank"
    item_type: ClassVar[type] = PruneItem
    result_type: ClassVar[type] = PruneScores
    window_items: ClassVar[int] = 2048
    dim = 0

    def __init__(self, preparer: Preparer, model: PrunerModel, *, chunk_tokens: int) -> None:
        self._preparer, self._model, self._chunk_tokens = preparer, model, chunk_tokens
        self.padded, self.nbytes = model.padded, model.nbytes

    @property
    def conduct(self) -> Conduct:
        """How the model wants to be used."""
        return self._model.conduct

    @classmethod
    def item_schema(cls) -> pa.Schema:
        """Texts, and what may be null of how they are to be read."""
        import pyarrow as pa

        offsets = pa.list_(pa.int32())
        return pa.schema(
            [
                pa.field("question", pa.string(), nullable=False),
                pa.field("text", pa.string(), nullable=False),
                pa.field("title", pa.string()),
                pa.field("kind", pa.string(), nullable=False),
                pa.field("starts", offsets),
                pa.field("ends", offsets),
                pa.field("cut_question", pa.bool_(), nullable=False),
                pa.field("share_at", pa.float64()),
            ]
        )

    @classmethod
    def result_schema(cls) -> pa.Schema:
        """Lists with an entry a unit, and what is said of the whole text."""
        import pyarrow as pa

        offsets, numbers = pa.list_(pa.int32()), pa.list_(pa.float32())
        return pa.schema(
            [
                pa.field("starts", offsets, nullable=False),
                pa.field("ends", offsets, nullable=False),
                pa.field("kinds", pa.list_(pa.string()), nullable=False),
                pa.field("parents", offsets, nullable=False),
                pa.field("lengths", offsets, nullable=False),
                pa.field("probabilities", numbers, nullable=False),
                pa.field("shares", numbers),
                pa.field("score", pa.float64(), nullable=False),
                pa.field("tokens", pa.int32(), nullable=False),
                pa.field("truncated", pa.bool_(), nullable=False),
                pa.field("rule", pa.string(), nullable=False),
                pa.field("threshold", pa.float64(), nullable=False),
            ]
        )

    @classmethod
    def precision(cls, folder: ModelFolder, *, device: torch.device) -> DtypeName:
        """What `auto` means: float32 on the CPU for models of other families, else what the hardware does best.

        Raises:
            ModelError: The folder holds no pruner.
        """
        from provence.families import conduct_of

        return "float32" if device.type == "cpu" and conduct_of(folder).family != "native" else "auto"

    @classmethod
    def open(cls, folder: ModelFolder, *, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a pruner of any family.

        Raises:
            ModelError: The folder holds none.
            ConfigError: The spec's `max_length` is more than the model has positions, or too little for a pair.
        """
        from provence.families import open_model
        from provence.prepare import Preparer, window_length
        from provence.sums import CHUNK_TOKENS
        from provence.tokens import UnitTokenizer

        model = open_model(folder, device=device, dtype=dtype, max_length=spec.max_length)
        tokenizer = UnitTokenizer(folder)
        if tokenizer.vocabulary > model.vocabulary:
            raise ModelError(
                f"model {folder.name}: tokenizer.json has {tokenizer.vocabulary} tokens, but the model only "
                f"{model.vocabulary}: they do not belong together"
            )
        longest = window_length(spec.max_length, model.conduct, positions=model.positions)
        preparer = Preparer(tokenizer, model.conduct, max_length=longest)
        return cls(preparer, model, chunk_tokens=CHUNK_TOKENS[device.type])

    def prepare(self, item: PruneItem) -> PreparedText:
        """Units, tokens and windows of one item; see `prepare_many`."""
        return self.prepare_many([item])[0]

    def prepare_many(self, items: Sequence[Item], *, first: int = 0) -> list[PreparedText]:
        """Units, tokens and windows of many items; see `Preparer.prepare_many`, which also says what is refused."""
        return self._preparer.prepare_many(items, first=first)

    def forward(self, batch: Sequence[PreparedText]) -> list[RawScores]:
        """Both heads over all windows of the batch, and means a unit; one copy of what they come to, to the host.

        Raises:
            FloatingPointError: A probability or a score is not finite; names the text's place in the batch.
        """
        from provence.sums import score_texts

        return score_texts(self._model, batch, chunk_tokens=self._chunk_tokens)

    def finish(self, raw: RawScores, prepared: PreparedText) -> PruneScores:
        """Put the probabilities beside the units that they are of."""
        from provence.prepare import unit_scores

        return unit_scores(raw, prepared, self.conduct)


class PruneRerankTask:
    """Rerank with a loaded pruner; a query too long for the model is cut, and a document beyond `MOST_READ` characters.

    Args:
        base: The `PruneTask` of the model.

    Attributes:
        reranks: Whether routes that rerank may run this task.
    """

    name: ClassVar[str] = "prune_rerank"
    derives_from: ClassVar[str] = "prune"
    reranks: ClassVar[bool] = True
    item_type: ClassVar[type] = RerankItem
    result_type: ClassVar[type] = RerankScore
    window_items: ClassVar[int] = PruneTask.window_items
    dim = 0

    def __init__(self, base: Task) -> None:
        self._base = cast("PruneTask", base)
        self.padded, self.nbytes = base.padded, base.nbytes

    @classmethod
    def item_schema(cls) -> pa.Schema:
        """Query and document."""
        return RerankTask.item_schema()

    @classmethod
    def result_schema(cls) -> pa.Schema:
        """Score, tokens and whether the query was cut; the score in float64, in which near 1 is not yet 1."""
        import pyarrow as pa

        return RerankTask.result_schema().set(0, pa.field("score", pa.float64(), nullable=False))

    @classmethod
    def over(cls, base: Task) -> Self:
        """Bind the task to a pruner that is loaded already."""
        return cls(base)

    @classmethod
    def precision(cls, folder: ModelFolder, *, device: torch.device) -> DtypeName:
        """As of the pruner. Raises `ModelError`."""
        return PruneTask.precision(folder, device=device)

    @classmethod
    def open(cls, folder: ModelFolder, *, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a pruner for this task alone. Raises `ModelError` if the folder holds none."""
        return cls(cast("Task", PruneTask.open(folder, spec=spec, device=device, dtype=dtype)))

    def prepare(self, item: RerankItem) -> PreparedText:
        """Windows of one pair; see `prepare_many`."""
        return self.prepare_many([item])[0]

    def prepare_many(self, items: Sequence[Item], *, first: int = 0) -> list[PreparedText]:
        """Windows of many pairs.

        Raises:
            ItemError: An item is no RerankItem of texts; its index is counted from `first`.
        """
        return marked(self._base.prepare_many(prune_items(items, first=first), first=first), items)

    def forward(self, batch: Sequence[PreparedText]) -> Sequence[RawScores]:
        """The pass of the pruner. Raises `FloatingPointError`."""
        return self._base.forward(batch)

    def finish(self, raw: RawScores, prepared: PreparedText) -> RerankScore:
        """The score of the best window, between 0 and 1; 0 for a document without a token."""
        from provence.prepare import rerank_score

        return rerank_score(raw, prepared, self._base.conduct)


def prune_items(pairs: Sequence[Item], *, first: int = 0) -> list[PruneItem]:
    """Pairs to rerank as items to prune, of documents the first `MOST_READ` characters.

    Raises:
        ItemError: One is no RerankItem; its index is counted from `first`.
    """
    for index, item in enumerate(pairs, first):
        if not isinstance(item, RerankItem):
            raise ItemError(f"item {index} must be a RerankItem. Got {type(item).__name__}", index=index)
    return [PruneItem(item.query, _beginning(item.document), cut_question=True) for item in pairs]


def marked(prepared: Sequence[PreparedText], pairs: Sequence[Item]) -> list[PreparedText]:
    """What was prepared of pairs, that of a cut document said to be truncated."""
    return [
        replace(each, truncated=True) if len(pair.document) > MOST_READ else each
        for each, pair in zip(prepared, pairs, strict=True)
    ]


def _beginning(document: object) -> Any:
    return document[:MOST_READ] if isinstance(document, str) else document


for _task in (PruneTask, PruneRerankTask):
    register(cast("type[Task]", _task))
