"""What an actor does, tried in this process: errors come back as values, and it refuses to compute other bits."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from datapipe.errors import DatapipeError, ItemError, OutputError, StageError
from datapipe.executors.actor import Canary, Plan, ShardActor, canary_in
from datapipe.executors.local import LocalExecutor
from datapipe.pipeline import Pipeline, ShardStage, StageOutput
from datapipe.stages.embedder import Embedder, check_platform
from datapipe.storage.stage import StageDir, StageStore
from datapipe.workers.faults import from_plain
from tests.contract.stages import Multiply, Numbers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def numbers(tmp_path: Path) -> StageOutput:
    (tmp_path / "record").mkdir()
    store = StageStore(tmp_path / "stages")
    return Pipeline([Numbers(2)]).run(store, LocalExecutor(1), scratch=tmp_path / "scratch")["numbers"]


@pytest.fixture
def plan(numbers: StageOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    monkeypatch.setenv("DATAPIPE_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    stage = Multiply(tmp_path / "record", fault="item", at=15)
    out = StageStore(tmp_path / "stages").open(stage.identity([numbers.digest]))
    with canary_in(out.path) as canary:
        yield Plan(stage=stage, artifacts={"numbers": numbers}, out=out, canary=canary, folder=str(tmp_path), threads=3)


def answers(plan: Plan, numbers: StageOutput) -> list[DatapipeError | None]:
    """What an actor says of each shard of `numbers`, in order."""
    actor = ShardActor(pickle.dumps(plan))
    found = []
    for i in range(2):
        inputs = [str(numbers.path / f"rows-{i:05d}.parquet")]
        row = actor(pa.table({"output": [f"{i}.parquet"], "inputs": [inputs]})).to_pylist()[0]
        assert row["output"] == f"{i}.parquet"
        found.append(from_plain(json.loads(row["fault"])) if row["fault"] is not None else None)
    return found


def test_a_shard_is_written_and_an_error_comes_back_as_what_it_was(plan: Plan, numbers: StageOutput) -> None:
    good, bad = answers(plan, numbers)
    assert good is None
    assert plan.out.done("0.parquet") is not None
    assert isinstance(bad, ItemError)
    assert (str(bad), bad.index) == ("item 15 is unusable", 15)
    assert bad.__notes__ == ["in stage multiply, shard 1.parquet"]
    assert plan.out.done("1.parquet") is None
    assert os.environ["DATAPIPE_THREADS"] == "3"


def test_any_other_exception_becomes_a_stage_error_that_carries_its_traceback(plan: Plan, numbers: StageOutput) -> None:
    assert isinstance(plan.stage, Multiply)
    stage = replace(plan.stage, fault="value")
    _, bad = answers(replace(plan, stage=stage), numbers)
    assert isinstance(bad, StageError)
    assert str(bad) == "stage multiply failed on shard 1.parquet: number 15"
    assert "break_down" in str(bad.__cause__)


@pytest.mark.parametrize("seen", [None, b"another file"], ids=["nothing there", "another folder there"])
def test_a_node_that_does_not_see_the_run_folder_says_so_and_makes_nothing(
    plan: Plan, numbers: StageOutput, tmp_path: Path, seen: bytes | None
) -> None:
    elsewhere = tmp_path / "elsewhere" / "stages" / "multiply-0" / "canary"
    if seen is not None:
        elsewhere.parent.mkdir(parents=True)
        elsewhere.write_bytes(seen)
    blind = replace(plan, canary=Canary(elsewhere, b"expected"))
    for fault in answers(blind, numbers):
        assert isinstance(fault, OutputError)
        assert f"does not see the run folder {tmp_path / 'elsewhere'}: executor ray needs a folder" in str(fault)
    assert isinstance(plan.stage, Multiply)
    assert plan.stage.noted("open") == []


def test_a_plan_that_cannot_be_read_is_an_error_of_every_shard(plan: Plan, numbers: StageOutput) -> None:
    actor = ShardActor(b"no pickle")
    row = actor(pa.table({"output": ["0.parquet"], "inputs": [[str(numbers.path)]]})).to_pylist()[0]
    fault = from_plain(json.loads(row["fault"]))
    assert isinstance(fault, StageError)
    assert "a stage cannot be opened on node" in str(fault)


def test_a_canary_goes_when_the_block_ends_and_with_the_leftovers_of_a_killed_run(tmp_path: Path) -> None:
    stage = Multiply(tmp_path)
    out = StageStore(tmp_path / "stages").open(stage.identity([]))
    with canary_in(out.path) as canary:
        canary.look()
        assert StageStore(tmp_path / "stages").open(stage.identity([])).path == out.path
        assert not canary.path.exists()
    with canary_in(out.path) as canary:
        pass
    assert not canary.path.exists()


def test_an_embedder_travels_by_name_and_promises_the_bits_of_where_it_came_from() -> None:
    here = Embedder("default", device="cpu")
    there = pickle.loads(pickle.dumps(here))  # noqa: S301 - made on this line
    assert there.name == here.name
    assert there.worker() is not here.worker()
    assert there.digest == here.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kind": "AVX2"},
            r"node \S+ would compute other bits .*: kind \S+ instead of AVX2\. Use machines of one kind",
        ),
        ({"torch": "2.0"}, r"torch 2\S+ instead of 2\.0"),
        ({"model": "0" * 64}, "model [0-9a-f]{64} instead of 0{64}"),
    ],
    ids=["processor", "torch", "model file"],
)
def test_a_machine_that_would_compute_other_bits_refuses(change: dict[str, Any], message: str) -> None:
    there = pickle.loads(pickle.dumps(Embedder("default", device="cpu")))  # noqa: S301 - made on this line
    there._promised = {**there._promised, **change}
    with pytest.raises(StageError, match=message):
        there.worker()


def test_scores_are_refused_too_where_their_bits_would_differ(tmp_path: Path) -> None:
    from datapipe.stages.prototypes import ScorePrototypes

    stage: ShardStage = ScorePrototypes(vectors="embed", device="cpu", bits={"device": "cpu", "torch": "2.0"})
    with pytest.raises(StageError, match=r"torch 2\S+ instead of 2\.0"):
        stage.open({})
    check_platform({"device": "cpu"}, {"device": "cpu", "torch": "3"})


def test_an_executor_can_write_where_paths_are_relative(plan: Plan, numbers: StageOutput) -> None:
    relative = replace(plan, out=StageDir(Path(os.path.relpath(plan.out.path)), plan.out.identity))
    assert answers(relative, numbers)[0] is None
