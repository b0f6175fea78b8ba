"""A route of another package: declared without a web framework, treated as our own."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field

from datapipe.errors import ConfigError
from datapipe.workers.http.models import embedded_models
from datapipe.workers.http.route import Route, RouteContext, installed_routes
from datapipe.workers.spec import DEFAULT_EMBEDDER, ModelSpec
from datapipe.workers.tasks.embed import TextItem
from tests.workers.http.conftest import KEY
from tests.workers.http.servers import client_of, error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI


class NearestRequest(BaseModel):
    """A text, and texts of which the nearest is looked for."""

    model_config = ConfigDict(extra="forbid")

    text: str
    among: Annotated[list[str], Field(min_length=1)]
    model: str | None = None


class NearestResponse(BaseModel):
    """Place of the nearest text, and its cosine."""

    index: int
    cosine: float


async def nearest(request: NearestRequest, context: RouteContext) -> NearestResponse:
    """The nearest of some texts.

    This line is not in the headline.
    """
    model = context.model_for("embed", request.model)
    texts = [request.text, *request.among]
    first, *others = await context.run("embed", [TextItem(text) for text in texts], model=model)
    cosines = [float(np.dot(first.vector, other.vector)) for other in others]
    best = int(np.argmax(cosines))
    return NearestResponse(index=best, cosine=cosines[best])


NEAREST = Route("/v1/nearest", NearestRequest, NearestResponse, nearest)
BODY = {"text": "my card was declined", "among": ["what a fine day", "the card did not work", "pruning roses"]}


async def test_its_handler_reaches_the_worker(app_of: Callable[..., FastAPI]) -> None:
    async with client_of(app_of(routes=(NEAREST,))) as client:
        answer = (await client.post("/v1/nearest", json=BODY)).json()
    assert answer["index"] == 1
    assert 0.3 < answer["cosine"] < 1


async def test_key_limits_errors_and_metrics_apply_to_it(app_of: Callable[..., FastAPI]) -> None:
    app = app_of(routes=(NEAREST,), keys=(KEY,), max_texts=3, max_characters=50, max_body_bytes=500, max_tokens=40)
    async with client_of(app) as client:
        assert (await client.post("/v1/nearest", json=BODY)).status_code == 401
        client.headers["authorization"] = f"Bearer {KEY}"
        assert (await client.post("/v1/nearest", json=BODY)).status_code == 200
        cases: list[tuple[dict[str, Any], int, str]] = [
            (
                {"among": ["a"] * 4},
                413,
                "among holds 4 texts; at most 3 are taken in one request: send them in several",
            ),
            ({"text": "a" * 51}, 413, "text holds a text of 51 characters; at most 50 are taken"),
            ({"text": "a" * 501}, 413, "the body is larger than 500 bytes; send less in one request"),
            ({"among": ["a b c d e f g h i j"] * 3}, 413, "the request has 42 tokens for model all-MiniLM-L6-v2"),
            ({"among": []}, 422, "among: List should have at least 1 item after validation, not 0"),
            ({"among": ["a", 5]}, 422, "among[1]: Input should be a valid string"),
            ({"more": 1}, 422, "the body has a field that is not known here; known are text, among, model"),
            ({"model": "none"}, 404, "this model is not served here; served are all-MiniLM-L6-v2"),
        ]
        for change, status, message in cases:
            response = await client.post("/v1/nearest", json=BODY | change)
            assert response.status_code == status, response.text
            assert error_of(response)["message"].startswith(message)
        late = await client.post("/v1/nearest", json=BODY, headers={"x-request-timeout": "0.000001"})
        assert late.status_code == 504
        text = (await client.get("/metrics")).text
    assert 'datapipe_http_requests_total{route="/v1/nearest",status="413"}' in text


async def test_it_is_documented_like_our_own(app_of: Callable[..., FastAPI]) -> None:
    async with client_of(app_of(routes=(NEAREST,))) as client:
        document = (await client.get("/openapi.json")).json()
    ours, its = (document["paths"][path]["post"] for path in ("/v1/embeddings", "/v1/nearest"))
    assert its["summary"] == "The nearest of some texts."
    assert its["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/NearestRequest")
    assert its["responses"].keys() == ours["responses"].keys()
    assert "NearestResponse" in document["components"]["schemas"]


@pytest.mark.parametrize("path", ["v1/x", "/v1/{x}", "/v1/a b", "/v1?x"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="the path of a route must begin with /"):
        Route(path, NearestRequest, NearestResponse, nearest)


def test_two_routes_of_one_path_are_refused(app_of: Callable[..., FastAPI]) -> None:
    with pytest.raises(ConfigError, match="two routes have the path /v1/embeddings"):
        app_of(routes=(Route("/v1/embeddings", NearestRequest, NearestResponse, nearest),))


def test_two_request_models_of_one_name_are_refused(app_of: Callable[..., FastAPI]) -> None:
    class NearestRequest(BaseModel):
        other: int

    route = Route("/v1/other", NearestRequest, NearestResponse, nearest)
    with pytest.raises(ConfigError, match="two routes have a request model called NearestRequest"):
        app_of(routes=(NEAREST, route))


def points(monkeypatch: pytest.MonkeyPatch, group: str, **values: str) -> None:
    """Entry points as if a package had been installed."""
    found = EntryPoints([EntryPoint(name, value, group) for name, value in values.items()])
    for module in ("route", "models"):
        monkeypatch.setattr(
            f"datapipe.workers.http.{module}.entry_points",
            lambda group, found=found: found.select(group=group),
        )


SEVERAL: Any = [NEAREST]
SPEC = ModelSpec("other", "/other")


async def test_installed_packages_bring_routes(app_of: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, "datapipe.routes", b=f"{__name__}:NEAREST")
    async with client_of(app_of()) as client:
        assert (await client.post("/v1/nearest", json=BODY)).json()["index"] == 1
    points(monkeypatch, "datapipe.routes", a=f"{__name__}:SEVERAL")
    assert installed_routes() == [NEAREST]
    points(monkeypatch, "datapipe.routes", a=f"{__name__}:SPEC")
    with pytest.raises(ConfigError, match=r"entry point 'a' of datapipe.routes must be a Route. Got ModelSpec"):
        installed_routes()


def test_installed_packages_bring_models(monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, "datapipe.models", a=f"{__name__}:SPEC")
    assert embedded_models() == [DEFAULT_EMBEDDER, SPEC]
    points(monkeypatch, "datapipe.models", a=f"{__name__}:NEAREST")
    with pytest.raises(ConfigError, match=r"entry point 'a' of datapipe.models must be a ModelSpec. Got Route"):
        embedded_models()


def test_a_route_is_declared_without_a_web_framework() -> None:
    code = (
        "import sys\nfor name in ('fastapi', 'starlette', 'uvicorn', 'httpx', 'orjson', 'prometheus_client'):\n"
        "    sys.modules[name] = None\nfrom datapipe.workers.http.route import Route"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
