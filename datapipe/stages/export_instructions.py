"""The rows kept, for their owner and for a trainer.

Reads the source again, `pool/places`, `pool/rows` and `pick`. Writes `kept.parquet` (row_id and the source's own
columns, by row id), `train.parquet` (the same rows in the same order in one plain shape) and `dataset_info.json`, by
which LLaMA-Factory finds `train.parquet` and its columns.

`train.parquet` has instruction, input and output; or, where the pool has conversations, messages (role, content) that
end with the response: what was scored, whatever the source calls its columns and roles. It stands beside
`kept.parquet` because `datasets` up to 4, which LLaMA-Factory asks for, reads no column of 16-byte ids.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.select import read_selection

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from datapipe.storage.instructions import PoolColumns
    from datapipe.storage.source import Source
    from datapipe.storage.stage import StageDir

__all__ = ["DATASET", "INFO", "KEPT", "TRAIN", "ExportInstructions"]

KEPT, TRAIN, INFO = "kept.parquet", "train.parquet", "dataset_info.json"
DATASET = "recovery"
"""Name of the data set in `dataset_info.json`."""

_ALPACA = {
    "file_name": TRAIN,
    "formatting": "alpaca",
    "columns": {"prompt": "instruction", "query": "input", "response": "output"},
}
_MESSAGES = {
    "file_name": TRAIN,
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}


@dataclass(frozen=True)
class ExportInstructions(SetStage):
    """Write what the user came for.

    Attributes:
        source: Read again.
        digests: Its files' digests.
        columns: Which column of it is what.
    """

    name: ClassVar[str] = "exported"
    version: ClassVar[int] = 1

    source: Source
    digests: tuple[str, ...]
    columns: PoolColumns

    @property
    def config(self) -> dict[str, Any]:
        """The source, and the shape of `train.parquet`."""
        return {"source": self.digests, "messages": self.messages}

    @property
    def messages(self) -> bool:
        """Whether any of the pool's files holds conversations."""
        return any(each.messages is not None for each in (self.columns, *self.columns.others))

    @property
    def needs(self) -> tuple[str, ...]:
        """Where rows came from, their texts, and the choice."""
        return ("pool/places", "pool/rows", "pick")

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Write the three files."""
        from datapipe.storage.export import export

        pool, pick = inputs["pool"], inputs["pick"]
        info = export(
            self.source,
            places=pool.tables("places"),
            kept=read_selection(pick, pool.shards("places")),
            out=out,
            scratch=context.scratch,
            name=KEPT,
        )
        if out.done(TRAIN) is None:
            self._write_train(pool, pick, out, context)
        shape = _MESSAGES if self.messages else _ALPACA
        out.write_bytes(INFO, json.dumps({DATASET: shape}, indent=2).encode() + b"\n")
        return [KEPT, TRAIN, INFO], {"rows": info.rows}

    def _write_train(self, pool: StageOutput, pick: StageOutput, out: StageDir, context: Context) -> None:
        shards = pool.shards("rows")
        with out.writer(TRAIN, _train_schema(messages=self.messages)) as writer:
            for rows, choice in zip(pool.tables("rows"), read_selection(pick, shards), strict=True):
                kept = rows.filter(choice["kept"])
                writer.write(_conversations(kept) if self.messages else _alpaca(kept))
                context.tick(rows.num_rows)


def _train_schema(*, messages: bool) -> pa.Schema:
    import pyarrow as pa

    if not messages:
        return pa.schema([pa.field(name, pa.string()) for name in ("instruction", "input", "output")])
    message = pa.struct([pa.field(name, pa.string()) for name in ("role", "content")])
    return pa.schema([pa.field("messages", pa.list_(message))])


def _alpaca(rows: pa.Table) -> pa.Table:
    import pyarrow as pa

    columns = [rows[name].combine_chunks() for name in ("instruction", "input", "response")]
    return pa.Table.from_arrays(columns, schema=_train_schema(messages=False))


def _conversations(rows: pa.Table) -> pa.Table:
    import pyarrow as pa

    found = []
    for row in rows.select(["instruction", "input", "response", "history"]).to_pylist():
        asked = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
        turn = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["response"]}]
        found.append([*row["history"], *turn])
    return pa.table({"messages": found}, schema=_train_schema(messages=True))
