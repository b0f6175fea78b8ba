"""The application: routes put together with the gate, the error map and the documentation.

    create_app(worker, settings=..., models=...) -> FastAPI

The worker stays the caller's: it is neither opened nor closed here. Routes of other packages come from the entry point
group `datapipe.routes` and from `routes`; all are treated as our own.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from datapipe.errors import ConfigError, DeadlineError
from datapipe.settings import ServeSettings
from datapipe.workers.http.auth import Keys
from datapipe.workers.http.embeddings import EMBEDDINGS
from datapipe.workers.http.errors import MethodRefusedError, NotServedError
from datapipe.workers.http.gate import Gate
from datapipe.workers.http.health import Warmth
from datapipe.workers.http.limits import check_media_type, check_size, decode_json, read_timeout, validate
from datapipe.workers.http.listing import add_model_routes
from datapipe.workers.http.metrics import Metrics
from datapipe.workers.http.models import Offer
from datapipe.workers.http.openapi import describe, documented
from datapipe.workers.http.rerank import RERANKS
from datapipe.workers.http.respond import JSON, json_answer
from datapipe.workers.http.route import installed_routes
from datapipe.workers.http.service import Call, ServableWorker, Service
from datapipe.workers.http.tasks import ARROW, ModelStatement, run_task, state_model
from datapipe.workers.http.watch import add_pages, add_watch_routes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from datapipe.workers.http.route import Route
    from datapipe.workers.spec import ModelSpec

__all__ = ["create_app"]

_STATUSES = (400, 401, 404, 408, 413, 415, 422, 429, 431, 500, 503, 504)


def create_app(
    worker: ServableWorker,
    *,
    models: Iterable[ModelSpec],
    settings: ServeSettings | None = None,
    keys: Keys | None = None,
    routes: Iterable[Route] = (),
    metrics: Metrics | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        worker: Where models run. It must know the models by their names.
        models: What requests may name, in the order of `/v1/models`.
        settings: Limits and times; None takes the defaults.
        keys: Bearer keys; None lets everybody in.
        routes: Further routes, beside those of installed packages.
        metrics: Where the worker's observer counts; None counts requests only.

    Raises:
        ConfigError: There is no model, or two models or routes share a name.
    """
    settings, keys, metrics = settings or ServeSettings(), keys or Keys(), metrics or Metrics()
    service = Service(worker=worker, offer=Offer(models), settings=settings, metrics=metrics)
    every = [EMBEDDINGS, *RERANKS, *installed_routes(), *routes]
    warmth = Warmth()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(warmth.warm(service))
        yield
        warming.cancel()
        await asyncio.wait({warming})

    app = FastAPI(title="datapipe serve", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Gate, settings=settings, keys=keys, metrics=metrics)
    app.add_exception_handler(HTTPException, _refuse)
    for route in every:
        _add_json_route(app, service, route)
    _add_task_routes(app, service)
    add_model_routes(app, service.offer)
    add_watch_routes(app, service, warmth)
    add_pages(app, describe(app, every, needs_key=bool(keys)))
    return app


def _add_json_route(app: FastAPI, service: Service, route: Route) -> None:
    async def answer(request: Request) -> Response:
        check_media_type(request.headers, wanted=JSON)
        seconds = read_timeout(request.headers, service.settings)
        value = decode_json(request.state.body)
        check_size(value, service.settings, known=route.request_model.model_fields)
        asked = validate(value, route.request_model)
        call = Call(service, request.state.request_id, time.monotonic() + seconds)
        return json_answer(await _within(seconds, lambda: route.handler(asked, call)))

    if any(getattr(known, "path", None) == route.path for known in app.routes):
        raise ConfigError(f"two routes have the path {route.path}")
    app.add_api_route(
        route.path,
        answer,
        methods=["POST"],
        summary=route.headline,
        response_class=Response,
        responses=documented(route.response_model, *_STATUSES),
        operation_id=f"post{route.path}".replace("/", "_"),
    )


async def _within(seconds: float, work: Callable[[], Awaitable[Any]]) -> Any:
    """What is not done in time is cancelled, and its items leave the queue. Raises `DeadlineError`."""
    bound = asyncio.timeout(seconds)
    try:
        async with bound:
            return await work()
    except TimeoutError as error:
        if not bound.expired():
            raise
        raise DeadlineError(f"the request was not done within {seconds:g} seconds") from error


def _add_task_routes(app: FastAPI, service: Service) -> None:
    async def run(request: Request, task: str) -> Response:
        check_media_type(request.headers, wanted=ARROW)
        call = Call(service, request.state.request_id, None)
        return Response(await run_task(call, task, request.query_params, request.state.body), media_type=ARROW)

    async def state(request: Request, task: str) -> Response:
        return json_answer(await state_model(service, task, request.query_params.get("model")))

    app.add_api_route(
        "/v1/tasks/{task}",
        run,
        methods=["POST"],
        summary="Run any task: Arrow items in, Arrow results out.",
        response_class=Response,
        responses=documented(None, *_STATUSES),
        operation_id="run_task",
    )
    app.add_api_route(
        "/v1/tasks/{task}",
        state,
        summary="Digest, width and bits of a model.",
        response_class=Response,
        responses=documented(ModelStatement, 401, 404, 422, 431, 500, 503),
        operation_id="state_model",
    )


async def _refuse(_: Request, error: Exception) -> NoReturn:
    """What the router itself refuses becomes an error of ours, which the gate answers."""
    headers = (error.headers or {}) if isinstance(error, HTTPException) else {}
    if "Allow" in headers:
        raise MethodRefusedError("this route takes another method; /docs lists them", allowed=headers["Allow"])
    raise NotServedError("there is no such route here; /docs lists those there are")
