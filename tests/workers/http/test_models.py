"""Which models are served, by which names, and which one a request means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from datapipe.errors import ConfigError
from datapipe.workers.http.errors import ModelNotServedError
from datapipe.workers.http.models import Offer, parse_model, probe_item
from datapipe.workers.spec import DEFAULT_EMBEDDER, ModelSpec
from datapipe.workers.tasks.classify import ClassifyItem
from datapipe.workers.tasks.embed import TextItem
from datapipe.workers.tasks.lookup import find_task
from tests.workers.http.conftest import PRECISE
from tests.workers.http.servers import client_of, error_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastapi import FastAPI

TEACHER = ModelSpec("teacher", "/models/teacher", task="classify")
OTHER = ModelSpec("owner/other", "owner/other")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("default", DEFAULT_EMBEDDER),
        ("mine=default", ModelSpec("mine", DEFAULT_EMBEDDER.source)),
        ("embedded:all-MiniLM-L6-v2", DEFAULT_EMBEDDER),
        ("owner/name", ModelSpec("owner/name", "owner/name")),
        ("small=owner/name,revision=main", ModelSpec("small", "owner/name", revision="main")),
        ("teacher=./t,task=classify,dtype=float32,max_length=64", None),
        ("a=./with=sign,and,commas", ModelSpec("a", "./with=sign,and,commas")),
        (f"a=b,digest={'0' * 64}", ModelSpec("a", "b", digest="0" * 64)),
    ],
)
def test_a_model_is_named_by_its_source(text: str, spec: ModelSpec | None) -> None:
    want = spec or ModelSpec("teacher", "./t", task="classify", dtype="float32", max_length=64)
    assert parse_model(text) == want


def test_a_folder_is_called_by_its_last_part(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert parse_model(f"{folder}/") == ModelSpec("my-model", f"{folder}/")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a model needs a name and a source"),
        ("a=b,max_length=long", "max_length of a model must be a number. Got 'long'"),
        ("a=b,dtype=int4", "the dtype of model a must be one of auto, float32"),
        ("a=b,digest=0", "the digest of model a must be 64 hex digits"),
    ],
)
def test_a_model_that_is_named_wrongly_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_model(text)


def test_a_request_means_the_model_it_names_or_the_first_that_can() -> None:
    offer = Offer([TEACHER, PRECISE, OTHER])
    assert offer.find("embed") is PRECISE
    assert offer.find("embed", "default") is PRECISE
    assert offer.find("rerank") is PRECISE
    assert offer.find("embed", "owner/other") is OTHER
    assert offer.find("classify") is TEACHER
    with pytest.raises(ConfigError, match="model teacher is for the task 'classify', not for 'embed'"):
        offer.find("embed", "teacher")
    with pytest.raises(ModelNotServedError, match="not served here; served are teacher, all-MiniLM-L6-v2, owner/other"):
        offer.find("embed", "embedded:all-MiniLM-L6-v2")
    with pytest.raises(ModelNotServedError, match="no model for the task 'causal' is served here"):
        offer.find("causal")


def test_a_model_that_is_called_default_is_the_default() -> None:
    named = ModelSpec("default", "/some/folder")
    offer = Offer([PRECISE, named])
    assert offer.find("embed", "default") is named
    assert offer.aliases(PRECISE) == []


@pytest.mark.parametrize("specs", [[], [PRECISE, ModelSpec(PRECISE.name, "other")]])
def test_a_server_needs_models_with_names_of_their_own(specs: list[ModelSpec]) -> None:
    with pytest.raises(ConfigError, match="a server needs at least one model, and one name for each"):
        Offer(specs)


def test_a_task_that_does_not_exist_is_found_before_a_model_is_loaded() -> None:
    with pytest.raises(ConfigError, match="there is no task 'dance'"):
        Offer([ModelSpec("a", "b", task="dance")])


def test_the_probe_is_made_for_tasks_that_need_nothing_but_text() -> None:
    assert isinstance(probe_item(find_task("embed")), TextItem)
    assert probe_item(find_task("rerank")) is not None
    assert probe_item(find_task("classify")) == ClassifyItem("ready?")
    assert probe_item(find_task("embed_image")) is None


async def test_models_are_listed_in_the_shape_of_openai(app_of: Callable[..., FastAPI]) -> None:
    async with client_of(app_of(models=(PRECISE, OTHER))) as client:
        found = (await client.get("/v1/models")).json()
        one = (await client.get("/v1/models/owner/other")).json()
        alias = (await client.get("/v1/models/default")).json()
        lost = await client.get("/v1/models/nothing")
    assert found["object"] == "list"
    assert [model["id"] for model in found["data"]] == [PRECISE.name, "owner/other"]
    assert found["data"][0]["aliases"] == ["default"]
    assert found["data"][0]["created"] > 0
    assert one == found["data"][1]
    assert alias == found["data"][0]
    assert (lost.status_code, error_of(lost)["code"]) == (404, "model_not_found")
