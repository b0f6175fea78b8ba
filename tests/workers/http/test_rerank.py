"""`/v1/rerank`, `/v2/rerank` and `/rerank`: the shapes of Cohere and Jina over the scores of the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest

from datapipe.workers.http.models import Offer
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.embed import EmbedTask
from datapipe.workers.tasks.lookup import register
from datapipe.workers.tasks.rerank import RerankItem, RerankTask
from tests.workers.http.conftest import PRECISE
from tests.workers.http.servers import client_of, error_of

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

    from datapipe.workers.protocol import Task
    from datapipe.workers.worker import LocalWorker

QUERY = "Which card was declined abroad?"
DOCUMENTS = ["How do I change my PIN?", "My card was refused in a shop in Lisbon.", "I wait for my new card."]


async def post(app: FastAPI, path: str = "/v1/rerank", **body: Any) -> httpx.Response:
    async with client_of(app) as client:
        return await client.post(path, json={"query": QUERY, "documents": DOCUMENTS} | body)


@pytest.mark.parametrize(("path", "version"), [("/v1/rerank", "1"), ("/v2/rerank", "2"), ("/rerank", "1")])
async def test_documents_come_best_first_with_the_scores_of_the_worker(
    app: FastAPI, worker: LocalWorker, path: str, version: str
) -> None:
    answer = (await post(app, path)).json()
    scores = worker.run("rerank", [RerankItem(QUERY, text) for text in DOCUMENTS], model=PRECISE.name)
    want = sorted(range(3), key=lambda index: -scores[index].score)
    assert [result["index"] for result in answer["results"]] == want
    assert want[0] == 1
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(
        [scores[index].score for index in want], abs=1e-6
    )
    assert answer["usage"]["total_tokens"] == sum(score.tokens for score in scores)
    assert answer["meta"]["api_version"]["version"] == version
    assert answer["id"]
    assert "document" not in answer["results"][0]


async def test_top_n_and_documents_are_given_when_asked_for(app: FastAPI) -> None:
    documents = [DOCUMENTS[0], {"text": DOCUMENTS[1]}]
    answer = (await post(app, documents=documents, top_n=1, return_documents=True)).json()
    (best,) = answer["results"]
    assert best["document"] == {"text": DOCUMENTS[1]}
    assert len((await post(app, top_n=99)).json()["results"]) == 3


async def test_equal_scores_keep_the_order_of_the_documents(app: FastAPI) -> None:
    answer = (await post(app, documents=["same", "same", "same"])).json()
    assert [result["index"] for result in answer["results"]] == [0, 1, 2]


async def test_documents_that_were_cut_are_named(app: FastAPI) -> None:
    assert (await post(app, documents=["short", "long " * 400])).json()["truncated"] == [1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"documents": []}, "documents: must be a list of at least one document"),
        ({"documents": "one"}, "documents: must be a list of at least one document"),
        ({"documents": ["a", 5]}, 'documents: document 1 must be a text, or an object {"text": "…"}'),
        ({"documents": [{"title": "a"}]}, 'documents: document 0 must be a text, or an object {"text": "…"}'),
        (
            {"documents": [{"text": "a", "title": "b"}]},
            'documents: document 0 must be a text, or an object {"text": "…"}',
        ),
        ({"query": None}, "query: Input should be a valid string"),
        ({"top_n": 0}, "top_n: Input should be greater than or equal to 1"),
        (
            {"max_tokens_per_doc": 9},
            (
                "the body has a field that is not known here; known are query, documents, model, top_n, "
                "return_documents, priority"
            ),
        ),
    ],
)
async def test_what_is_wrong_is_said(app: FastAPI, body: dict[str, Any], message: str) -> None:
    response = await post(app, **body)
    assert response.status_code == 422
    assert error_of(response)["message"] == message


def test_a_model_that_reranks_by_itself_goes_before_an_embedder() -> None:
    class CrossEncoder(RerankTask):
        name: ClassVar[str] = "cross"
        derives_from: ClassVar[str] = ""

    class Blind(EmbedTask):
        name: ClassVar[str] = "blind"

    class Double(EmbedTask):
        name: ClassVar[str] = "double"
        reranker: ClassVar[str] = "cross"

    for task in (CrossEncoder, Blind, Double):
        register(cast("type[Task]", task))
    cross, blind, double = (ModelSpec(name[0], f"/{name}", task=name) for name in ("cross", "blind", "double"))
    assert Offer([PRECISE, blind, cross]).reranker() == ("cross", cross)
    assert Offer([PRECISE, cross]).reranker("c") == ("cross", cross)
    assert Offer([PRECISE, cross]).reranker(PRECISE.name) == ("rerank", PRECISE)
    assert Offer([blind, PRECISE]).reranker("default") == ("rerank", PRECISE)
    assert Offer([PRECISE, double]).reranker() == ("cross", double)
    with pytest.raises(ValueError, match="model b is for the task 'blind', not for 'rerank'"):
        Offer([PRECISE, blind]).reranker("b")
