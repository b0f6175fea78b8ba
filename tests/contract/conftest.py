"""What the contract suites run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapipe.pipeline import Executor


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
