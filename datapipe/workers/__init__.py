"""Where models run: one contract, `Worker`, in process, over HTTP and on Ray Serve.

    worker.run("embed", [TextItem("…")], model="default", priority=Priority.ONLINE) -> [Embedding(vector, …)]

The names below are loaded on first use. `register` makes a task of yours known to every worker of this process; an
entry point in the group `datapipe.tasks` does so for all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datapipe.workers.http.client import HttpWorker
    from datapipe.workers.observe import Observer
    from datapipe.workers.protocol import Health, Priority, Task, Worker
    from datapipe.workers.ray.client import RayWorker
    from datapipe.workers.spec import ModelSpec
    from datapipe.workers.tasks.causal import CausalItem
    from datapipe.workers.tasks.classify import ClassifyItem
    from datapipe.workers.tasks.embed import TextItem
    from datapipe.workers.tasks.generate import GenerateItem
    from datapipe.workers.tasks.image import ImageItem
    from datapipe.workers.tasks.lookup import register
    from datapipe.workers.tasks.rerank import RerankItem
    from datapipe.workers.worker import LocalWorker

_HOME = {
    "CausalItem": "tasks.causal",
    "ClassifyItem": "tasks.classify",
    "GenerateItem": "tasks.generate",
    "Health": "protocol",
    "HttpWorker": "http.client",
    "ImageItem": "tasks.image",
    "LocalWorker": "worker",
    "ModelSpec": "spec",
    "Observer": "observe",
    "Priority": "protocol",
    "RayWorker": "ray.client",
    "RerankItem": "tasks.rerank",
    "Task": "protocol",
    "TextItem": "tasks.embed",
    "Worker": "protocol",
    "register": "tasks.lookup",
}

__all__ = [
    "CausalItem",
    "ClassifyItem",
    "GenerateItem",
    "Health",
    "HttpWorker",
    "ImageItem",
    "LocalWorker",
    "ModelSpec",
    "Observer",
    "Priority",
    "RayWorker",
    "RerankItem",
    "Task",
    "TextItem",
    "Worker",
    "register",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'datapipe.workers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"datapipe.workers.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
