"""The Ray executor against what happens to clusters: dead actors, killed drivers, Ctrl-C, a cluster of somebody else.

What a fake would miss: that Ray starts crashing actors again for ever, what its processes do when their driver dies.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import polars as pl
import psutil
import pytest

import datapipe
from datapipe.curation import Curation
from datapipe.errors import ConfigError, MissingExtraError, StageError
from datapipe.executors.blame import DEATHS
from datapipe.executors.ray import RayExecutor
from datapipe.pipeline import Pipeline
from datapipe.storage.stage import StageStore
from tests.contract.stages import Multiply, Numbers
from tests.runs import ROOT, command, contents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

COLUMNS = ["--text-column", "text", "--label-column", "label_name"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    path = tmp_path_factory.mktemp("source") / "banking.parquet"
    pl.read_parquet(data / "banking77.parquet").head(200).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "run"
    datapipe.curate(source, out=out, shard_rows=25, text_column="text", label_column="label_name")
    return out


def curating(source: Path, out: Path) -> list[str]:
    return command("curate", source, "--out", out, "--shard-rows", 25, *COLUMNS, "--executor", "ray")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RayExecutor(0), ConfigError, "num_actors must be at least 1, got 0"),
        (lambda: RayExecutor(num_cpus=0), ConfigError, "num_cpus must be above 0, got 0"),
        (lambda: RayExecutor(num_gpus=-0.5), ConfigError, "num_gpus must be above 0, got -0.5"),
        (
            lambda: Curation("x", out="y", executor=cast("Any", "dask")),
            ConfigError,
            "executor must be one of local, ray; got 'dask'",
        ),
        (
            lambda: Curation("x", out="y", executor="ray", device="cuda:1"),
            ConfigError,
            "device cuda:1 names a GPU of this machine, but Ray chooses the GPU: use device cuda",
        ),
        (
            lambda: Curation("x", out="y", executor=RayExecutor(), workers=2),
            ConfigError,
            "workers is for an executor given by name",
        ),
    ],
    ids=["actors", "cpus", "gpus", "name", "device", "workers"],
)
def test_wrong_options_are_refused_before_anything_starts(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_without_ray_the_error_holds_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datapipe.workers.ray.cluster.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'secateur[ray]'")):
        Curation("x", out="y", executor="ray")


def test_nothing_is_started_where_nothing_is_to_be_made(tmp_path: Path) -> None:
    stage = Multiply(tmp_path)
    out = StageStore(tmp_path / "stages").open(stage.identity([]))
    with RayExecutor(address="127.0.0.1:1") as executor:
        executor.map(stage, {}, [], out, lambda _: None)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    (tmp_path / "record").mkdir()
    return tmp_path / "record"


def run(folder: Path, *stages: Any) -> None:
    with RayExecutor(2) as executor:
        Pipeline(list(stages)).run(StageStore(folder / "stages"), executor, scratch=folder / "scratch")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_shard_whose_actor_died_is_made_by_another(record: Path, tmp_path: Path) -> None:
    stage = Multiply(record, fault="exit once", at=35)
    run(tmp_path, Numbers(), stage)
    assert len(stage.noted("broke")) == 2
    assert len(list((tmp_path / "stages").glob("multiply-*/*.parquet"))) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_shard_that_kills_every_actor_ends_the_stage_and_the_others_are_made(record: Path, tmp_path: Path) -> None:
    stage = Multiply(record, fault="exit", at=35)
    with pytest.raises(StageError, match=r"stage multiply: 3 processes died of shard \S+, 1 shards are left"):
        run(tmp_path, Numbers(), stage)
    assert DEATHS <= len(stage.noted("broke")) <= 2 * DEATHS
    assert len(list((tmp_path / "stages").glob("multiply-*/*.parquet"))) == 5


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_stage_that_cannot_be_pickled_is_refused_by_name(record: Path, tmp_path: Path) -> None:
    stage = Multiply(record, fault=cast("Any", threading.Lock()))
    with pytest.raises(StageError, match="stage multiply cannot be sent to another process: cannot pickle"):
        run(tmp_path, Numbers(), stage)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_an_actor_that_fits_nowhere_is_refused_with_what_there_is(record: Path, tmp_path: Path) -> None:
    with (
        RayExecutor(num_cpus=1000) as executor,
        pytest.raises(ConfigError, match="an actor of stage multiply takes 1000 CPUs and 0 GPUs of one node, but"),
    ):
        pipeline = Pipeline([Numbers(), Multiply(record)])
        pipeline.run(StageStore(tmp_path / "stages"), executor, scratch=tmp_path / "scratch")


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def embedded(run: Path) -> list[Path]:
    return sorted((run / "stages").glob("embed-*/*.parquet.json"))


def started(process: subprocess.Popen[str], run: Path, *, shards: int) -> list[psutil.Process]:
    """Wait until so many shards are embedded; returns the processes that the command has started."""
    until = time.monotonic() + 200
    while len(embedded(run)) < shards:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    found: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_and_then_interrupted_leaves_no_process_and_goes_on_to_the_same_bytes(
    source: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    said = ""
    for shards, send, code in ((1, signal.SIGKILL, -signal.SIGKILL), (2, signal.SIGINT, 130)):
        process = subprocess.Popen(
            curating(source, tmp_path / "run"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        children = started(process, tmp_path / "run", shards=shards)
        assert len(children) > 4
        process.send_signal(send)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        # Ray's agents look for their dead node for more than a minute before they go too.
        assert gone(children, 30 if send == signal.SIGINT else 180)
        for sidecar in embedded(tmp_path / "run")[1:]:
            sidecar.unlink()
    assert said.rstrip().endswith("interrupted; run the same command again to go on where it stopped")
    datapipe.curate(source, out=tmp_path / "run", shard_rows=25, text_column="text", label_column="label_name")
    assert contents(tmp_path / "run") == contents(reference)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray of somebody else on this machine, which asks for a token, and `RAY_ADDRESS` set to it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["--node-ip-address=127.0.0.1", f"--port={address.split(':')[1]}", "--num-cpus=2"]
    log = tmp_path / "head.log"
    # Paths of sockets are short: Ray's folder cannot lie in the test's.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder, log.open("w") as said:
        head = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")),
                *("start", "--head", "--block", *options, f"--temp-dir={folder}"),
                *("--include-dashboard=false", "--object-store-memory=200000000"),
            ],
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            while "Ray runtime started" not in log.read_text():
                assert head.poll() is None, log.read_text()
                time.sleep(0.1)
            children = psutil.Process(head.pid).children(recursive=True)
            monkeypatch.setenv("RAY_ADDRESS", address)
            yield
            assert head.poll() is None
        finally:
            head.terminate()
            head.wait(60)
        assert gone(children, 60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_runs_on_the_cluster_at_ray_address_and_leaves_it_running(
    cluster: None, source: Path, reference: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*curating(source, Path("run")), "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "run") == contents(reference)
    assert "ray" not in done.stderr.lower()


@pytest.mark.slow
def test_an_address_without_a_cluster_is_an_error_that_names_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = subprocess.run(
        [*curating(source, tmp_path / "run"), "--metric", "random"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 1
    assert "error: there is no Ray cluster at 127.0.0.1:1 that can be joined" in done.stderr
