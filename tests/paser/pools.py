"""Pools of real instructions, and stages run over them, for tests of what language models make of their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datapipe.executors.local import LocalExecutor
from datapipe.paser.models import Models
from datapipe.pipeline import Pipeline, SetStage
from datapipe.stages.instructions import InstructionPool, PoolConfig
from datapipe.storage.instructions import PoolColumns, columns_of
from datapipe.storage.source import open_source
from datapipe.storage.stage import StageStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datapipe.pipeline import Context, Stage, StageOutput
    from datapipe.storage.stage import StageDir


def dolly(path: Path, rows: int, *, long: int = 0) -> Path:
    """Real rows with answers of up to 160 characters, `long` of them after inputs of more than 1,500."""
    whole = pq.read_table("data/dolly_3k.parquet", columns=["instruction", "input", "output"]).to_pylist()
    brief = [row for row in whole if len(row["output"]) <= 160]
    inputs = [row for row in brief if len(row["input"]) > 1500]
    others = [row for row in brief if len(row["input"]) <= 300]
    pq.write_table(pa.Table.from_pylist([*inputs[:long], *others[: rows - long]]), path)
    return path


def run(pool: Path, folder: Path, stages: Sequence[Stage], *, shard_rows: int = 8) -> Mapping[str, StageOutput]:
    """Read the pool and run the stages."""
    source = open_source(pool)
    files = tuple(zip((file.uri for file in source.files), source.digests({}), strict=True))
    columns = columns_of(source.schema.names, PoolColumns())
    read = PoolConfig(files=files, columns=columns, shard_rows=shard_rows, max_chars=100_000)
    pipeline = Pipeline([InstructionPool(source, read), *stages])
    return pipeline.run(StageStore(folder / "stages"), LocalExecutor(), scratch=folder / "scratch")


def whole(output: StageOutput) -> pa.Table:
    """All rows of a stage."""
    return pa.concat_tables(output.tables())


def models(original: Path, *pruned: Path, **options: Any) -> Models:
    """Models in float32 on the CPU."""
    return Models(str(original), [str(each) for each in pruned], **{"device": "cpu", "dtype": "float32", **options})


@dataclass(frozen=True)
class Skills(SetStage):
    """Rows of clusters by the length of their answers, as `skills` writes them."""

    name: ClassVar[str] = "skills"
    version: ClassVar[int] = 1

    clusters: int

    @property
    def config(self) -> int:
        """How many."""
        return self.clusters

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows."""
        return ("pool/rows",)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Write the labels."""
        names = []
        for number, table in enumerate(inputs["pool"].tables("rows")):
            lengths = np.array([len(text) for text in table["response"].to_pylist()])
            labels = np.minimum(lengths // 40, self.clusters - 1).astype(np.int32)
            names.append(f"labels-{number:05d}.parquet")
            out.write_table(names[-1], pa.table({"row_id": table["row_id"], "cluster": labels}))
            context.tick(table.num_rows)
        return names, {"k": self.clusters}
