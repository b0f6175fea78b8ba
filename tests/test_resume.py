"""Killed at any moment and started again, a run ends in the same bytes, and finished shards are not made again.

What a fake would miss: half-written files, caches of the operating system, the order of renames.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import polars as pl
import pytest

from tests.runs import ROOT, command, contents, datapipe, kept_ids

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    path = tmp_path_factory.mktemp("source") / "banking.parquet"
    pl.read_parquet(data / "banking77.parquet").head(600).write_parquet(path)
    return path


def options(source: Path, out: Path) -> list[object]:
    columns = ["--text-column", "text", "--label-column", "label_name"]
    return ["curate", source, "--out", out, "--keep", 0.4, *columns, "--shard-rows", 32, "--dedup", "exact"]


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finished = datapipe(*options(source, out))
    assert finished.returncode == 0, finished.stderr
    return out


def sidecars(run: Path) -> set[Path]:
    return set((run / "stages").glob("*/*.json")) if (run / "stages").exists() else set()


def stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def test_a_run_killed_a_dozen_times_ends_in_the_same_bytes(source: Path, undisturbed: Path, tmp_path: Path) -> None:
    run, chance = tmp_path / "run", random.Random(7)
    total = len(sidecars(undisturbed))
    made: dict[Path, tuple[int, int]] = {}
    killed = 0
    for i in range(KILLS):
        process = subprocess.Popen(
            command(*options(source, run)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        # From before the first shard to after the last: the count of finished shards is the clock.
        while process.poll() is None and len(sidecars(run)) < total * i // (KILLS - 1):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        for sidecar, before in made.items():
            assert stamp(sidecar) == before, f"{sidecar} was made again"
        made = {sidecar: stamp(sidecar) for sidecar in sidecars(run)}
    assert killed >= KILLS - 1
    finished = datapipe(*options(source, run))
    assert finished.returncode == 0, finished.stderr
    assert contents(run) == contents(undisturbed)
    for sidecar, before in made.items():
        assert stamp(sidecar) == before, f"{sidecar} was made again"
    assert datapipe("verify", run).returncode == 0


def test_an_interrupt_stops_cleanly_and_says_how_to_go_on(source: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(*options(source, run)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    while process.poll() is None and len(sidecars(run)) < len(sidecars(undisturbed)) // 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping after the batch in hand" in errors
    assert "run the same command again to go on where it stopped" in errors
    assert "Traceback" not in errors
    assert not list(run.rglob("*.partial"))
    assert not (run / ".scratch").exists()
    assert datapipe(*options(source, run)).returncode == 0
    assert contents(run) == contents(undisturbed)


def test_a_second_interrupt_does_not_wait_and_costs_no_finished_shard(
    source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with subprocess.Popen(
        command(*options(source, run)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stderr is not None
        while process.poll() is None and len(sidecars(run)) < len(sidecars(undisturbed)) // 2:
            time.sleep(0.005)
        made = {sidecar: stamp(sidecar) for sidecar in sidecars(run)}
        process.send_signal(signal.SIGINT)
        while "stopping after the batch in hand" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
    assert datapipe(*options(source, run)).returncode == 0
    assert contents(run) == contents(undisturbed)
    for sidecar, before in made.items():
        assert stamp(sidecar) == before


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def cramped() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    process = subprocess.run(
        command(*options(source, run)), capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=cramped
    )
    assert process.returncode == 1
    assert "error: cannot write" in process.stderr
    assert "run the same command again" in process.stderr
    assert "Traceback" not in process.stderr
    assert not list(run.rglob("*.partial"))
    assert datapipe(*options(source, run)).returncode == 0
    assert contents(run) == contents(undisturbed)


def test_a_second_writer_is_refused_while_the_first_runs(source: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = subprocess.Popen(
        command(*options(source, run)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    try:
        while first.poll() is None and not sidecars(run):
            time.sleep(0.005)
        os.kill(first.pid, signal.SIGSTOP)
        second = datapipe(*options(source, run))
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 1
    assert f"is being written by another run (process {first.pid})" in second.stderr.replace("\n", " ")
    assert first.wait(timeout=240) == 0
    assert contents(run) == contents(undisturbed)


def test_another_budget_in_the_same_folder_reuses_what_it_shares(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert datapipe(*options(source, run)).returncode == 0
    before = {path: stamp(path) for path in sidecars(run)}
    first = kept_ids(run)
    again = [0.2 if value == 0.4 else value for value in options(source, run)]
    assert datapipe(*again).returncode == 0
    assert len(kept_ids(run)) < len(first)
    for path, stamped in before.items():
        assert stamp(path) == stamped
    embedded = {path.parent for path in sidecars(run) if path.parent.name.startswith("embed-")}
    assert len(embedded) == 1
