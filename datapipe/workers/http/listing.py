"""`GET /v1/models`: what is served, in the shape of OpenAI's API."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from datapipe.workers.http.errors import ModelNotServedError
from datapipe.workers.http.openapi import documented
from datapipe.workers.http.respond import json_answer

if TYPE_CHECKING:
    from datapipe.workers.http.models import Offer
    from datapipe.workers.spec import ModelSpec

__all__ = ["add_model_routes"]


class Model(BaseModel):
    """A model that requests may name."""

    id: str
    object: Literal["model"]
    created: int = Field(description="When the server was started, in seconds since 1970.")
    owned_by: str
    task: str = Field(description="What opens it.")
    aliases: list[str] = Field(description="Other names for it.")


class ModelList(BaseModel):
    """The models served."""

    object: Literal["list"]
    data: list[Model]


def add_model_routes(app: FastAPI, offer: Offer) -> None:
    """Add the list and its single entries."""
    started = int(time.time())

    def told(spec: ModelSpec) -> dict[str, Any]:
        return {
            "id": spec.name,
            "object": "model",
            "created": started,
            "owned_by": "datapipe",
            "task": spec.task,
            "aliases": offer.aliases(spec),
        }

    async def several() -> Response:
        return json_answer({"object": "list", "data": [told(spec) for spec in offer.specs.values()]})

    async def one(model: str) -> Response:
        for spec in offer.specs.values():
            if model == spec.name or model in offer.aliases(spec):
                return json_answer(told(spec))
        raise ModelNotServedError(f"this model is not served here; served are {', '.join(offer.specs)}", param="model")

    app.add_api_route(
        "/v1/models",
        several,
        summary="The models served.",
        response_class=Response,
        responses=documented(ModelList, 401, 431),
        operation_id="list_models",
    )
    app.add_api_route(
        "/v1/models/{model:path}",
        one,
        summary="One of the models served.",
        response_class=Response,
        responses=documented(Model, 401, 404, 431),
        operation_id="get_model",
    )
