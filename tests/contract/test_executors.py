"""What a pipeline may rely on, whichever executor runs it."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

import datapipe
from datapipe.curation import Curation
from datapipe.errors import ItemError, StageError
from datapipe.executors.local import LocalExecutor
from datapipe.pipeline import Pipeline, ShardStage
from datapipe.storage.stage import StageStore
from tests.contract.stages import Multiply, Numbers, Total
from tests.runs import contents, kept_ids

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.pipeline import Executor, StageOutput

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

OPTIONS: dict[str, Any] = {"keep": 0.4, "text_column": "text", "label_column": "label_name", "shard_rows": 64}


def run(folder: Path, executor: Executor, *stages: Any) -> dict[str, StageOutput]:
    return Pipeline(list(stages)).run(StageStore(folder / "stages"), executor, scratch=folder / "scratch")


@pytest.fixture
def record(tmp_path: Path) -> Path:
    (tmp_path / "record").mkdir()
    return tmp_path / "record"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    path = tmp_path_factory.mktemp("source") / "banking.parquet"
    pl.read_parquet(data / "banking77.parquet").head(300).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "run"
    datapipe.curate(source, out=out, workers=1, **OPTIONS)
    return out


def test_shards_are_made_from_shards_and_facts_are_summed(executor: Executor, record: Path, tmp_path: Path) -> None:
    stage = Multiply(record)
    outputs = run(tmp_path, executor, Numbers(), stage, Total())
    assert outputs["multiply"].facts == {"sum": sum(range(60))}
    assert outputs["total"].read_bytes("total.txt") == str(3 * sum(range(60))).encode()
    assert stage.noted("made") == [f"made-{first:03d}" for first in range(0, 60, 10)]


def test_a_stage_is_opened_once_in_each_place_and_not_once_a_shard(
    executor: Executor, record: Path, tmp_path: Path
) -> None:
    stage = Multiply(record)
    run(tmp_path, executor, Numbers(shards=12), stage)
    assert 1 <= len(stage.noted("open")) <= executor.workers


def test_the_files_are_those_of_any_other_executor(executor: Executor, record: Path, tmp_path: Path) -> None:
    stages = (Numbers(), Multiply(record), Total())
    run(tmp_path / "a", executor, *stages)
    run(tmp_path / "b", LocalExecutor(1), *stages)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_progress_hears_of_every_row_once(executor: Executor, record: Path, tmp_path: Path) -> None:
    told: list[int] = []

    class Told:
        def start(self, stage: str, *, total: int | None) -> None:
            told.clear()

        def advance(self, rows: int) -> None:
            told.append(rows)

        def finish(self, stage: str, *, rows: int, seconds: float, reused: bool) -> None: ...

    pipeline = Pipeline([Numbers(), Multiply(record)])
    pipeline.run(StageStore(tmp_path / "stages"), executor, scratch=tmp_path / "scratch", progress=Told())
    assert sum(told) == 60


def test_a_finished_stage_makes_nothing_again(executor: Executor, record: Path, tmp_path: Path) -> None:
    stage = Multiply(record)
    run(tmp_path, executor, Numbers(), stage)
    run(tmp_path, executor, Numbers(), stage)
    assert len(stage.noted("made")) == 6


def test_after_an_error_only_the_missing_shards_are_made(executor: Executor, record: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"stage multiply failed on shard [0-9a-f]{24}\.parquet: number 59") as caught:
        run(tmp_path, executor, Numbers(), Multiply(record, fault="value", at=59, seconds=0.05))
    assert "number 59" in str(caught.value.__cause__)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").glob("multiply-*/*.parquet")}
    assert 0 < len(made) < 6
    run(tmp_path, executor, Numbers(), Multiply(record))
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(list((tmp_path / "stages").glob("multiply-*/*.parquet"))) == 6


def test_an_expected_error_keeps_type_fields_and_text_and_names_stage_and_shard(
    executor: Executor, record: Path, tmp_path: Path
) -> None:
    with pytest.raises(ItemError, match="item 25 is unusable") as caught:
        run(tmp_path, executor, Numbers(), Multiply(record, fault="item", at=25))
    assert caught.value.index == 25
    assert caught.value.__notes__[0].startswith("in stage multiply, shard ")


def test_an_error_at_opening_is_raised_as_it_is_and_nothing_is_made(
    executor: Executor, record: Path, tmp_path: Path
) -> None:
    stage = Multiply(record, fault="open")
    with pytest.raises(ItemError, match="item 7 cannot be opened") as caught:
        run(tmp_path, executor, Numbers(), stage)
    assert caught.value.index == 7
    assert stage.noted("made") == []


def test_whoever_counts_rows_may_stop_the_run(executor: Executor, record: Path, tmp_path: Path) -> None:
    class Stopping:
        def start(self, stage: str, *, total: int | None) -> None:
            self.stage = stage

        def advance(self, rows: int) -> None:
            if self.stage == "multiply" and rows:
                raise KeyboardInterrupt

        def finish(self, stage: str, *, rows: int, seconds: float, reused: bool) -> None: ...

    stage = Multiply(record, seconds=0.3)
    pipeline = Pipeline([Numbers(shards=12), stage])
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(StageStore(tmp_path / "stages"), executor, scratch=tmp_path / "scratch", progress=Stopping())
    assert len(stage.noted("made")) < 12


def test_a_curation_ends_in_the_same_bytes(executor: Executor, source: Path, reference: Path, tmp_path: Path) -> None:
    datapipe.curate(source, out=tmp_path / "run", executor=executor, **OPTIONS)
    assert kept_ids(tmp_path / "run") == kept_ids(reference)
    assert (tmp_path / "run" / "manifest.json").read_bytes() == (reference / "manifest.json").read_bytes()
    assert contents(tmp_path / "run") == contents(reference)


def test_a_curation_by_tokens_and_without_repeats_ends_in_the_same_bytes(
    executor: Executor, source: Path, tmp_path: Path
) -> None:
    options = OPTIONS | {"keep": None, "keep_tokens": 900, "tokenizer": "default", "dedup": "exact"}
    datapipe.curate(source, out=tmp_path / "run", executor=executor, **options)
    datapipe.curate(source, out=tmp_path / "other", workers=2, **options)
    assert contents(tmp_path / "run") == contents(tmp_path / "other")


def test_a_run_begun_by_one_executor_is_carried_on_by_another(
    executor: Executor, source: Path, reference: Path, tmp_path: Path
) -> None:
    datapipe.curate(source, out=tmp_path / "run", workers=2, **OPTIONS)
    done = sorted((tmp_path / "run" / "stages").glob("embed-*/*.parquet"))
    kept, *lost = done
    before = kept.stat().st_mtime_ns
    for path in [*lost, *(tmp_path / "run" / "stages").glob("embed-*/manifest*.json")]:
        path.unlink()
    datapipe.curate(source, out=tmp_path / "run", executor=executor, **OPTIONS)
    assert contents(tmp_path / "run") == contents(reference)
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "options",
    [{}, {"metric": "random"}, {"keep": None, "keep_tokens": 900, "tokenizer": "default", "metric": "random"}],
    ids=["prototypes", "random", "tokens"],
)
def test_every_stage_that_works_shard_by_shard_can_be_sent_to_another_process(
    source: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    curation = Curation(source, out=tmp_path / "run", **(OPTIONS | options))
    stages = [stage for stage in curation.wiring.stages(("0" * 64,)) if isinstance(stage, ShardStage)]
    assert stages
    for stage in stages:
        there = pickle.loads(pickle.dumps(stage))  # noqa: S301 - made on this line
        assert there.identity([]).key == stage.identity([]).key
