"""Workers on Ray Serve where things go wrong: full queues, killed replicas, deployments that do not start.

What every worker has in common is in tests/contract; no test here needs a GPU.
"""

from __future__ import annotations

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from datapipe.errors import ConfigError, MissingExtraError, OverloadedError, WorkerError, WorkerStoppedError
from datapipe.workers.ray import RayWorker, deploy, remove
from datapipe.workers.spec import DEFAULT_EMBEDDER, ModelSpec
from datapipe.workers.tasks.embed import TextItem
from datapipe.workers.worker import LocalWorker

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

MODEL = DEFAULT_EMBEDDER.name
LONG = [TextItem("a text of some length that keeps a processor busy for a while " * 12)] * 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_replicas": 0}, "min_replicas must be from 1 to max_replicas. Got 0 and 1"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas must be from 1 to max_replicas. Got 3 and 2"),
        ({"max_queued_requests": 0}, "max_ongoing_requests and max_queued_requests must be at least 1. Got 64 and 0"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_anything_starts(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        deploy(**options)


def test_without_ray_the_error_holds_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datapipe.workers.ray.cluster.find_spec", lambda _: None)
    for call in (deploy, RayWorker.connect, remove):
        with pytest.raises(MissingExtraError, match=re.escape("pip install 'secateur[ray]'")):
            call()


@pytest.fixture
def narrow(ray_here: None) -> Iterator[RayWorker]:
    """A deployment that takes one call at a time and lets one wait."""
    with deploy(["default"], name="narrow", max_ongoing_requests=1, max_queued_requests=1) as worker:
        yield worker
    remove("narrow")


@pytest.mark.slow
def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(narrow: RayWorker) -> None:
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(narrow.run, "embed", LONG, model="default") for _ in range(6)]
    refused = [error for call in calls if (error := call.exception()) is not None]
    assert 1 <= len(refused) <= 5
    for error in refused:
        assert isinstance(error, OverloadedError)
        assert str(error).startswith("the queue of deployment narrow is full")
        assert error.retry_after > 0


def replicas() -> list[psutil.Process]:
    """The processes of the replicas of `narrow` that this test session has started."""
    own = psutil.Process().children(recursive=True)
    return [process for process in own if "ServeReplica:narrow" in " ".join(process.cmdline())]


@pytest.mark.slow
def test_a_killed_replica_fails_its_calls_and_is_replaced(narrow: RayWorker) -> None:
    assert narrow.health().state == "ok"
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(narrow.run, "embed", LONG * 4, model="default")
        time.sleep(1)
        [replica] = replicas()
        os.kill(replica.pid, signal.SIGKILL)
        with pytest.raises(WorkerStoppedError, match="a replica of deployment narrow is gone before the call was done"):
            call.result(60)
    until = time.monotonic() + 120
    while True:
        try:
            assert len(narrow.run("embed", LONG[:2], model="default", deadline=60)) == 2
            break
        except WorkerStoppedError:
            assert time.monotonic() < until
            time.sleep(0.5)
    assert [process.pid for process in replicas()] != [replica.pid]
    assert narrow.health().state == "ok"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_two_replicas_give_the_bits_of_one() -> None:
    items = [TextItem(f"number {i}") for i in range(300)]
    with deploy(name="two", min_replicas=2, max_replicas=2, num_cpus=0.5) as worker, LocalWorker() as local:
        parts = [items[start : start + 50] for start in range(0, 300, 50)]
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda part: worker.run("embed", part, model=MODEL), parts))
        for part, results in zip(parts, found, strict=True):
            expected = local.run("embed", part, model=MODEL)
            assert [one.vector.tobytes() for one in results] == [one.vector.tobytes() for one in expected]
    remove("two")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_deployment_ends_where_it_is_removed_and_its_workers_know() -> None:
    worker = deploy(name="short", num_cpus=0.5)
    assert worker.models == [MODEL]
    remove("short")
    remove("short")
    assert worker.health().state == "dead"
    assert "there is no deployment short any more" in worker.health().detail
    with pytest.raises(WorkerStoppedError, match="deployment short"):
        worker.run("embed", LONG[:1], model=MODEL, deadline=30)
    worker.close()
    with pytest.raises(WorkerStoppedError, match="the worker is closed"):
        assert worker.models
    with pytest.raises(ConfigError, match="there is no deployment 'short' on this Ray"):
        RayWorker.connect("short")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_deployment_that_cannot_load_its_model_does_not_start_and_says_why() -> None:
    lost = ModelSpec(name="lost", source="/nowhere/at/all")
    with pytest.raises(WorkerError, match=r"deployment broken does not start: .*/nowhere/at/all"):
        deploy([lost], name="broken", num_cpus=0.5)
    with pytest.raises(ConfigError, match="there is no deployment 'broken'"):
        RayWorker.connect("broken")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_replica_that_no_node_can_hold_is_refused_with_what_there_is() -> None:
    message = (
        "a replica takes 1 CPUs and 0.5 GPUs of one node, but no node of the Ray cluster has them; all have 4 CPUs"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        deploy(name="huge", num_gpus=0.5)
