"""The compressor as LangChain uses it: documents, callbacks, chains, retrievers, copies and pickles."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.documents import BaseDocumentTransformer, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from datapipe.errors import ConfigError, ModelError
from datapipe.workers import HttpWorker
from provence.langchain import ProvenceCompressor
from tests.provence.faces import QUESTION, passages, served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from datapipe.workers import LocalWorker, ModelSpec


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    """Real passages with ids, nested metadata and titles; some without an id."""
    return [
        Document(
            id=None if place % 3 == 2 else f"passage-{place}",
            page_content=passage["context"],
            metadata={"title": passage["title"], "source": {"row": place, "tags": ["squad"]}, "place": place},
        )
        for place, passage in enumerate(passages(5))
    ]


@pytest.fixture
def compressor_of(pruner_worker: LocalWorker, pruner_spec: ModelSpec) -> Callable[..., ProvenceCompressor]:
    """Make a compressor over the loaded model; keyword arguments are fields."""

    def make(**fields: Any) -> ProvenceCompressor:
        return ProvenceCompressor(**{"model": pruner_spec.name, "worker": pruner_worker} | fields)

    return make


def same(found: Sequence[Document], wanted: Sequence[Document]) -> bool:
    """Whether documents are alike; scores may differ in their last bits, for other calls may share a batch."""
    known = [
        [(one.id, one.page_content, {**one.metadata, "relevance_score": 0}) for one in some] for some in (found, wanted)
    ]
    scores = [[one.metadata.get("relevance_score", 0.0) for one in some] for some in (found, wanted)]
    return known[0] == known[1] and scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_documents_come_back_shorter_with_id_metadata_and_score(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document]
) -> None:
    pruned = compressor_of(threshold=0.5).compress_documents(documents, QUESTION)
    assert [document.metadata["place"] for document in pruned] == sorted(
        document.metadata["place"] for document in pruned
    )
    for document in pruned:
        original = documents[document.metadata["place"]]
        assert type(document) is Document
        assert document.id == original.id
        assert type(document.metadata["relevance_score"]) is float
        assert {**document.metadata, "relevance_score": 0} == {**original.metadata, "relevance_score": 0}
        assert 0 < len(document.page_content) <= len(original.page_content)
    assert sum(len(document.page_content) for document in pruned) < sum(
        len(document.page_content) for document in documents
    )


def test_the_given_documents_do_not_change_and_share_nothing_with_the_new(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document]
) -> None:
    before = copy.deepcopy(documents)
    pruned = compressor_of(threshold=0.0, details=True).compress_documents(tuple(documents), QUESTION)
    assert documents == before
    pruned[0].metadata["source"]["tags"].append("changed")
    assert documents[0].metadata["source"]["tags"] == ["squad"]


def test_a_threshold_of_nought_keeps_every_text_as_it_stands(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document]
) -> None:
    pruned = compressor_of(threshold=0.0).compress_documents(documents, QUESTION)
    assert [document.page_content for document in pruned] == [document.page_content for document in documents]


def test_top_n_gives_the_best_first(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document]
) -> None:
    everything = compressor_of(threshold=0.0).compress_documents(documents, QUESTION)
    ranked = sorted(everything, key=lambda document: -document.metadata["relevance_score"])
    best = compressor_of(threshold=0.0, top_n=3).compress_documents(documents, QUESTION)
    assert same(best, ranked[:3])


@pytest.mark.parametrize(("empty", "contents"), [("drop", []), ("empty", [""] * 5), ("keep", None)])
def test_documents_of_which_nothing_is_kept_are_dropped_emptied_or_left_whole(
    compressor_of: Callable[..., ProvenceCompressor],
    documents: list[Document],
    empty: str,
    contents: list[str] | None,
) -> None:
    pruned = compressor_of(threshold=1.0, empty=empty).compress_documents(documents, QUESTION)
    want = [document.page_content for document in documents] if contents is None else contents
    assert [document.page_content for document in pruned] == want


def test_a_budget_holds_over_all_documents_together(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document]
) -> None:
    lengths = [
        sum(
            len(document.page_content)
            for document in compressor_of(budget_tokens=budget).compress_documents(documents, QUESTION)
        )
        for budget in (1, 60, 200, 100_000)
    ]
    assert lengths[0] == 0
    assert lengths == sorted(lengths)
    assert lengths[3] == sum(len(document.page_content) for document in documents)
    assert lengths[1] < lengths[2] < lengths[3]


def test_details_tell_kept_spans_and_sentences_and_only_when_asked_for(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document]
) -> None:
    text = "🌹 Роза — цветок. 北京是中国的首都。 Cafe\u0301 “Zoë” opened in 1921! Prune it in March."
    mixed = [*documents, Document(page_content=text, metadata={"place": 5})]
    for document in compressor_of(threshold=0.5, details=True, empty="empty").compress_documents(mixed, QUESTION):
        original = mixed[document.metadata["place"]].page_content
        told = document.metadata["provence"]
        assert "".join(original[start:end] for start, end in told["kept_spans"]) == document.page_content
        assert told["compression"] == pytest.approx(1 - len(document.page_content) / len(original))
        assert any(sentence["kept"] for sentence in told["sentences"]) == bool(document.page_content)
        assert all(original[sentence["start"] : sentence["end"]].strip() for sentence in told["sentences"])
    assert "provence" not in compressor_of().compress_documents(documents, QUESTION)[0].metadata


def test_titles_are_read_from_the_metadata(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document]
) -> None:
    with_titles = compressor_of(threshold=0.0, title_key="title").compress_documents(documents, QUESTION)
    without = compressor_of(threshold=0.0, title_key="no such key").compress_documents(documents, QUESTION)
    nothing = compressor_of(threshold=0.0).compress_documents(documents, QUESTION)
    assert same(without, nothing)
    assert not same(with_titles, nothing)
    assert [document.page_content for document in with_titles] == [document.page_content for document in nothing]


async def test_async_gives_the_same_also_side_by_side(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document]
) -> None:
    compressor = compressor_of(threshold=0.5)
    questions = [passage["question"] for passage in passages(3)]
    several = await asyncio.gather(*(compressor.acompress_documents(documents, question) for question in questions))
    for question, pruned in zip(questions, several, strict=True):
        alone = compressor.compress_documents(documents, question)
        assert same(pruned, alone)


async def test_no_documents_give_none_and_open_no_model() -> None:
    compressor = ProvenceCompressor(model="/no/such/folder")
    assert compressor.compress_documents([], QUESTION) == []
    assert await compressor.acompress_documents([], QUESTION) == []
    with pytest.raises(ModelError):
        compressor.compress_documents([Document(page_content="x")], QUESTION)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": 0.5, "budget_tokens": 9}, "threshold.*budget_tokens"),
        ({"threshold": 1.5}, "threshold"),
        ({"top_n": 0}, "top_n"),
        ({"pin": ("footnotes",)}, "footnotes"),
        ({"thresold": 0.5}, "thresold"),
        ({"backend": "jax"}, "backend.*'torch' or 'onnx'"),
    ],
)
def test_wrong_options_are_refused_when_it_is_made(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){message}"):
        ProvenceCompressor(**fields)


class Heard(BaseCallbackHandler):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, UUID | None, Any]] = []
        self.ended: list[Any] = []
        self.failed: list[BaseException] = []

    def on_chain_start(self, serialized: Any, inputs: Any, *, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        self.started.append((kwargs["name"], parent_run_id, inputs))

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.ended.append(outputs)

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.failed.append(error)


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_a_child_run_counts_documents_and_characters(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document], way: str
) -> None:
    heard, parent = Heard(), uuid4()
    manager = CallbackManager(handlers=[heard], inheritable_handlers=[heard], parent_run_id=parent)
    compressor = compressor_of(threshold=0.5)
    if way == "sync":
        pruned = compressor.compress_documents(documents, QUESTION, callbacks=manager)
    else:
        pruned = await compressor.acompress_documents(documents, QUESTION, callbacks=[heard])
    characters = [sum(len(document.page_content) for document in some) for some in (documents, pruned)]
    assert heard.started == [
        (
            "ProvenceCompressor",
            parent if way == "sync" else None,
            {"query": QUESTION, "documents": 5, "characters": characters[0]},
        )
    ]
    assert heard.ended == [{"documents": len(pruned), "characters": characters[1]}]


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_callbacks_hear_of_a_failure(documents: list[Document], way: str) -> None:
    heard, compressor = Heard(), ProvenceCompressor(model="/no/such/folder")
    with pytest.raises(ModelError) as failure:
        if way == "sync":
            compressor.compress_documents(documents, QUESTION, callbacks=[heard])
        else:
            await compressor.acompress_documents(documents, QUESTION, callbacks=[heard])
    assert heard.failed == [failure.value]
    assert not heard.ended


async def test_as_a_runnable_it_is_a_part_of_a_chain(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document]
) -> None:
    compressor, heard = compressor_of(threshold=0.5), Heard()
    want = compressor.compress_documents(documents, QUESTION)
    chain: Runnable[Any, Any] = RunnablePassthrough() | compressor.as_runnable() | len
    inputs = {"question": QUESTION, "documents": documents}
    assert chain.invoke(inputs, config={"callbacks": [heard]}) == len(want)
    parents = {name: parent for name, parent, _ in heard.started}
    assert parents["ProvenceCompressor"] is not None
    assert same(await compressor.as_runnable().ainvoke({"query": QUESTION, "documents": documents}), want)
    assert all(same(found, want) for found in compressor.as_runnable().batch([inputs] * 2))


@pytest.mark.parametrize(
    "inputs", [{"documents": []}, {"query": "a"}, {"query": "a", "question": "b", "documents": []}]
)
def test_a_chain_that_brings_the_wrong_inputs_is_told_which_are_wanted(inputs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"must hold 'documents' and one of 'query' and 'question'\. Got '"):
        ProvenceCompressor().as_runnable().invoke(inputs)


def test_copies_share_the_model_until_they_name_another(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document]
) -> None:
    compressor = compressor_of(threshold=0.5)
    want = compressor.compress_documents(documents, QUESTION)
    for twin in (compressor.model_copy(), compressor.model_copy(deep=True), copy.deepcopy(compressor)):
        assert same(twin.compress_documents(documents, QUESTION), want)
    everything = compressor.model_copy(update={"threshold": 0.0}).compress_documents(documents, QUESTION)
    assert [document.page_content for document in everything] == [document.page_content for document in documents]
    with pytest.raises(ModelError):
        compressor.model_copy(update={"model": "/no/such/folder"}).compress_documents(documents, QUESTION)
    assert same(compressor.compress_documents(documents, QUESTION), want)


def test_a_dump_holds_the_options_and_no_worker(compressor_of: Callable[..., ProvenceCompressor]) -> None:
    compressor = compressor_of(threshold=0.25, pin=("headings",))
    told = compressor.model_dump(mode="json")
    assert "worker" not in told
    assert ProvenceCompressor.model_validate_json(compressor.model_dump_json()).threshold == 0.25
    assert "worker" not in repr(compressor)


def test_a_pickle_opens_the_model_again(pruner_folder: Path, documents: list[Document]) -> None:
    compressor = ProvenceCompressor(model=str(pruner_folder), device="cpu", dtype="float32", threshold=0.0, top_n=2)
    want = compressor.compress_documents(documents, QUESTION)
    twin = pickle.loads(pickle.dumps(compressor))  # noqa: S301 - our own
    assert twin.model_dump() == compressor.model_dump()
    assert same(twin.compress_documents(documents, QUESTION), want)
    twin.close()
    assert same(compressor.compress_documents(documents, QUESTION), want)
    compressor.close()
    compressor.close()
    assert same(compressor.compress_documents(documents, QUESTION), want)
    compressor.close()


@pytest.fixture(scope="module")
def url(pruner_worker: LocalWorker, pruner_spec: ModelSpec) -> Iterator[str]:
    with served(pruner_worker, pruner_spec) as where:
        yield where


def test_a_remote_worker_gives_the_same_and_is_pickled_with_it(
    url: str,
    pruner_spec: ModelSpec,
    compressor_of: Callable[..., ProvenceCompressor],
    documents: list[Document],
) -> None:
    want = compressor_of(threshold=0.5).compress_documents(documents, QUESTION)
    remote = ProvenceCompressor(model=pruner_spec.name, threshold=0.5, worker=HttpWorker(url))
    for compressor in (remote, pickle.loads(pickle.dumps(remote))):  # noqa: S301 - our own
        pruned = compressor.compress_documents(documents, QUESTION)
        assert same(pruned, want)
        compressor.worker.close()


class Stored(BaseRetriever):
    """The first so many of some documents."""

    documents: list[Document]
    k: int = 5

    def _get_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None) -> list[Document]:
        return self.documents[: self.k if k is None else k]


async def test_it_works_in_a_contextual_compression_retriever(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document]
) -> None:
    compressor, heard = compressor_of(threshold=0.5), Heard()
    retriever = ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=Stored(documents=documents, k=4)
    )
    want = compressor.compress_documents(documents[:4], QUESTION)
    assert same(retriever.invoke(QUESTION, config={"callbacks": [heard]}), want)
    assert heard.started[0][1] is not None, "the run is a child of the retriever's"
    assert same(await retriever.ainvoke(QUESTION), want)
    empty = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=Stored(documents=[]))
    assert empty.invoke(QUESTION) == []


class Shouting(BaseDocumentTransformer):
    """A step after the compressor."""

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        return [Document(page_content=document.page_content.upper()) for document in documents]


async def test_it_works_in_a_pipeline_of_compressors(
    compressor_of: Callable[..., ProvenceCompressor], documents: list[Document]
) -> None:
    best, pruning = compressor_of(threshold=0.0, top_n=3), compressor_of(threshold=0.5)
    pipeline = DocumentCompressorPipeline(transformers=[best, pruning, Shouting()])
    step = pruning.compress_documents(best.compress_documents(documents, QUESTION), QUESTION)
    want = [document.page_content.upper() for document in step]
    assert [document.page_content for document in pipeline.compress_documents(documents, QUESTION)] == want
    assert [document.page_content for document in await pipeline.acompress_documents(documents, QUESTION)] == want


class Compressed(ContextualCompressionRetriever):
    """A retriever with a number of results, over passages of the shipped data."""

    def __init__(self, k: int = 5, **fields: Any) -> None:
        documents = [Document(page_content=passage["context"]) for passage in passages(5)]
        super().__init__(base_retriever=Stored(documents=documents, k=k), **fields)


class TestCompressedRetriever(RetrieversIntegrationTests):
    """The public suite for retrievers, on one that compresses."""

    @pytest.fixture(autouse=True)
    def _over(self, compressor_of: Callable[..., ProvenceCompressor]) -> None:
        self.compressor = compressor_of(min_keep=1)

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return Compressed

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"base_compressor": self.compressor}

    @property
    def retriever_query_example(self) -> str:
        return QUESTION


def test_without_langchain_the_error_holds_the_pip_line() -> None:
    code = "import sys; sys.modules['langchain_core'] = None; import provence.langchain"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError: provence.langchain needs langchain-core" in done.stderr
    assert "pip install 'secateur[langchain]'" in done.stderr
