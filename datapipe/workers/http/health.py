"""`/health`: can the worker answer? `/ready`: are the models loaded?

    worker.health() says stuck, dead or closed ─────────────────────────────► 503 with the reason
    one small item goes through the worker: answered, or too busy for it ───► 200; failed ► 503

The answer is kept for a second and asked for once at a time, so probes cost next to nothing. A worker that is busy but
progressing is healthy: restarting it would lose what it does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from datapipe.errors import DatapipeError, OverloadedError, WorkerStoppedError
from datapipe.workers.http.models import probe_item
from datapipe.workers.protocol import Health, Priority
from datapipe.workers.tasks.lookup import find_task

if TYPE_CHECKING:
    from datapipe.workers.http.service import Service

__all__ = ["HealthBody", "Probe", "ReadyBody", "Warmth"]

_log = logging.getLogger(__name__)

KEPT_SECONDS = 1.0


class HealthBody(BaseModel):
    """Whether the worker can answer."""

    status: Literal["ok", "failing", "stuck", "dead", "closed"]
    detail: str = Field(description="What happened and what to do; empty where all is well.")
    queued: int = Field(description="Items that wait for a device.")
    idle_seconds: float = Field(description="Seconds since a batch last ended; 0 while nothing waits or runs.")


class ReadyBody(BaseModel):
    """Whether the models are loaded."""

    ready: bool
    detail: str


class Probe:
    """Asks the worker how it is, at most once a second.

    Args:
        service: Whose worker.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asked = 0.0
        self._answer: dict[str, Any] | None = None
        self._asking = asyncio.Lock()

    async def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of `/health`."""
        async with self._asking:
            if self._answer is None or time.monotonic() - self._asked >= KEPT_SECONDS:
                self._answer, self._asked = await self._ask(), time.monotonic()
            return (200 if self._answer["status"] == "ok" else 503), self._answer

    async def _ask(self) -> dict[str, Any]:
        found = await asyncio.to_thread(self._service.worker.health)
        if found.state != "ok":
            return _body(found)
        try:
            busy = await self._try()
        except DatapipeError as error:
            fault = f"{type(error).__name__}: {error}"
        else:
            return _body(found) | {"detail": busy}
        found = await asyncio.to_thread(self._service.worker.health)  # the fault may have shown more
        return _body(found) if found.state != "ok" else _body(found) | {"status": "failing", "detail": fault}

    async def _try(self) -> str:
        """Send one small item through the worker; says so where it is too busy. Raises what the worker raises."""
        seconds = self._service.settings.health_seconds
        for spec in self._service.offer.specs.values():
            item = probe_item(find_task(spec.task))
            if item is None:
                continue
            try:
                async with asyncio.timeout(seconds):
                    await self._service.worker.arun(
                        spec.task, [item], model=spec.name, priority=Priority.ONLINE, deadline=seconds
                    )
            except OverloadedError:
                return "busy: the queue is full"
            except TimeoutError:
                return await self._late(seconds)
            return ""
        return ""

    async def _late(self, seconds: float) -> str:
        """A worker too busy for a small item is healthy as long as it does not count as stuck."""
        found = await asyncio.to_thread(self._service.worker.health)
        if found.state != "ok":
            raise WorkerStoppedError(found.detail)
        return f"busy: a small item was not answered within {seconds:g} s"


@dataclass
class Warmth:
    """Whether every model is loaded and has answered once.

    Attributes:
        ready: It is so.
        detail: What is still done, or what failed.
    """

    ready: bool = False
    detail: str = "the models are being loaded"

    async def warm(self, service: Service) -> None:
        """Load every model and try it; what fails is kept for whoever asks."""
        try:
            await asyncio.to_thread(service.warm)
        except DatapipeError as error:
            self.detail = f"a model cannot be used ({type(error).__name__}); the server's log says why"
            _log.error("a model cannot be used: %s: %s", type(error).__name__, error)
            return
        self.ready, self.detail = True, ""

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Status and body of `/ready`."""
        return (200 if self.ready else 503), asdict(self)


def _body(found: Health) -> dict[str, Any]:
    return {
        "status": found.state,
        "detail": found.detail,
        "queued": found.queued,
        "idle_seconds": round(found.idle_seconds, 3),
    }
