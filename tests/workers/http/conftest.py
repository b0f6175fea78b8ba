"""One real worker with the embedded model, and applications over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from datapipe.settings import ServeSettings
from datapipe.workers.http.app import create_app
from datapipe.workers.http.auth import Keys
from datapipe.workers.http.metrics import Metrics
from datapipe.workers.spec import DEFAULT_EMBEDDER, ModelSpec
from datapipe.workers.worker import LocalWorker
from tests.workers.http.servers import Command, listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

    from datapipe.workers.http.route import Route

KEY = "a-key-of-the-tests"
PRECISE = ModelSpec("all-MiniLM-L6-v2", DEFAULT_EMBEDDER.source, dtype="float32")
"""The embedded model as it computes on any machine."""


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATAPIPE_API_KEY", raising=False)


@pytest.fixture(scope="session")
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="session")
def worker(metrics: Metrics) -> Iterator[LocalWorker]:
    with LocalWorker([PRECISE], device="cpu", observer=metrics) as opened:
        opened.load(PRECISE.name)
        yield opened


@pytest.fixture
def app_of(worker: LocalWorker, metrics: Metrics) -> Callable[..., FastAPI]:
    """Make an application over the worker; keyword arguments are settings."""

    def make(
        *,
        keys: tuple[str, ...] = (),
        routes: tuple[Route, ...] = (),
        models: tuple[ModelSpec, ...] = (PRECISE,),
        over: Any = None,
        **settings: Any,
    ) -> FastAPI:
        return create_app(
            over or worker,
            models=models,
            settings=ServeSettings(**settings),
            keys=Keys(keys),
            routes=routes,
            metrics=metrics,
        )

    return make


@pytest.fixture
def app(app_of: Callable[..., FastAPI]) -> FastAPI:
    return app_of()


@pytest.fixture(scope="module")
def url(worker: LocalWorker) -> Iterator[str]:
    """A server on a port of this process."""
    with listening(create_app(worker, models=[PRECISE])) as where:
        yield where


@pytest.fixture(scope="session")
def command() -> Iterator[str]:
    """`datapipe serve` in a process of its own, with a key; its URL."""
    with Command("--model", f"{PRECISE.name}={PRECISE.source},dtype=float32", DATAPIPE_API_KEY=KEY) as where:
        yield where
