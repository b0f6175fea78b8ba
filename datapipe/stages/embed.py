"""Texts to vectors.

Reads `ingest/rows`, one shard at a time. Writes row_id, vector (bfloat16 codec, unit length), tokens (before
truncation) and truncated, in the order of the rows. Made again when the shard's content, the model or the platform
changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import ShardStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    from datapipe.embedding.text import EmbeddedTexts
    from datapipe.pipeline import ShardFunction, Tick
    from datapipe.workers.protocol import Worker

SLICE_ROWS = {"cpu": 1024, "cuda": 8192}
"""Rows that go to the worker in one call: batches are packed within a slice, and a stop is heeded between two. A GPU
takes more texts at once than a CPU embeds in a second."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What the vectors depend on besides the model.

    Attributes:
        slice_rows: Rows packed together; another packing may change the last bit of a vector.
    """

    slice_rows: int


@dataclass(frozen=True)
class Embed(ShardStage):
    """Embed the text of every row.

    Attributes:
        worker: Makes the worker that runs the model; called once in each process.
        model: Name of the model at that worker.
        digest: Digest of the model's files.
        dim: Length of a vector.
        bits: Platform facts of the worker: device kind, dtype, torch version, intra-op threads.
    """

    name: ClassVar[str] = "embed"
    version: ClassVar[int] = 1

    worker: Callable[[], Worker]
    model: str
    digest: str
    dim: int
    bits: Mapping[str, str]

    @property
    def config(self) -> EmbedConfig:
        """How rows are cut into slices."""
        return EmbedConfig(slice_rows=SLICE_ROWS[self.bits["device"]])

    @property
    def needs(self) -> tuple[str, ...]:
        """The canonical rows."""
        return ("ingest/rows",)

    @property
    def models(self) -> tuple[str, ...]:
        """The embedder."""
        return (self.digest,)

    @property
    def platform(self) -> Mapping[str, str]:
        """As the worker states it."""
        return self.bits

    def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
        """Start or find the worker."""
        worker = self.worker()

        def function(tables: Sequence[pa.Table], tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
            return self._embed(worker, tables[0], tick)

        return function

    def _embed(self, worker: Worker, rows: pa.Table, tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
        import numpy as np
        import pyarrow as pa

        from datapipe.storage.vectors import encode, vector_field

        vectors, tokens, truncated = self.vectors_of(worker, rows["text"].to_pylist(), tick)
        schema = pa.schema(
            [
                rows.schema.field("row_id"),
                vector_field("vector", dim=self.dim, model=self.model, digest=self.digest, normalised=True),
                pa.field("tokens", pa.int32()),
                pa.field("truncated", pa.bool_()),
            ]
        )
        columns = [rows["row_id"].combine_chunks(), encode(vectors), pa.array(tokens), pa.array(truncated)]
        facts = {"tokens": int(tokens.sum(dtype=np.int64)), "truncated": int(truncated.sum())}
        return pa.Table.from_arrays(columns, schema=schema), facts

    def vectors_of(self, worker: Worker, texts: Sequence[str], tick: Tick) -> EmbeddedTexts:
        """Embed texts, slice by slice.

        Args:
            worker: Runs the model.
            texts: One a row.
            tick: Is called with the rows just done.
        """
        import numpy as np

        from datapipe.embedding.text import EmbeddedTexts, embed_texts

        vectors = np.empty((len(texts), self.dim), np.float32)
        tokens = np.empty(len(texts), np.int32)
        truncated = np.empty(len(texts), np.bool_)
        rows_at_once = self.config.slice_rows
        for start in range(0, len(texts), rows_at_once):
            part = slice(start, min(start + rows_at_once, len(texts)))
            vectors[part], tokens[part], truncated[part] = embed_texts(worker, texts[part], model=self.model)
            tick(part.stop - part.start)
        return EmbeddedTexts(vectors, tokens, truncated)
