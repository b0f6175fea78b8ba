"""What the contract suites run on."""

from __future__ import annotations

import subprocess
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.runs import command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from datapipe.pipeline import Executor
    from datapipe.workers.protocol import Worker


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Each executor, with two places for shards."""
    if request.param == "local":
        from datapipe.executors.local import LocalExecutor

        yield LocalExecutor(2)
        return
    request.getfixturevalue("ray_here")
    from datapipe.executors.ray import RayExecutor

    with RayExecutor(2) as opened:
        yield opened


@pytest.fixture(scope="session")
def served(ray_here: None) -> Iterator[None]:
    """A deployment of the embedded model on the session's Ray."""
    from datapipe.workers.ray import deploy, remove

    deploy().close()
    yield
    remove()


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `datapipe serve` serves the embedded models, in a process of its own."""
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as said:
        server = subprocess.Popen(
            command("serve", "--port", 0, "--log-level", "warning"), stdout=subprocess.PIPE, stderr=said, text=True
        )
        assert server.stdout is not None
        with server.stdout as lines:
            listening = lines.readline()
            assert listening.startswith("listening on http"), log.read_text()
            yield listening.split()[-1]
            server.terminate()
            assert server.wait(60) == 0, log.read_text()


@pytest.fixture(
    scope="session", params=["process", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("http", "ray"))]
)
def connect(request: pytest.FixtureRequest) -> Callable[[], Worker]:
    """Opens a worker; each kind of transport."""
    if request.param == "process":
        from datapipe.workers.worker import LocalWorker

        return LocalWorker
    if request.param == "http":
        from datapipe.workers.http.client import HttpWorker

        return partial(HttpWorker, request.getfixturevalue("url"))
    request.getfixturevalue("served")
    from datapipe.workers.ray import RayWorker

    return RayWorker.connect


@pytest.fixture(scope="session")
def worker(connect: Callable[[], Worker]) -> Iterator[Worker]:
    """A worker that the tests of a transport share."""
    opened = connect()
    yield opened
    opened.close()
