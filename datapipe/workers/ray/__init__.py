"""Workers on Ray Serve: `deploy` starts one, `RayWorker.connect` finds it, `remove` ends it."""

from datapipe.workers.ray.client import RayWorker
from datapipe.workers.ray.deployment import deploy, remove

__all__ = ["RayWorker", "deploy", "remove"]
