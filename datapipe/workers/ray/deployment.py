"""Workers as a Ray Serve deployment.

Serve starts replicas, spreads calls over them, replaces the unhealthy and follows the load. Batches are made by the
worker inside a replica, so nothing of Serve's own batching is used. A call that finds the router's queue full is
refused at once with `OverloadedError`.

A replica takes `num_gpus` of a GPU. Ray counts shares and does not enforce them: two replicas of 0.5 sit on one GPU,
each with its own copy of the models and its own CUDA context, and take turns. One replica with a whole GPU makes better
use of it, since its batches grow with the load; a fraction is for a GPU shared with something else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datapipe.errors import ConfigError, WorkerError
from datapipe.workers.ray.client import RayWorker
from datapipe.workers.ray.cluster import Cluster, check_room, serve_api
from datapipe.workers.ray.replica import Replica, WorkerOptions
from datapipe.workers.spec import DEFAULT_EMBEDDER, ModelSpec, spec_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["deploy", "remove"]

QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""Of what Serve writes to Ray's log files."""


def deploy(  # noqa: PLR0913 - each is a knob of its own
    models: Sequence[ModelSpec | str] = (DEFAULT_EMBEDDER,),
    *,
    name: str = "datapipe",
    device: str = "auto",
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    min_replicas: int = 1,
    max_replicas: int = 1,
    max_ongoing_requests: int = 64,
    max_queued_requests: int = 256,
    token_budget: int | None = None,
    queue_items: int = 4096,
    address: str | None = None,
) -> RayWorker:
    """Serve models from replicas on Ray, and return a worker that speaks to them; replaces a deployment of that name.

    The deployment outlives its callers; `remove` ends it. On a Ray that was started here it ends with the worker.

    Args:
        models: What is served, and nothing else: specs, or sources (`default`, `embedded:NAME`, a folder, a hub id). Of
            tasks a replica knows those of installed packages.
        name: What `RayWorker.connect` finds it by.
        device: Where replicas compute; `auto` is CUDA for replicas that have a GPU.
        num_cpus: CPUs of a replica; on the CPU also the batches that it computes side by side.
        num_gpus: GPUs of a replica; a fraction shares one.
        min_replicas: Replicas at least.
        max_replicas: Replicas at most; more of them as calls wait, each aiming at half of `max_ongoing_requests`.
        max_ongoing_requests: Calls in a replica at a time; a bulk call counts once a window of its items.
        max_queued_requests: Calls that wait in a caller's process for a replica; one more is refused.
        token_budget: Tokens of a batch.
        queue_items: Online items in a replica at a time.
        address: As `Cluster` takes it.

    Raises:
        ConfigError: A number is out of range, there is no Ray at the address, or no node is large enough.
        WorkerError: No replica starts: no such model, no such device; says which.
        MissingExtraError: Ray is not installed.
    """
    _check(min_replicas, max_replicas, max_ongoing_requests, max_queued_requests)
    options = WorkerOptions(
        models=tuple(spec_of(model) if isinstance(model, str) else model for model in models),
        device=device,
        threads=None if num_gpus else max(1, int(num_cpus)),
        token_budget=token_budget,
        queue_items=queue_items,
    )
    scaling = {
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "target_ongoing_requests": max(1, max_ongoing_requests // 2),
    }
    settings = {
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
        "max_ongoing_requests": max_ongoing_requests,
        "max_queued_requests": max_queued_requests,
        **({"autoscaling_config": scaling} if min_replicas < max_replicas else {"num_replicas": min_replicas}),
    }
    cluster = Cluster(address)
    cluster.open()
    try:
        check_room("a replica", num_cpus, num_gpus)
        handle = _start(name, options, settings)
    except BaseException:
        cluster.close()
        raise
    return RayWorker(handle, name=name, cluster=cluster)


def remove(name: str = "datapipe", *, address: str | None = None) -> None:
    """End a deployment and its replicas; one that is not there is left at that."""
    cluster = Cluster(address)
    cluster.open()
    try:
        serve = serve_api()
        if name in serve.status().applications:
            serve.delete(name)
    finally:
        cluster.close()


def _check(min_replicas: int, max_replicas: int, max_ongoing_requests: int, max_queued_requests: int) -> None:
    if not 1 <= min_replicas <= max_replicas:
        raise ConfigError(f"min_replicas must be from 1 to max_replicas. Got {min_replicas} and {max_replicas}")
    if max_ongoing_requests < 1 or max_queued_requests < 1:
        message = f"Got {max_ongoing_requests} and {max_queued_requests}"
        raise ConfigError(f"max_ongoing_requests and max_queued_requests must be at least 1. {message}")


def _start(name: str, options: WorkerOptions, settings: Mapping[str, Any]) -> Any:
    """Deploy, wait until a replica runs, and return its handle."""
    serve = serve_api()
    fresh = name not in serve.status().applications
    deployment = serve.deployment(Replica).options(name=name, logging_config=QUIET, **settings)
    try:
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        return serve.run(deployment.bind(options), name=name, route_prefix=None)
    except BaseException as error:
        why = _last_words(name, end=fresh)
        if isinstance(error, RuntimeError):
            raise WorkerError(f"deployment {name} does not start: {why or error}") from error
        raise


def _last_words(name: str, *, end: bool) -> str:
    """What the replicas of a deployment that did not start said last; it is taken away if this call made it."""
    serve = serve_api()
    failed = serve.status().applications.get(name)
    if failed is None:
        return ""
    said = [line for each in failed.deployments.values() for line in each.message.splitlines() if line.strip()]
    if end:
        serve.delete(name)
    return said[-1].strip() if said else str(failed.message)
