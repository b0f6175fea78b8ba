"""The flow is the same run as the command, and what prefect.yaml says can be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import polars as pl
import pytest
import yaml  # type: ignore[import-untyped]
from prefect.client.orchestration import get_client
from prefect.exceptions import ParameterTypeError
from prefect.flows import load_flow_from_entrypoint

import datapipe
from datapipe.errors import ConfigError
from flows.curate import curate_flow
from flows.refresh_pruner import refresh_pruner
from provence import Calibration, Pruner
from tests.provence.conftest import write_pruner
from tests.provence.training.test_train_command import CONFIG, written
from tests.runs import ROOT, contents

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.deployments.runner import RunnerDeployment


@pytest.fixture
def source(tmp_path: Path, data: Path) -> str:
    pl.read_parquet(data / "banking77.parquet").head(200).write_parquet(tmp_path / "rows.parquet")
    return str(tmp_path / "rows.parquet")


def test_the_flow_writes_the_same_bytes_as_python_and_returns_counts(source: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"metric": "random", "strategy": "random", "text_column": "text"}
    counts = curate_flow(source, str(tmp_path / "flow"), keep=0.25, options=options)
    assert counts == {"kept": 50, "over_budget": 150}
    datapipe.curate(source, out=tmp_path / "python", keep=0.25, **options)
    assert contents(tmp_path / "flow") == contents(tmp_path / "python")
    with get_client(sync_client=True) as client:
        shown = {artifact["key"]: artifact["data"] for artifact in client.request("POST", "/artifacts/filter").json()}
    assert "over budget" in shown["curate-summary"]
    assert (tmp_path / "flow" / "report.html").as_uri() in shown["curate-report"]


def test_a_wrong_parameter_fails_the_flow_before_any_stage(source: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="flow parameters: unknown option 'kep'"):
        curate_flow(source, str(tmp_path / "run"), options={"kep": 0.2})
    assert not (tmp_path / "run").exists()


def test_an_unknown_executor_fails_the_flow_before_any_stage(source: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterTypeError, match="executor: Input should be 'local' or 'ray'"):
        curate_flow(source, str(tmp_path / "run"), executor="dask")  # type: ignore[call-overload]
    assert not (tmp_path / "run").exists()


def test_a_missing_concurrency_limit_is_an_error_and_not_no_limit(source: str, tmp_path: Path) -> None:
    options = {"metric": "random", "text_column": "text"}
    with pytest.raises(Exception, match="no-such-limit"):
        curate_flow(source, str(tmp_path / "run"), options=options, gpu_limit="no-such-limit")


def test_refreshing_a_pruner_calibrates_it_checks_the_promise_and_tells_both(tmp_path: Path, data: Path) -> None:
    out, questions = tmp_path / "pruner", str(data / "squad20_dev.parquet")
    model = str(write_pruner(tmp_path / "random-pruner"))
    found = refresh_pruner(str(out), model=model, sets=[questions], options={"limit": 30}, device="cpu")
    assert json.loads((out / "manifest.json").read_text()) == found
    made = Calibration.load(out / "calibration.json")
    assert (found["model"], found["digest"], found["questions"]) == (model, made.digest, made.questions)
    assert found["threshold"] == made.threshold_for(0.9)
    checked = found["checked"]["squad20_dev"]
    assert 0 <= checked["recall_low"] <= checked["recall"] <= checked["recall_high"] <= 1
    with get_client(sync_client=True) as client:
        shown = {artifact["key"]: artifact["data"] for artifact in client.request("POST", "/artifacts/filter").json()}
    assert f"| {checked['recall']:.3f} |" in shown["refresh-pruner"]


@pytest.mark.parametrize("given", [{}, {"config": "a.toml"}, {"data": "folder", "sets": ["a.parquet"]}])
def test_refreshing_with_nothing_to_do_is_refused_before_any_task(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give config with data to train, sets to calibrate on, or all three"):
        refresh_pruner(str(tmp_path / "out"), **given)
    with pytest.raises(ConfigError, match="unknown option 'recal'; there are split, check_split, recall, limit"):
        refresh_pruner(str(tmp_path / "out"), sets=["a.parquet"], options={"recal": 0.9})
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_refreshing_trains_first_where_a_config_says_so(tmp_path: Path, data: Path) -> None:
    config = written(tmp_path, CONFIG)
    sets = [str(data / "squad20_dev.parquet")]
    found = refresh_pruner(
        str(tmp_path / "out"), config=str(config), data=str(data), sets=sets, options={"limit": 30}, device="cpu"
    )
    assert found["model"] == str(tmp_path / "out" / "model")
    assert "student" in found["held_out"]
    with Pruner.load(found["model"], device="cpu") as pruner:
        pruner.prune("Who wrote?", ["Ada wrote. It rained."], target_recall=0.8)


def test_every_deployment_names_a_flow_that_loads_and_takes_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    deployments = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    assert deployments
    for deployment in deployments:
        flow: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"])
        assert set(deployment["parameters"]) <= set(flow.parameters.properties)
        for schedule in deployment["schedules"]:
            assert cast("RunnerDeployment", flow.to_deployment(name="check", cron=schedule["cron"])).schedules


def test_results_are_json_and_never_pickles() -> None:
    assert curate_flow.result_serializer == "json"
