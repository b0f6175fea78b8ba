"""What the tests of the faces share: a model's name, real passages, and a server over a worker."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from datapipe.workers.http.app import create_app
from datapipe.workers.http.route import installed_routes
from provence.http import ROUTES
from tests.conftest import DATA
from tests.workers.http.servers import listening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

    from datapipe.workers import LocalWorker, ModelSpec

SHORT = 420
"""Characters; two or three sentences."""

QUESTION = "When did the 1973 oil crisis begin?"


@lru_cache
def passages(count: int) -> list[dict[str, Any]]:
    """So many short passages of SQuAD, each another one, with a question and a title."""
    table = pq.read_table(DATA / "squad20_dev.parquet", columns=["question", "title", "context"])
    rows = [row for row in table.slice(0, 1500).to_pylist() if len(row["context"]) < SHORT]
    return list({row["context"]: row for row in rows}.values())[:count]


def app_over(worker: LocalWorker, spec: ModelSpec, **options: Any) -> FastAPI:
    """The server's application with our route, whether or not the installed package brings it."""
    known = {route.path for route in installed_routes()}
    ours = [route for route in ROUTES if route.path not in known]
    return create_app(worker, models=[spec], routes=ours, **options)


@contextmanager
def served(worker: LocalWorker, spec: ModelSpec) -> Iterator[str]:
    """The same on a port of this process. Yields its URL."""
    with listening(app_over(worker, spec)) as url:
        yield url
