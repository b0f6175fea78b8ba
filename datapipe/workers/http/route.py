"""What a route is, so that another package can bring one without importing a web framework.

    routes = Route("/v1/prune", PruneRequest, PruneResponse, prune)            # an entry point of the group below

The server decodes and checks the body, and applies the key, the limits, the error map, metrics and documentation that
its own routes have, which are declared in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pydantic import BaseModel

    from datapipe.workers.protocol import Item, Priority, Result

__all__ = ["ENTRY_POINT_GROUP", "Handler", "Route", "RouteContext", "installed_routes"]

ENTRY_POINT_GROUP = "datapipe.routes"


class RouteContext(Protocol):
    """What a handler has beside its request.

    Attributes:
        request_id: Names the request in the log.
    """

    request_id: str

    def model_for(self, task: str, name: str | None = None) -> str:
        """Name of a served model for a task; without a name, or with `default`, the first that can do it.

        Raises:
            ModelNotServedError: No such model is served.
            ConfigError: The model is not for the task.
        """

    async def run(
        self, task: str, items: Sequence[Item], *, model: str, priority: Priority | None = None
    ) -> list[Result]:
        """Results of the worker, within the request's deadline. Raises what `Worker.run` does.

        Args:
            task: Name of the task.
            items: Its items.
            model: A served model.
            priority: None puts it ahead of bulk work; `BULK` is for so much that others should not wait behind it.

        Raises:
            TooLargeError: The items have more tokens than one request may send through a model.
        """


Handler: TypeAlias = "Callable[[Any, Any], Awaitable[BaseModel | dict[str, Any]]]"
"""Takes the validated request and a `RouteContext`; gives the response, or a dict that orjson writes as one."""


@dataclass(frozen=True, eq=False)
class Route:
    """One `POST` route that takes and gives JSON.

    Attributes:
        path: Begins with `/`; served at this path.
        request_model: What the body must be; its docstring and fields are the documentation.
        response_model: What is answered.
        handler: Computes the answer.
        summary: One line for the documentation; None takes the handler's docstring.
    """

    path: str
    request_model: type[BaseModel]
    response_model: type[BaseModel]
    handler: Handler
    summary: str | None = None

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or any(sign in self.path for sign in "{} ?#"):
            raise ConfigError(f"the path of a route must begin with / and name no parameters. Got {self.path!r}")

    @property
    def headline(self) -> str:
        """The summary, or the first line of what the handler says of itself."""
        return self.summary or (self.handler.__doc__ or self.path).strip().partition("\n")[0]


def installed_routes() -> list[Route]:
    """Routes that other installed packages bring: each entry point is a `Route` or several.

    Raises:
        ConfigError: An entry point is neither.
    """
    found: list[Route] = []
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        brought = point.load()
        several = list(brought) if isinstance(brought, (list, tuple)) else [brought]
        if not all(isinstance(route, Route) for route in several):
            raise ConfigError(f"entry point {point.name!r} of {ENTRY_POINT_GROUP} must be a Route. Got {brought!r}")
        found.extend(several)
    return found
