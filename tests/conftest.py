"""What all tests share: the shipped data, and an environment without a network."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

DATA = Path(__file__).resolve().parent.parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the shipped data sets."""
    return DATA


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """A Ray on this machine, with room for a deployment beside two actors, and a key of its own."""
    from datapipe.workers.ray.cluster import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        cluster = Cluster()
        with pytest.MonkeyPatch.context() as roomy:
            roomy.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
            cluster.open()
        yield
        cluster.close()
