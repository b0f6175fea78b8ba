"""The command line: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import polars as pl
import pytest

from tests.runs import contents, datapipe, kept_ids

if TYPE_CHECKING:
    from pathlib import Path

RANDOM = ["--metric", "random", "--strategy", "random", "--text-column", "text"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    path = tmp_path_factory.mktemp("cli") / "banking.parquet"
    pl.read_parquet(data / "banking77.parquet").head(300).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    done = datapipe("curate", source, "--out", out, "--keep", 0.5, *RANDOM)
    assert done.returncode == 0, done.stderr
    assert "150" in done.stdout
    assert "kept.parquet" in done.stdout
    assert "ingest" in done.stderr
    return out


def test_a_finished_run_verifies_and_a_changed_byte_is_found(run: Path, tmp_path: Path) -> None:
    assert datapipe("verify", run).returncode == 0
    whole = json.loads(datapipe("verify", run, "--json").stdout)
    assert whole["ok"]
    assert whole["files"] > 10
    shard = next(run.glob("stages/score-*/*.parquet"))
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:-9] + b"x" + content[-8:])
        broken = datapipe("verify", run)
        assert broken.returncode == 1
        assert f"{shard.name} has other contents than its manifest says" in broken.stderr.replace("\n", "")
    finally:
        shard.write_bytes(content)


def test_json_output_is_one_object_and_nothing_else(source: Path, tmp_path: Path) -> None:
    done = datapipe("curate", source, "--out", tmp_path / "run", "--keep-rows", 10, "--json", *RANDOM)
    result = json.loads(done.stdout)
    assert result["counts"] == {"kept": 10, "over_budget": 290}
    assert {output["name"] for output in result["outputs"]} >= {"kept.parquet", "selection.parquet", "report.html"}


def test_python_and_the_command_line_write_the_same_bytes(source: Path, run: Path, tmp_path: Path) -> None:
    import datapipe as package

    package.curate(source, out=tmp_path / "run", keep=0.5, metric="random", strategy="random", text_column="text")
    assert contents(tmp_path / "run") == contents(run)


def test_a_config_file_says_the_same_and_the_command_line_wins(source: Path, run: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f'source = "{source}"\nout = "{tmp_path / "run"}"\nkeep = 0.1\n'
        'metric = "random"\nstrategy = "random"\ntext-column = "text"\n'
    )
    assert datapipe("curate", "--config", config, "--keep", 0.5).returncode == 0
    assert kept_ids(tmp_path / "run") == kept_ids(run)


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    done = datapipe("curate", source, "--out", tmp_path / "run", "--dry-run", "--json", *RANDOM)
    estimate = json.loads(done.stdout)
    assert estimate["rows"] == 300
    assert estimate["rows_kept"] == 90
    assert estimate["disk_bytes"] > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curate", "nowhere.parquet", "--out", "OUT"], "nowhere.parquet"),
        (["curate", "SOURCE", "--out", "OUT", "--keep", "2"], "keep must be a fraction above 0 and at most 1, got 2.0"),
        (["curate", "SOURCE", "--out", "OUT", "--keep", "0.1", "--keep-rows", "3"], "exclude each other"),
        (["curate", "SOURCE"], "out is missing: give it on the command line"),
        (["verify", "OUT"], "holds no finished run"),
        (["report", "OUT"], "holds no finished run"),
    ],
)
def test_a_mistake_is_one_line_on_standard_error(
    source: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"SOURCE": str(source), "OUT": str(tmp_path / "run")}
    done = datapipe(*(places.get(argument, argument) for argument in arguments))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_a_report_is_shown_again_from_the_run_folder(run: Path) -> None:
    done = datapipe("report", run)
    assert done.returncode == 0
    assert "150" in done.stdout
    assert json.loads(datapipe("report", run, "--json").stdout)["counts"] == {"kept": 150, "over_budget": 150}


def test_settings_of_the_environment_are_shown() -> None:
    assert json.loads(datapipe("config", "--json").stdout)["device"] == "auto"
