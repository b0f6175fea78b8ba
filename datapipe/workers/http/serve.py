"""`datapipe serve`: a worker, the application over it, and uvicorn in this process until a signal ends it.

    settings -> keys, exposure checked -> models loaded -> listening -> SIGTERM -> running requests end -> worker closed

Raises `ConfigError` for settings that cannot be served, `ModelError` for a model that cannot be loaded, and
`MissingExtraError` where the web packages are not installed.
"""

from __future__ import annotations

import logging
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from datapipe.errors import ConfigError, MissingExtraError
from datapipe.settings import ServeSettings, Settings
from datapipe.workers.http.auth import Keys, check_exposure, is_loopback
from datapipe.workers.http.models import embedded_models, parse_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

    from datapipe.workers.spec import ModelSpec

__all__ = ["Server", "read_settings"]

_log = logging.getLogger(__name__)


def read_settings(given: Mapping[str, Any]) -> ServeSettings:
    """The environment's settings, with those given on the command line before them.

    Raises:
        ConfigError: A value is unknown or out of range; names it, and shows no value.
    """
    try:
        return ServeSettings.model_validate({**Settings().serve.model_dump(), **given})
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        told = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)
        raise ConfigError(f"settings that cannot be used: {told}") from None


class Server:
    """One server of this process.

    Args:
        settings: What to serve, where, and how much.

    Raises:
        ConfigError: Others could reach it without a key, a model is named wrongly, or a key file holds none.
        MissingExtraError: FastAPI or uvicorn is not installed.
    """

    def __init__(self, settings: ServeSettings) -> None:
        for package in ("fastapi", "uvicorn", "uvloop", "httptools", "orjson", "prometheus_client"):
            _require(package)
        key = Settings().api_key
        self._settings = settings
        self._keys = Keys.of(key.get_secret_value() if key else None, settings.api_key_file)
        check_exposure(settings, self._keys)
        self.models: list[ModelSpec] = [parse_model(text) for text in settings.model] or embedded_models()

    @property
    def effective(self) -> dict[str, Any]:
        """The settings in effect, the key masked."""
        from datapipe.workers.device import resolve_devices

        return {
            **self._settings.model_dump(),
            "model": ", ".join(f"{spec.name} ({spec.task}, {spec.source})" for spec in self.models),
            "device": ", ".join(map(str, resolve_devices(self._device))),
            "api_key": "********" if self._keys else "none: everybody who reaches this address may use it",
        }

    @property
    def _device(self) -> str:
        return self._settings.device or Settings().device

    def run(self, *, listening: Callable[[str], None]) -> None:
        """Serve until SIGTERM or SIGINT; then finish what runs, and return.

        Args:
            listening: Called with the URL once requests are taken.

        Raises:
            ModelError: A model cannot be loaded.
            ConfigError: The address cannot be listened on.
        """
        from datapipe.workers.device import resolve_devices
        from datapipe.workers.http.metrics import Metrics
        from datapipe.workers.worker import LocalWorker

        settings, metrics = self._settings, Metrics()
        on_cpu = resolve_devices(self._device)[0].type == "cpu"
        with (
            _signals(_leave),
            _listener(settings.host, settings.port) as (listener, url),
            LocalWorker(
                self.models,
                device=self._device,
                threads=Settings().threads if on_cpu else None,
                memory_bytes=settings.memory_bytes,
                queue_items=settings.queue_items,
                stuck_seconds=settings.stuck_seconds,
                observer=metrics,
            ) as worker,
        ):
            for spec in self.models:
                worker.load(spec.name, task=spec.task)
            if not self._keys and not is_loopback(settings.host):
                _log.warning("everybody who reaches %s may use this server: no key is set", url)
            self._serve(worker, metrics, listener, lambda: listening(url))
            if not worker.drain(settings.drain_seconds):
                _log.warning("some calls did not end within %g seconds", settings.drain_seconds)

    def _serve(self, worker: Any, metrics: Any, listener: socket.socket, listening: Callable[[], None]) -> None:
        import uvicorn

        from datapipe.workers.http.app import create_app
        from datapipe.workers.http.connection import bounded

        settings = self._settings
        app = create_app(worker, models=self.models, settings=settings, keys=self._keys, metrics=metrics)
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=bounded(max_header_bytes=settings.max_header_bytes, head_seconds=settings.body_seconds),
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        )

        class Uvicorn(uvicorn.Server):
            """Says when it listens, and ends without raising the signal that ended it once more."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                listening()

            @contextmanager
            def capture_signals(self) -> Iterator[None]:
                with _signals(self.handle_exit):
                    yield

        Uvicorn(config).run([listener])


@contextmanager
def _listener(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A bound socket and its URL, so that a port that is taken is found before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            listener.bind((host.strip("[]"), port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from error
        shown = f"[{host.strip('[]')}]" if ":" in host else host
        yield listener, f"http://{shown}:{listener.getsockname()[1]}"
    finally:
        listener.close()


@contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGTERM and SIGINT, for a while."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _leave(_: int, __: FrameType | None) -> None:
    raise SystemExit(0)


def _require(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtraError.of(package, extra="serve", purpose="datapipe serve")
