"""The OpenAPI document: every status that a route can answer, made from the one map of errors.

ANSWERS, request and response models -> documented(...) on each route -> describe(app, ...) -> document
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from datapipe.errors import ConfigError
from datapipe.workers.http.errors import ANSWERS, ErrorBody
from datapipe.workers.http.gate import PUBLIC_PATHS
from datapipe.workers.http.limits import TIMEOUT_HEADER
from datapipe.workers.http.tasks import ARROW, PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi import FastAPI
    from pydantic import BaseModel

    from datapipe.workers.http.route import Route

__all__ = ["describe", "documented"]

_SCHEMAS = "#/components/schemas/"
_TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds that the client waits; the server's own limit stays.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_MODEL = {
    "name": "model",
    "in": "query",
    "required": False,
    "description": "A served model; left out or `default`: the first for the task.",
    "schema": {"type": "string"},
}
_TASK_PARAMETERS = [
    _MODEL,
    {
        "name": "priority",
        "in": "query",
        "required": False,
        "description": "Whose batches go first; `bulk` results have the bits of a worker in process.",
        "schema": {"type": "string", "enum": list(PRIORITIES), "default": "online"},
    },
    {
        "name": "deadline",
        "in": "query",
        "required": False,
        "description": "Seconds after which nothing more of the request begins; left out: none.",
        "schema": {"type": "number", "minimum": 0},
    },
]
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}
_CHALLENGE = {"WWW-Authenticate": {"description": "The scheme: Bearer.", "schema": {"type": "string"}}}
_HEADERS = {401: _CHALLENGE, 429: _RETRY_AFTER}


def documented(model: type[BaseModel] | None, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses of a route: its success, and the errors of those statuses.

    Args:
        model: Body of the success; None is an Arrow stream.
        statuses: Those of `ANSWERS` that the route can give.
    """
    success: dict[str, Any] = {"description": "The answer."}
    if model is None:
        success["content"] = {ARROW: {"schema": {"type": "string", "format": "binary"}}}
    else:
        success["model"] = model
    found: dict[int | str, dict[str, Any]] = {200: success}
    for status in statuses:
        meanings = dict.fromkeys(answer.meaning for answer in ANSWERS.values() if answer.status == status)
        found[status] = {"model": ErrorBody, "description": " ".join(meanings)}
        if status in _HEADERS:
            found[status]["headers"] = _HEADERS[status]
    return found


def describe(app: FastAPI, routes: Iterable[Route], *, needs_key: bool) -> dict[str, Any]:
    """The document of an application.

    Raises:
        ConfigError: Two routes have request models of one name that differ.
    """
    document = get_openapi(
        title=app.title,
        version=version("secateur"),
        description="Embeddings, reranking, and any other task of the served models.",
        routes=app.routes,
    )
    schemas = document["components"]["schemas"]
    for route in routes:
        name = _add_schema(schemas, route.request_model)
        post = document["paths"][route.path]["post"]
        post["requestBody"] = _body("application/json", {"$ref": _SCHEMAS + name})
        post["parameters"] = [*post.get("parameters", []), _TIMEOUT]
    task = document["paths"]["/v1/tasks/{task}"]
    task["post"]["requestBody"] = _body(ARROW, {"type": "string", "format": "binary"})
    task["post"]["parameters"] += _TASK_PARAMETERS
    task["get"]["parameters"] += [_MODEL]
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, methods in document["paths"].items():
            if path not in PUBLIC_PATHS:
                for operation in methods.values():
                    operation["security"] = [{"key": []}]
    return document


def _body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {media_type: {"schema": schema}}}


def _add_schema(schemas: dict[str, Any], model: type[BaseModel]) -> str:
    """Put a model and those inside it under names of their own; returns the model's."""
    name = model.__name__
    schema = model.model_json_schema(ref_template=f"{_SCHEMAS}{name}.{{model}}")
    for inner, content in schema.pop("$defs", {}).items():
        schemas[f"{name}.{inner}"] = content
    if schemas.setdefault(name, schema) != schema:
        raise ConfigError(f"two routes have a request model called {name}; call one of them something else")
    return name
