"""Instructions, and their answers where conflicts are looked for, to vectors.

Reads `pool/rows`, one shard at a time. Writes row_id, question (vector of the instruction and its input; bfloat16
codec, unit length) and, with `answers`, answer (vector of the response), in the order of the rows. What was said before
is not embedded: a skill is told by what is asked for. Made again when the shard's content, the model or the platform
changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import ShardStage, StageOutput
from datapipe.stages.embed import SLICE_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    from datapipe.pipeline import ShardFunction, Tick
    from datapipe.storage.arrays import Float32
    from datapipe.workers.protocol import Worker

__all__ = ["EmbedInstructions", "InstructionVectorsConfig", "questions"]


@dataclass(frozen=True, kw_only=True)
class InstructionVectorsConfig:
    """What the vectors depend on besides the model.

    Attributes:
        slice_rows: Rows packed together; another packing may change the last bit of a vector.
        answers: Whether responses are embedded too.
    """

    slice_rows: int
    answers: bool


@dataclass(frozen=True)
class EmbedInstructions(ShardStage):
    """Embed what every row asks for.

    Attributes:
        worker: Makes the worker that runs the model; called once in each process.
        model: Name of the model at that worker.
        digest: Digest of the model's files.
        dim: Length of a vector.
        bits: Platform facts of the worker: device kind, dtype, torch version, intra-op threads.
        answers: Whether responses are embedded too.
    """

    name: ClassVar[str] = "vectors"
    version: ClassVar[int] = 1

    worker: Callable[[], Worker]
    model: str
    digest: str
    dim: int
    bits: Mapping[str, str]
    answers: bool = False

    @property
    def config(self) -> InstructionVectorsConfig:
        """How rows are cut into slices, and what is embedded."""
        return InstructionVectorsConfig(slice_rows=SLICE_ROWS[self.bits["device"]], answers=self.answers)

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows of the pool."""
        return ("pool/rows",)

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
        from datapipe.storage.vectors import encode, vector_field

        texts = {"question": questions(rows)}
        if self.answers:
            texts["answer"] = rows["response"].to_pylist()
        table, facts = rows.select(["row_id"]), {}
        for name, own in texts.items():
            vectors, facts[f"{name}s_truncated"] = self._vectors(worker, own, tick if name == "question" else _silent)
            field = vector_field(name, dim=self.dim, model=self.model, digest=self.digest, normalised=True)
            table = table.append_column(field, encode(vectors))
        return table, facts

    def _vectors(self, worker: Worker, texts: Sequence[str], tick: Tick) -> tuple[Float32, int]:
        """Vectors of the texts, and of how many the model saw the beginning only."""
        import numpy as np

        from datapipe.embedding.text import embed_texts

        vectors, truncated = np.empty((len(texts), self.dim), np.float32), 0
        step = self.config.slice_rows
        for start in range(0, len(texts), step):
            part = slice(start, min(start + step, len(texts)))
            found = embed_texts(worker, texts[part], model=self.model)
            vectors[part] = found.vectors
            truncated += int(found.truncated.sum())
            tick(part.stop - part.start)
        return vectors, truncated


def questions(rows: pa.Table) -> list[str]:
    """What each row of a pool asks for: the instruction and, on the next line, its input."""
    pairs = zip(rows["instruction"].to_pylist(), rows["input"].to_pylist(), strict=True)
    return [f"{instruction}\n{about}" if about else instruction for instruction, about in pairs]


def _silent(_: int) -> None:
    """The rows count once."""
