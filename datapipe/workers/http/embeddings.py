"""`POST /v1/embeddings`, in the shape of OpenAI's API.

    {"input": text or texts} -> TextItem -> worker -> vectors -> floats or base64 of little-endian float32

Token ids are refused, since the server has the tokenizer; `dimensions` is refused unless the model states that its
vectors may be cut.
"""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from datapipe.workers.http.errors import InvalidRequestError
from datapipe.workers.http.route import Route
from datapipe.workers.http.service import matryoshka_dimensions
from datapipe.workers.tasks.embed import TextItem

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32
    from datapipe.workers.http.service import Call, Service
    from datapipe.workers.spec import ModelSpec

__all__ = ["EMBEDDINGS", "ModelName", "Usage"]

ModelName = Annotated[str | None, Field(description="A served model; left out or `default`: the first for the task.")]


def _texts(value: Any) -> Any:
    """Say what is wrong with an input in one sentence, where a union of types would say it in two."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("texts", "must be a text or a list of texts")
    if not value:
        raise PydanticCustomError("texts", "must hold at least one text")
    for place, entry in enumerate(value):
        if isinstance(entry, (int, list)) and not isinstance(entry, bool):
            raise PydanticCustomError("texts", "token ids are not taken: send the texts themselves")
        if not isinstance(entry, str):
            raise PydanticCustomError("texts", "entry {place} must be a text", {"place": place})
    return value


class EmbeddingsRequest(BaseModel):
    """Texts to embed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    input: Annotated[
        str | Annotated[list[str], Field(min_length=1)],
        BeforeValidator(_texts),
        Field(description="A text or a list of texts. Token ids are refused. A text too long for the model is cut."),
    ]
    model: ModelName = None
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`base64`: little-endian float32, four bytes a component."
    )
    dimensions: Annotated[int, Field(ge=1, le=1 << 16)] | None = Field(
        None, description="Shorter vectors, of unit length again; only of models that state which lengths they allow."
    )
    user: str | None = Field(None, description="Taken for compatibility and not used.")


class EmbeddingDatum(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int = Field(description="Place of the text in the request.")
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens of the texts as the model's tokenizer counts them, special tokens included, before anything is cut."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """Vectors, in the order of the texts."""

    object: Literal["list"]
    data: list[EmbeddingDatum]
    model: str
    usage: Usage
    truncated: list[int] = Field(description="Places of texts of which the model saw only the beginning.")


async def embed(request: EmbeddingsRequest, call: Call) -> dict[str, Any]:
    """Texts to vectors."""
    texts = [request.input] if isinstance(request.input, str) else request.input
    spec = call.service.offer.find("embed", request.model)
    if request.dimensions is not None:
        await asyncio.to_thread(_check_dimensions, call.service, spec, request.dimensions)
    results = await call.run("embed", [TextItem(text) for text in texts], model=spec.name)
    vectors = [_shortened(result.vector, request.dimensions) for result in results]
    as_text = request.encoding_format == "base64"
    tokens = sum(result.tokens for result in results)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if as_text else vector}
            for index, vector in enumerate(vectors)
        ],
        "model": spec.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "truncated": [index for index, result in enumerate(results) if result.truncated],
    }


def _check_dimensions(service: Service, spec: ModelSpec, wanted: int) -> None:
    """Refuse a length that the model's vectors cannot have. Raises `InvalidRequestError`."""
    whole = service.worker.load(spec.name, task="embed").dim
    allowed = {length for length in matryoshka_dimensions(spec) if length <= whole}
    if wanted == whole or wanted in allowed:
        return
    if not allowed:
        message = (
            f"the vectors of model {spec.name} have {whole} dimensions and must not be cut: it is not trained for it"
        )
    else:
        message = f"dimensions of model {spec.name} must be one of {', '.join(map(str, sorted({*allowed, whole})))}"
    raise InvalidRequestError(message, param="dimensions")


def _shortened(vector: Float32, dimensions: int | None) -> Float32:
    if dimensions is None or dimensions == len(vector):
        return vector
    short = vector[:dimensions]
    length = np.sqrt(np.dot(short, short))
    return short / length if length > 0 else short


def _base64(vector: Float32) -> str:
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")


EMBEDDINGS = Route("/v1/embeddings", EmbeddingsRequest, EmbeddingsResponse, embed)
