"""`POST /v1/rerank`, `/v2/rerank` and `/rerank`, in the shapes of Cohere's and Jina's API.

    {"query", "documents", "top_n"} -> RerankItem -> worker -> scores -> best first, ties in the order of the documents

A served model whose task says `reranks` (see `workers/tasks/rerank.py`) scores pairs by itself; otherwise an embedder
does, by cosine.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from datapipe.workers.http.embeddings import ModelName, Usage
from datapipe.workers.http.route import Route
from datapipe.workers.tasks.rerank import RerankItem

if TYPE_CHECKING:
    from datapipe.workers.http.service import Call

__all__ = ["RERANKS"]


class Document(BaseModel):
    """A text in an object, as Cohere's first version and Jina also take it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str


def _documents(value: Any) -> Any:
    """Say what is wrong with the documents in one sentence, where a union of types would say it in two."""
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("documents", "must be a list of at least one document")
    for place, entry in enumerate(value):
        text = entry["text"] if isinstance(entry, dict) and entry.keys() == {"text"} else entry
        if not isinstance(text, str):
            raise PydanticCustomError(
                "documents", 'document {place} must be a text, or an object {"text": "…"}', {"place": place}
            )
    return value


class RerankRequest(BaseModel):
    """A query, and documents to put in order."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    query: str
    documents: Annotated[
        list[str | Document],
        BeforeValidator(_documents),
        Field(min_length=1, description='Texts, or objects {"text": …}. One too long for the model is cut.'),
    ]
    model: ModelName = None
    top_n: Annotated[int, Field(ge=1, le=1 << 31)] | None = Field(
        None, description="How many of the best to give; default all."
    )
    return_documents: bool | None = Field(None, description="Whether results hold their documents; default no.")
    priority: Annotated[int, Field(ge=0, le=999)] | None = Field(
        None, description="Taken for compatibility and not used: all requests are urgent."
    )


class RerankResult(BaseModel):
    """A document's score; higher fits better."""

    index: int = Field(description="Place of the document in the request.")
    relevance_score: float = Field(
        description="Between 0 and 1 from a pruner; the cosine, between -1 and 1, from an embedder. Other models may "
        "have a scale of their own."
    )
    document: Document | None = None


class ApiVersion(BaseModel):
    """Which of Cohere's shapes this is."""

    version: str


class BilledUnits(BaseModel):
    """In Cohere's words; one a request."""

    search_units: int


class TokenCount(BaseModel):
    """In Cohere's words."""

    input_tokens: int


class Meta(BaseModel):
    """What Cohere's clients look for."""

    api_version: ApiVersion
    billed_units: BilledUnits
    tokens: TokenCount


class RerankResponse(BaseModel):
    """Results, best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: Meta
    truncated: list[int] = Field(description="Places of documents of which the model saw only the beginning.")


def _handler(version: str) -> Any:
    async def rerank(request: RerankRequest, call: Call) -> dict[str, Any]:
        task, spec = call.service.offer.reranker(request.model)
        texts = [document if isinstance(document, str) else document.text for document in request.documents]
        scored = await call.run(task, [RerankItem(request.query, text) for text in texts], model=spec.name)
        order = sorted(range(len(scored)), key=lambda index: -scored[index].score)[: request.top_n]
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": float(scored[index].score)} for index in order
        ]
        if request.return_documents:
            for result in results:
                result["document"] = {"text": texts[result["index"]]}
        tokens = sum(score.tokens for score in scored)
        return {
            "id": str(uuid.uuid4()),
            "model": spec.name,
            "results": results,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "meta": {
                "api_version": {"version": version},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": tokens},
            },
            "truncated": [index for index, score in enumerate(scored) if score.truncated],
        }

    return rerank


RERANKS = tuple(
    Route(
        path, RerankRequest, RerankResponse, _handler(version), f"Documents by how well they answer a query ({shape})."
    )
    for path, version, shape in (
        ("/v1/rerank", "1", "Cohere v1 and Jina"),
        ("/v2/rerank", "2", "Cohere v2"),
        ("/rerank", "1", "Jina"),
    )
)
