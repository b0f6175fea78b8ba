"""Instructions, and their answers where conflicts are looked for, to vectors.

Reads `pool/rows`, one shard at a time. Writes row_id, question (vector of the instruction and its input; bfloat16
codec, unit length) and, with `answers`, answer (vector of the response), in the order of the rows. What was said before
is not embedded: a skill is told by what is asked for. Made again when the shard's content, the model or the platform
changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.stages.embed import SLICE_ROWS, Embed, EmbedConfig

if TYPE_CHECKING:
    import pyarrow as pa

    from datapipe.pipeline import Tick
    from datapipe.workers.protocol import Worker

__all__ = ["EmbedInstructions", "InstructionVectorsConfig", "questions"]


@dataclass(frozen=True, kw_only=True)
class InstructionVectorsConfig(EmbedConfig):
    """What the vectors depend on besides the model.

    Attributes:
        answers: Whether responses are embedded too.
    """

    answers: bool


@dataclass(frozen=True)
class EmbedInstructions(Embed):
    """Embed what every row asks for.

    Attributes:
        answers: Whether responses are embedded too.
    """

    name: ClassVar[str] = "vectors"
    version: ClassVar[int] = 1

    answers: bool = False

    @property
    def config(self) -> InstructionVectorsConfig:
        """How rows are cut into slices, and what is embedded."""
        return InstructionVectorsConfig(slice_rows=SLICE_ROWS[self.bits["device"]], answers=self.answers)

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows of the pool."""
        return ("pool/rows",)

    def _embed(self, worker: Worker, rows: pa.Table, tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
        from datapipe.storage.vectors import encode, vector_field

        texts = {"question": questions(rows)}
        if self.answers:
            texts["answer"] = rows["response"].to_pylist()
        table, facts = rows.select(["row_id"]), {}
        for name, own in texts.items():
            found = self.vectors_of(worker, own, tick if name == "question" else _silent)
            facts[f"{name}s_truncated"] = int(found.truncated.sum())
            field = vector_field(name, dim=self.dim, model=self.model, digest=self.digest, normalised=True)
            table = table.append_column(field, encode(found.vectors))
        return table, facts


def questions(rows: pa.Table) -> list[str]:
    """What each row of a pool asks for: the instruction and, on the next line, its input."""
    pairs = zip(rows["instruction"].to_pylist(), rows["input"].to_pylist(), strict=True)
    return [f"{instruction}\n{about}" if about else instruction for instruction, about in pairs]


def _silent(_: int) -> None:
    """The rows count once."""
