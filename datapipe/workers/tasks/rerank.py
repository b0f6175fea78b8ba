"""Documents scored for a query, by the cosine of their embeddings.

RerankItem -> prepare (both texts) -> Pair -> forward (embed each text once) -> RerankScore

The task derives from `embed` and shares its tensors, so every served embedder can rerank. A package that has a
cross-encoder does better: it registers a task of its own whose class says `reranks = True`, takes `RerankItem` and
gives `RerankScore`; where a served model has such a task, routes that rerank run it in place of this one. Its scores
should lie between 0 and 1, which is what users of rerankers expect; higher means more relevant, and they must not
depend on the other items of a batch beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self, cast

import numpy as np

from datapipe.errors import ItemError
from datapipe.workers.tasks.embed import TextItem

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    import torch

    from datapipe.storage.arrays import Float32
    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.protocol import Item, Task
    from datapipe.workers.spec import ModelSpec
    from datapipe.workers.tokenizer import Tokens

__all__ = ["Pair", "RerankItem", "RerankScore", "RerankTask"]


@dataclass(frozen=True, slots=True)
class RerankItem:
    """A document to be scored for a query.

    Attributes:
        query: Any text.
        document: Any text.
    """

    query: str
    document: str


@dataclass(frozen=True, slots=True)
class RerankScore:
    """How relevant a document is for a query.

    Attributes:
        score: Higher is more relevant; here the cosine of both embeddings, in [-1, 1].
        tokens: Tokens of query and document before truncation.
        truncated: Whether the model saw only the beginning of one of them.
    """

    score: float
    tokens: int
    truncated: bool


class Pair(NamedTuple):
    """An item ready for the model.

    Attributes:
        query: Tokens of the query.
        document: Tokens of the document.
    """

    query: Tokens
    document: Tokens

    @property
    def length(self) -> int:
        """Tokens of both; a query or a document that a batch holds twice is computed once, so it may cost less."""
        return self.query.length + self.document.length


class RerankTask:
    """Rerank with a loaded embedder.

    Args:
        base: The `EmbedTask` of the model.

    Attributes:
        reranks: Whether routes that rerank may run this task.
    """

    name: ClassVar[str] = "rerank"
    derives_from: ClassVar[str] = "embed"
    reranks: ClassVar[bool] = True
    item_type: ClassVar[type] = RerankItem
    result_type: ClassVar[type] = RerankScore
    dim = 0

    def __init__(self, base: Task) -> None:
        self._base = base
        self.padded, self.nbytes = base.padded, base.nbytes

    @classmethod
    def item_schema(cls) -> pa.Schema:
        """Query and document."""
        import pyarrow as pa

        return pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("query", "document")])

    @classmethod
    def result_schema(cls) -> pa.Schema:
        """Score, tokens and whether a text was cut."""
        import pyarrow as pa

        return pa.schema(
            [
                pa.field("score", pa.float32(), nullable=False),
                pa.field("tokens", pa.int32(), nullable=False),
                pa.field("truncated", pa.bool_(), nullable=False),
            ]
        )

    @classmethod
    def over(cls, base: Task) -> Self:
        """Bind the task to an embedder that is loaded already."""
        return cls(base)

    @classmethod
    def open(cls, folder: ModelFolder, *, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Self:
        """Load an embedder for this task alone. Raises `ModelError` if the folder holds none."""
        from datapipe.workers.tasks.embed import EmbedTask

        return cls(cast("Task", EmbedTask.open(folder, spec=spec, device=device, dtype=dtype)))

    def prepare(self, item: RerankItem) -> Pair:
        """Tokenise both texts of one item; see `prepare_many`."""
        return self.prepare_many([item])[0]

    def prepare_many(self, items: Sequence[Item], *, first: int = 0) -> list[Pair]:
        """Tokenise both texts of each item; a query in many items once.

        Raises:
            ItemError: An item is no RerankItem of texts; its index is counted from `first`.
        """
        places: dict[str, int] = {}
        for index, item in enumerate(items, first):
            if not isinstance(item, RerankItem) or not isinstance(item.query, str):
                found = type(item.query if isinstance(item, RerankItem) else item).__name__
                raise ItemError(f"item {index} must be a RerankItem of texts. Got {found}", index=index)
            places.setdefault(item.query, index)
        try:
            queries = dict(zip(places, self._base.prepare_many([TextItem(query) for query in places]), strict=True))
        except ItemError:
            for query, index in places.items():  # the same error again, by the index of the item
                self._base.prepare_many([TextItem(query)], first=index)
            raise
        documents = self._base.prepare_many([TextItem(item.document) for item in items], first=first)
        return [Pair(queries[item.query], document) for item, document in zip(items, documents, strict=True)]

    def forward(self, batch: Sequence[Pair]) -> Float32:
        """Cosines, float32 (items,), on the host. One copy to the device and one back, two where texts are padded.

        Raises:
            FloatingPointError: The vector of a text is not finite.
        """
        queries, documents = [pair.query for pair in batch], [pair.document for pair in batch]
        if self.padded:  # a short query padded to the longest document would cost as much as it
            one, two = self._vectors(queries), self._vectors(documents)
        else:
            both = self._vectors(queries + documents)
            one, two = both[: len(batch)], both[len(batch) :]
        cosines: Float32 = np.clip(np.einsum("ij,ij->i", one, two), -1, 1)
        return cosines

    def finish(self, raw: np.float32, prepared: Pair) -> RerankScore:
        """Put a cosine beside what was counted when the texts were cut."""
        query, document = prepared
        return RerankScore(float(raw), query.total + document.total, query.truncated or document.truncated)

    def _vectors(self, texts: Sequence[Tokens]) -> Float32:
        """Unit vectors, float32 (texts, dim); equal texts are computed once, longest first, as encoders like them."""
        keys = [tokens.ids.tobytes() for tokens in texts]
        once = sorted(dict(zip(keys, texts, strict=True)).items(), key=lambda pair: -pair[1].length)
        vectors = np.asarray(self._base.forward([tokens for _, tokens in once]))
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
        places = {key: place for place, (key, _) in enumerate(once)}
        found: Float32 = vectors[[places[key] for key in keys]]
        return found
