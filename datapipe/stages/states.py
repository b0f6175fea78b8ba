"""The original model's states before the tokens of every response.

Reads `pool/rows`, one shard at a time. Writes row_id, ids (the tokens of the response that have something before them),
states (bfloat16, tokens x dim, as bytes), tokens (of prompt and response, before truncation) and truncated, in the
order of the rows. Made again when the shard's content, the model, its chat template or the platform changes; another
damaged version changes nothing, and so costs its own pass alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from datapipe.pipeline import ShardStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from datapipe.paser.bodies import Form, Responses
    from datapipe.paser.models import Models
    from datapipe.pipeline import ShardFunction, Tick
    from datapipe.workers.protocol import Worker

__all__ = ["SLICE_ROWS", "ModelStage", "ReadConfig", "States", "form_of", "responses_of"]

SLICE_ROWS = {"cpu": 64, "cuda": 1024}
"""Rows that go to the worker in one call: batches are packed within a slice, and a stop is heeded between two."""


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How rows are read.

    Attributes:
        chat: Digest of the original's chat template.
        max_length: Tokens of a row; longer ones lose the beginning of the prompt first.
        slice_rows: Rows packed together; another packing may change the last bit of a state.
    """

    chat: str
    max_length: int
    slice_rows: int

    @classmethod
    def of(cls, models: Models) -> Self:
        """What the models say."""
        rows = SLICE_ROWS[models.bits["device"]]
        return cls(chat=models.chat.digest, max_length=models.max_length, slice_rows=rows)


def form_of(models: Models, settings: ReadConfig) -> Form:
    """How rows become text for these models."""
    from datapipe.paser.bodies import Form

    return Form(models.chat, models.leading, settings.max_length, settings.slice_rows)


@dataclass(frozen=True)
class ModelStage(ShardStage):
    """A pass of language models over the rows of the pool.

    Attributes:
        run_by: The original and its damaged versions.
        settings: See `ReadConfig`.
    """

    run_by: Models
    settings: ReadConfig

    @property
    def config(self) -> ReadConfig:
        """How rows are read."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows of the pool."""
        return ("pool/rows",)

    @property
    def platform(self) -> Mapping[str, str]:
        """As the worker states it."""
        return self.run_by.bits


@dataclass(frozen=True)
class States(ModelStage):
    """Run the original's body once over every row."""

    name: ClassVar[str] = "states"
    version: ClassVar[int] = 1

    @classmethod
    def of(cls, models: Models) -> Self:
        """The stage for these models."""
        return cls(models, ReadConfig.of(models))

    @property
    def models(self) -> tuple[str, ...]:
        """The original."""
        from datapipe.paser.models import ORIGINAL

        return (self.run_by.digest(ORIGINAL),)

    def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
        """Load the original."""
        from datapipe.paser.models import ORIGINAL

        dim, worker = self.run_by.load(ORIGINAL).dim, self.run_by.worker
        form = form_of(self.run_by, self.settings)

        def function(tables: Sequence[pa.Table], tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
            return _read(worker, form, dim, tables[0], tick)

        return function


def _read(worker: Worker, form: Form, dim: int, rows: pa.Table, tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
    from datapipe.paser.bodies import read_responses
    from datapipe.paser.models import ORIGINAL

    parts = []
    for start in range(0, rows.num_rows, form.slice_rows):
        part = rows.slice(start, form.slice_rows)
        parts.append(read_responses(worker, ORIGINAL, form.of(part), dim=dim))
        tick(part.num_rows)
    facts = {
        "tokens": sum(len(part.ids) for part in parts),
        "truncated": sum(int(part.truncated.sum()) for part in parts),
        "unscored": sum(int((part.sizes == 0).sum()) for part in parts),
    }
    return _table(rows, parts, dim), facts


def _table(rows: pa.Table, parts: Sequence[Responses], dim: int) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    sizes = np.concatenate([np.empty(0, np.int64), *(part.sizes for part in parts)])
    ends = np.concatenate([[0], np.cumsum(sizes)])
    ids = np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)])
    states = np.concatenate([np.empty((0, dim), np.uint16), *(part.states for part in parts)])
    total = np.concatenate([np.empty(0, np.int32), *(part.total for part in parts)])
    truncated = np.concatenate([np.empty(0, np.bool_), *(part.truncated for part in parts)])
    buffers = [None, pa.py_buffer(ends * (2 * dim)), pa.py_buffer(states)]
    return pa.table(
        {
            "row_id": rows["row_id"],
            "ids": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(ids)),
            "states": pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(sizes), buffers),
            "tokens": pa.array(total),
            "truncated": pa.array(truncated),
        }
    )


def responses_of(states: pa.Table, *, dim: int) -> Responses:
    """What `States` wrote of some rows, without a copy of the states.

    Raises:
        StageError: The states are of another width.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from datapipe.errors import StageError
    from datapipe.paser.bodies import Responses

    ids, kept = states["ids"].combine_chunks(), states["states"].combine_chunks()
    sizes = pc.list_value_length(ids).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = len(kept)
    offsets = np.frombuffer(kept.buffers()[1], np.int64, rows + 1, 8 * kept.offset) if rows else np.zeros(1, np.int64)
    nbytes = int(offsets[-1] - offsets[0])
    if nbytes != 2 * dim * int(sizes.sum()):
        raise StageError(f"{nbytes:,} bytes of states are not {int(sizes.sum()):,} states of {dim} numbers in bfloat16")
    flat = (
        np.frombuffer(kept.buffers()[2], np.uint16, nbytes // 2, int(offsets[0])) if nbytes else np.empty(0, np.uint16)
    )
    return Responses(
        ids=ids.flatten().to_numpy(),
        sizes=sizes,
        states=flat.reshape(-1, dim),
        total=states["tokens"].cast(pa.int32()).to_numpy(),
        truncated=states["truncated"].to_numpy().astype(np.bool_),
    )
