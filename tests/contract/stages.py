"""Two small real stages over real files that can be sent to another process, and a record of what they made.

The record is a folder of empty files, since what a stage remembers in another process is lost with it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from datapipe.errors import ItemError
from datapipe.pipeline import Context, SetStage, ShardStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datapipe.pipeline import ShardFunction, Tick
    from datapipe.storage.stage import StageDir

ROWS = 10


@dataclass(frozen=True)
class Numbers(SetStage):
    """Writes shards of ten numbers each, and a factor."""

    name: ClassVar[str] = "numbers"
    version: ClassVar[int] = 1

    shards: int = 6

    @property
    def config(self) -> dict[str, int]:
        return {"shards": self.shards}

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        names = [f"rows-{i:05d}.parquet" for i in range(self.shards)]
        for i, name in enumerate(names):
            out.write_table(name, pa.table({"n": pa.array(range(ROWS * i, ROWS * (i + 1)), pa.int64())}))
        out.write_bytes("factor", b"3")
        return [*names, "factor"], {"rows": ROWS * self.shards}


@dataclass(frozen=True)
class Multiply(ShardStage):
    """Multiplies numbers by the factor of `numbers`.

    Attributes:
        record: Folder where each opening and each shard made leaves a file.
        fault: What happens on the shard that holds `at`: `value`, `item`, `exit`, or the whole stage at `open`.
        at: A number.
        seconds: How long a shard takes.
    """

    name: ClassVar[str] = "multiply"
    version: ClassVar[int] = 1

    record: Path
    fault: str = ""
    at: int = -1
    seconds: float = 0.0

    @property
    def config(self) -> dict[str, Any]:
        return {}

    @property
    def needs(self) -> tuple[str, ...]:
        return ("numbers/rows",)

    @property
    def uses(self) -> tuple[str, ...]:
        return ("numbers",)

    def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
        self.note("open")
        if self.fault == "open":
            raise ItemError("item 7 cannot be opened", index=7)
        factor = int(artifacts["numbers"].read_bytes("factor"))

        def function(tables: Sequence[pa.Table], tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
            numbers = tables[0]["n"]
            first = numbers[0].as_py()
            time.sleep(self.seconds)
            if first <= self.at < first + ROWS:
                self.break_down()
            tick(len(numbers))
            self.note(f"made-{first:03d}")
            return pa.table({"n": pc.multiply(numbers, factor)}), {"sum": pc.sum(numbers).as_py(), "text": "not summed"}

        return function

    def break_down(self) -> None:
        self.note("broke")
        if self.fault == "value":
            raise ValueError(f"number {self.at}")
        if self.fault == "item":
            raise ItemError(f"item {self.at} is unusable", index=self.at)
        if self.fault == "exit":
            os._exit(1)
        if self.fault == "exit once" and len(self.noted("broke")) == 1:
            os._exit(1)

    def note(self, what: str) -> None:
        """Leave a file behind."""
        (self.record / f"{what}.{os.getpid()}.{os.urandom(4).hex()}").touch()

    def noted(self, what: str) -> list[str]:
        """What was left behind by that name, without process and chance, in order."""
        return sorted(path.name.split(".")[0] for path in self.record.glob(f"{what}*"))


@dataclass(frozen=True)
class Total(SetStage):
    """Adds everything up."""

    name: ClassVar[str] = "total"
    version: ClassVar[int] = 1

    @property
    def config(self) -> dict[str, Any]:
        return {}

    @property
    def needs(self) -> tuple[str, ...]:
        return ("multiply",)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        total = sum(pc.sum(table["n"]).as_py() for table in inputs["multiply"].tables())
        out.write_bytes("total.txt", str(total).encode())
        return ["total.txt"], {"total": total}
