"""Where Ray comes from: the one that this process is connected to, one that it joins, or one that it starts."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from datapipe.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

__all__ = ["Cluster", "check_room", "room", "serve_api"]

OBJECT_STORE_BYTES = 200 << 20
"""Memory of a Ray that is started here: what passes through it is small."""

KNOCK_SECONDS = 10.0
"""How long a cluster may take to accept a connection."""


class Cluster:
    """The Ray that this process works on: the one it is connected to, one that it joins, or one that it starts.

    A Ray that is started here has no dashboard and reports no usage. Ray's own access by token stays as it is set.

    Args:
        address: As `ray.init` takes it; None takes `RAY_ADDRESS`, and where that is not set, starts a Ray.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, address: str | None = None) -> None:
        if find_spec("ray") is None:
            raise MissingExtraError.of("ray", extra="ray", purpose="running on Ray")
        self._address, self._opened = address, False

    def open(self) -> None:
        """Start or join Ray, unless this process is connected to one; may be called again.

        Raises:
            ConfigError: There is no cluster at the address.
        """
        import ray

        if ray.is_initialized():
            return
        address = self._address or os.environ.get("RAY_ADDRESS")
        self._opened = True
        if address:
            try:
                _knock(address)
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            except (OSError, ValueError, RuntimeError) as error:
                hint = "one that asks for a token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
                raise ConfigError(
                    f"there is no Ray cluster at {address} that can be joined ({hint}): {error}"
                ) from error
            return
        with _no_usage_report():
            ray.init(
                address="local",
                num_cpus=len(os.sched_getaffinity(0)),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )

    def close(self) -> None:
        """Stop the Ray that was started here, or leave the one that was joined here; else do nothing."""
        if self._opened:
            import ray

            ray.shutdown()
            self._opened = False


def room(cpus: float, gpus: float) -> int:
    """How many processes that take so much the nodes of the joined Ray hold, if they hold nothing else."""
    import ray

    places = 0
    for node in ray.nodes():
        there = node["Resources"] if node["Alive"] else {}
        fits = [int(there.get(name, 0.0) / taken) for name, taken in (("CPU", cpus), ("GPU", gpus)) if taken]
        places += min(fits) if fits else 1
    return places


def check_room(what: str, cpus: float, gpus: float) -> None:
    """Raise `ConfigError` where no node is large enough for a process that takes so much; Ray would wait for ever."""
    import ray

    if room(cpus, gpus) < 1:
        there = ray.cluster_resources()
        raise ConfigError(
            f"{what} takes {cpus:g} CPUs and {gpus:g} GPUs of one node, but no node of the Ray cluster has them; all "
            f"have {there.get('CPU', 0.0):g} CPUs and {there.get('GPU', 0.0):g} GPUs"
        )


def serve_api() -> ModuleType:
    """Ray Serve, imported; what it would say of each call in this process stays unsaid, its warnings do not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its models say things that pydantic would have said anew
        from ray import serve

    logger = logging.getLogger("ray.serve")
    logger.setLevel(max(logger.level, logging.WARNING))
    return cast("ModuleType", serve)


def _knock(address: str) -> None:
    """Raise `OSError` where nobody listens at `host:port`; Ray would wait for ever."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


@contextmanager
def _no_usage_report() -> Iterator[None]:
    name = "RAY_USAGE_STATS_ENABLED"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
