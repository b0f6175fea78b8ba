"""Routes for whoever watches the server: `/health`, `/ready`, `/metrics`, and the two pages `/` and `/docs`.

None needs a key: the pages hold nothing of the server's own and work without a network.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI, Response

from datapipe.workers.http.health import HealthBody, Probe, ReadyBody, Warmth
from datapipe.workers.http.metrics import CONTENT_TYPE
from datapipe.workers.http.openapi import documented
from datapipe.workers.http.respond import JSON, json_answer

if TYPE_CHECKING:
    from datapipe.workers.http.service import Service

__all__ = ["add_pages", "add_watch_routes"]

_PAGES = {"/": "page.html", "/docs": "docs.html"}
_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def add_watch_routes(app: FastAPI, service: Service, warmth: Warmth) -> None:
    """Add the routes for orchestrators and Prometheus."""
    probe = Probe(service)

    async def health() -> Response:
        status, body = await probe.health()
        return json_answer(body, status)

    async def ready() -> Response:
        status, body = warmth.answer()
        return json_answer(body, status)

    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)

    not_so = "It is not so; the body says why."
    app.add_api_route(
        "/health",
        health,
        summary="Whether the worker can answer: it is asked, at most once a second.",
        response_class=Response,
        responses=documented(HealthBody, 431) | {503: {"model": HealthBody, "description": not_so}},
        operation_id="health",
    )
    app.add_api_route(
        "/ready",
        ready,
        summary="Whether the models are loaded.",
        response_class=Response,
        responses=documented(ReadyBody, 431) | {503: {"model": ReadyBody, "description": not_so}},
        operation_id="ready",
    )
    app.add_api_route(
        "/metrics",
        metrics,
        summary="Counts and durations for Prometheus.",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}},
        operation_id="metrics",
    )


def add_pages(app: FastAPI, document: dict[str, Any]) -> None:
    """Add the OpenAPI document and the pages that show it and try the routes."""
    written = orjson.dumps(document)

    async def openapi() -> Response:
        return Response(written, media_type=JSON)

    app.add_api_route("/openapi.json", openapi, include_in_schema=False)
    for path, name in _PAGES.items():
        app.add_api_route(path, _shows(name), include_in_schema=False)


def _shows(name: str) -> Any:
    content = files("datapipe.workers.http").joinpath(name).read_bytes()

    async def show() -> Response:
        return Response(content, headers=_PAGE_HEADERS, media_type="text/html; charset=utf-8")

    return show
