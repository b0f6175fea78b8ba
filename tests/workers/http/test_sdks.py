"""The clients that people have: the `openai` and `cohere` SDKs against the server in a process of its own."""

from __future__ import annotations

import asyncio
import base64
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cohere
import httpx
import numpy as np
import openai
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from datapipe.weights import embedded_folder
from datapipe.workers.folder import ModelFolder
from datapipe.workers.http.client import HttpWorker
from datapipe.workers.protocol import Priority
from datapipe.workers.tasks.embed import TextItem
from datapipe.workers.tasks.rerank import RerankItem
from tests.workers.http.conftest import KEY, PRECISE

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

MINILM = embedded_folder("all-MiniLM-L6-v2")
QUERY = "Which card was declined abroad?"
DOCUMENTS = ["How do I change my PIN?", "My card was refused in a shop in Lisbon.", "I wait for my new card."]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    path = Path(__file__).parents[1] / "data" / "minilm_reference.parquet"
    found: list[str] = pq.read_table(path)["text"].to_pylist()
    return found


@pytest.fixture(scope="module")
def theirs(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Vectors of sentence-transformers on the weights of the embedded model, dequantised."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("minilm")
    shutil.copytree(MINILM, folder, dirs_exist_ok=True)
    save_file(ModelFolder("m", MINILM).tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)


@pytest.fixture
def web() -> Iterator[httpx.Client]:
    """Connections that no proxy of the environment sees, closed at the end."""
    with httpx.Client(trust_env=False) as opened:
        yield opened


@pytest.fixture
def client(command: str, web: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{command}/v1", api_key=KEY, max_retries=0, http_client=cast("Any", web))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_the_openai_sdk_gets_the_vectors_of_sentence_transformers(
    client: openai.OpenAI, texts: list[str], theirs: Any, options: dict[str, Any]
) -> None:
    answer = client.embeddings.create(model=PRECISE.name, input=texts, **options)
    ours: Any = [datum.embedding for datum in answer.data]
    if options.get("encoding_format") == "base64":  # the SDK decodes only where it chose the format itself
        ours = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in ours]
    vectors = np.array(ours, np.float32)
    assert [datum.index for datum in answer.data] == list(range(len(texts)))
    assert np.abs(vectors - theirs).max() <= 1e-4
    assert (vectors * theirs).sum(axis=1).min() >= 0.9999
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(texts)
    assert answer.model == PRECISE.name


def test_the_openai_sdk_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [PRECISE.name]
    assert client.models.retrieve("default").id == PRECISE.name


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ({"input": []}, openai.UnprocessableEntityError, "must hold at least one text"),
        ({"input": [[1, 2, 3]]}, openai.UnprocessableEntityError, "token ids are not taken"),
        ({"input": "a", "dimensions": 64}, openai.UnprocessableEntityError, "must not be cut"),
        ({"input": "a", "model": "none"}, openai.NotFoundError, "this model is not served here"),
        ({"input": ["a"] * 2049}, openai.APIStatusError, "at most 2,048 are taken"),
    ],
)
def test_the_openai_sdk_raises_its_own_errors_with_our_words(
    client: openai.OpenAI, body: dict[str, Any], error: type[openai.APIStatusError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        client.embeddings.create(**({"model": PRECISE.name} | body))
    assert caught.value.type == ("not_found_error" if "model" in body else "invalid_request_error")


def test_the_openai_sdk_is_refused_without_the_key(client: openai.OpenAI) -> None:
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError, match="the key is not one of this server's"):
        stranger.embeddings.create(model=PRECISE.name, input="a")


async def test_the_asynchronous_openai_sdk_may_ask_for_much_at_once(command: str, texts: list[str]) -> None:
    own = httpx.AsyncClient(trust_env=False)
    # The SDK's types name a later httpx than the one it takes.
    client = openai.AsyncOpenAI(base_url=f"{command}/v1", api_key=KEY, http_client=cast("Any", own))
    async with client:
        calls = [client.embeddings.create(model=PRECISE.name, input=text) for text in texts[:64]]
        answers = await asyncio.gather(*calls)
    assert len({len(answer.data[0].embedding) for answer in answers}) == 1


def scores_of(command: str) -> list[float]:
    with HttpWorker(command, api_key=KEY) as worker:
        items = [RerankItem(QUERY, text) for text in DOCUMENTS]
        found = worker.run("rerank", items, model=PRECISE.name, priority=Priority.ONLINE)
    return [score.score for score in found]


@pytest.mark.filterwarnings("default")
def test_the_cohere_sdk_reranks_by_its_second_version(command: str, web: httpx.Client) -> None:
    client = cohere.ClientV2(api_key=KEY, base_url=command, httpx_client=web)
    answer = client.rerank(model=PRECISE.name, query=QUERY, documents=DOCUMENTS, top_n=2)
    scores = scores_of(command)
    want = sorted(range(3), key=lambda index: -scores[index])[:2]
    assert [result.index for result in answer.results] == want
    assert [result.relevance_score for result in answer.results] == pytest.approx([scores[i] for i in want], abs=1e-5)
    assert answer.id
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "2"
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.search_units == 1


@pytest.mark.filterwarnings("default")
def test_the_cohere_sdk_reranks_by_its_first_version_and_gets_documents_back(command: str, web: httpx.Client) -> None:
    client = cohere.Client(api_key=KEY, base_url=command, httpx_client=web)
    documents: Any = [DOCUMENTS[0], {"text": DOCUMENTS[1]}]
    answer = client.rerank(model=PRECISE.name, query=QUERY, documents=documents, return_documents=True)
    assert answer.results[0].index == 1
    assert answer.results[0].document is not None
    assert answer.results[0].document.text == DOCUMENTS[1]


@pytest.mark.filterwarnings("default")
def test_the_cohere_sdk_raises_its_own_errors_with_our_words(command: str, web: httpx.Client) -> None:
    client = cohere.ClientV2(api_key=KEY, base_url=command, httpx_client=web)
    with pytest.raises(cohere.UnprocessableEntityError, match="must be a list of at least one document"):
        client.rerank(model=PRECISE.name, query=QUERY, documents=[])
    stranger = cohere.ClientV2(api_key="wrong", base_url=command, httpx_client=web)
    with pytest.raises(cohere.UnauthorizedError, match="the key is not one of this server's"):
        stranger.rerank(model=PRECISE.name, query=QUERY, documents=DOCUMENTS)


def test_our_own_client_gets_the_vectors_of_sentence_transformers(command: str, texts: list[str], theirs: Any) -> None:
    with HttpWorker(command, api_key=KEY) as worker:
        found = worker.run("embed", [TextItem(text) for text in texts], model=PRECISE.name)
    assert np.abs(np.stack([result.vector for result in found]) - theirs).max() <= 1e-4
