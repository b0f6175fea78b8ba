"""Order, resume and failure of pipelines, with two small real stages over real files."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from datapipe.errors import StageError, VectorError
from datapipe.executors.local import LocalExecutor
from datapipe.pipeline import Context, Pipeline, SetStage, ShardStage, StageOutput
from datapipe.storage.stage import StageDir, StageStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datapipe.pipeline import ShardFunction, Tick


class Numbers(SetStage):
    """Writes shards of ten numbers each."""

    name, version = "numbers", 1

    def __init__(self, shards: int = 4, shift: int = 0) -> None:
        self.shards, self.shift = shards, shift

    @property
    def config(self) -> Any:
        return {"shards": self.shards}

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        names = [f"rows-{i:05d}.parquet" for i in range(self.shards)]
        for i, name in enumerate(names):
            out.write_table(name, pa.table({"n": pa.array(range(10 * i, 10 * i + 10), pa.int64())}))
            context.tick(10)
        return names, {"rows": 10 * self.shards}


class Double(ShardStage):
    """Doubles numbers; raises `error` on the shard that holds `bad`."""

    name, version = "double", 1

    def __init__(self, bad: int | None = None, error: type[Exception] = ValueError) -> None:
        self.bad, self.error = bad, error
        self.made: list[int] = []

    @property
    def config(self) -> Any:
        return {"factor": 2}

    @property
    def needs(self) -> tuple[str, ...]:
        return ("numbers/rows",)

    def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
        def function(tables: Sequence[pa.Table], tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
            numbers = tables[0]["n"]
            if self.bad is not None and self.bad in numbers.to_pylist():
                raise self.error(f"number {self.bad}")
            self.made.append(numbers[0].as_py())
            tick(len(numbers))
            return pa.table({"n": pc.multiply(numbers, 2)}), {"sum": pc.sum(numbers).as_py(), "note": "text"}

        return function


class Total(SetStage):
    """Adds everything up."""

    name, version = "total", 1

    @property
    def config(self) -> Any:
        return {}

    @property
    def needs(self) -> tuple[str, ...]:
        return ("double",)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        total = sum(pc.sum(table["n"]).as_py() for table in inputs["double"].tables())
        (context.scratch / "temporary").write_text("x")
        out.write_bytes("total.txt", str(total).encode())
        return ["total.txt"], {"total": total}


def run(folder: Path, *stages: Any, workers: int = 2) -> dict[str, StageOutput]:
    return Pipeline(list(stages)).run(StageStore(folder / "stages"), LocalExecutor(workers), scratch=folder / "scratch")


def test_stages_run_in_order_and_sum_up_their_facts(tmp_path: Path) -> None:
    outputs = run(tmp_path, Numbers(), Double(), Total())
    assert outputs["double"].facts == {"sum": sum(range(40))}
    assert outputs["total"].read_bytes("total.txt") == str(2 * sum(range(40))).encode()
    assert not list((tmp_path / "scratch").glob("*"))


def test_a_finished_run_makes_nothing_again(tmp_path: Path) -> None:
    run(tmp_path, Numbers(), Double(), Total())
    again = Double()
    run(tmp_path, Numbers(), again, Total())
    assert again.made == []


def test_after_a_failure_only_the_missing_shards_are_made(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"stage double failed on shard [0-9a-f]{24}\.parquet: number 25"):
        run(tmp_path, Numbers(), Double(bad=25), Total(), workers=1)
    mended = Double()
    run(tmp_path, Numbers(), mended, Total())
    assert sorted(mended.made) == [20, 30]


def test_an_expected_error_keeps_its_type_and_gains_the_stage_and_shard(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="number 5") as caught:
        run(tmp_path, Numbers(), Double(bad=5, error=VectorError))
    assert caught.value.__notes__[0].startswith("in stage double, shard ")


def test_shards_that_have_not_changed_are_shared_by_a_longer_run(tmp_path: Path) -> None:
    run(tmp_path, Numbers(shards=3), Double())
    longer = Double()
    run(tmp_path, Numbers(shards=5), longer)
    assert sorted(longer.made) == [30, 40]


def test_one_and_many_workers_write_the_same_manifests(tmp_path: Path) -> None:
    one = run(tmp_path / "a", Numbers(), Double(), Total(), workers=1)
    many = run(tmp_path / "b", Numbers(), Double(), Total(), workers=4)
    assert {name: output.manifest for name, output in one.items()} == {
        name: output.manifest for name, output in many.items()
    }


def test_the_executor_holds_no_more_shards_than_it_has_workers(tmp_path: Path) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    class Counting(Double):
        def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
            function = super().open(artifacts)

            def counted(tables: Sequence[pa.Table], tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
                nonlocal inside, most
                with lock:
                    inside += 1
                    most = max(most, inside)
                result = function(tables, tick)
                with lock:
                    inside -= 1
                return result

            return counted

    run(tmp_path, Numbers(shards=12), Counting(), workers=3)
    assert 1 <= most <= 3


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Double()], "stage double needs numbers/rows, which does not come before it"),
        ([Numbers(), Numbers()], "two stages are called numbers"),
    ],
)
def test_a_pipeline_that_cannot_work_is_refused_before_it_runs(stages: list[Any], message: str) -> None:
    with pytest.raises(StageError, match=message):
        Pipeline(stages)


def test_no_executor_has_less_than_one_worker() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        LocalExecutor(0)
