"""What the flows share: tasks' retry settings, the GPU limit, artifacts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.concurrency.sync import concurrency

if TYPE_CHECKING:
    from pathlib import Path

TASK_OPTIONS: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": 10,
    "persist_result": True,
    "result_serializer": "json",
}
"""Retries are cheap because stages resume; results are small JSON, never pickles."""


def gpu_slot(limit: str | None) -> AbstractContextManager[None]:
    """Hold one slot of the global concurrency limit `limit` while the block runs; None holds nothing.

    Strict, so that a limit that nobody has made (`prefect gcl create gpu --limit 1`) is an error, not a missing limit.
    """
    return nullcontext() if limit is None else concurrency(limit, occupy=1, strict=True)


def show_run(key: str, *, table: str, report: Path) -> None:
    """Attach a run's table and a link to its page to the flow run.

    The link goes by the run folder: what stands behind its `current` is replaced by the next run.
    """
    create_markdown_artifact(key=f"{key}-summary", markdown=table, description="Rows by reason and by stratum.")
    create_link_artifact(
        key=f"{key}-report", link=report.absolute().as_uri(), link_text="report.html", description="The run's page."
    )
