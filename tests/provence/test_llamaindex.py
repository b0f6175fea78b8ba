"""The postprocessor as LlamaIndex uses it: nodes, queries, copies, async."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import Document, ImageNode, NodeWithScore, QueryBundle, TextNode

from datapipe.errors import ConfigError
from provence.llamaindex import ProvencePostprocessor
from tests.provence.faces import QUESTION, passages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from datapipe.workers import LocalWorker, ModelSpec


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    """Real passages, an image between them, and a document at the end."""
    found = [
        NodeWithScore(
            node=TextNode(id_=f"node-{place}", text=row["context"], metadata={"title": row["title"]}), score=0.5
        )
        for place, row in enumerate(passages(5))
    ]
    image = NodeWithScore(node=ImageNode(id_="image", image_url="rose.png"), score=0.25)
    last = NodeWithScore(node=Document(id_="document", text=passages(6)[5]["context"]))
    return [*found[:2], image, *found[2:], last]


@pytest.fixture
def processor_of(pruner_worker: LocalWorker, pruner_spec: ModelSpec) -> Callable[..., ProvencePostprocessor]:
    """Make a postprocessor over the loaded model; keyword arguments are fields."""

    def make(**fields: Any) -> ProvencePostprocessor:
        return ProvencePostprocessor(**{"model": pruner_spec.name, "worker": pruner_worker} | fields)

    return make


def texts(nodes: list[NodeWithScore]) -> list[str]:
    return [found.node.get_content() for found in nodes]


async def test_nodes_come_back_shorter_with_the_score_and_all_else_as_it_was(
    processor_of: Callable[..., ProvencePostprocessor], nodes: list[NodeWithScore]
) -> None:
    before = [found.model_copy(deep=True) for found in nodes]
    processor = processor_of(threshold=0.5, empty="empty", details=True)
    pruned = processor.postprocess_nodes(nodes, query_str=QUESTION)
    assert nodes == before
    assert [found.node.node_id for found in pruned] == [found.node.node_id for found in nodes]
    assert sum(map(len, texts(pruned))) < sum(map(len, texts(nodes)))
    for found, original in zip(pruned, nodes, strict=True):
        if original.node.node_id == "image":
            assert found == original
            continue
        told = found.node.metadata["provence"]
        content = original.node.get_content()
        assert "".join(content[start:end] for start, end in told["kept_spans"]) == found.node.get_content()
        assert found.node.metadata == original.node.metadata | {"provence": told}
        assert "provence" in found.node.excluded_llm_metadata_keys
        assert "provence" in found.node.excluded_embed_metadata_keys
        assert type(found.score) is float
        assert type(found.node) is type(original.node)
    again = await processor.apostprocess_nodes(nodes, query_bundle=QueryBundle(QUESTION))
    assert texts(again) == texts(pruned)
    assert [found.score for found in again] == pytest.approx([found.score for found in pruned], abs=1e-5)


def test_top_n_gives_the_best_first_and_what_has_no_text_after_them(
    processor_of: Callable[..., ProvencePostprocessor], nodes: list[NodeWithScore]
) -> None:
    everything = processor_of(threshold=0.0).postprocess_nodes(nodes, query_str=QUESTION)
    ranked = sorted((found for found in everything if texts([found])[0]), key=lambda found: -(found.score or 0))
    best = processor_of(threshold=0.0, top_n=2).postprocess_nodes(nodes, query_str=QUESTION)
    assert [found.node.node_id for found in best] == [*(found.node.node_id for found in ranked[:2]), "image"]


def test_titles_come_from_the_metadata(
    processor_of: Callable[..., ProvencePostprocessor], nodes: list[NodeWithScore]
) -> None:
    plain = processor_of(threshold=0.0).postprocess_nodes(nodes, query_str=QUESTION)
    titled = processor_of(threshold=0.0, title_key="title").postprocess_nodes(nodes, query_str=QUESTION)
    assert texts(titled) == texts(plain)
    assert titled[0].score != plain[0].score


def test_a_call_without_a_query_is_refused_and_one_without_text_needs_none(
    processor_of: Callable[..., ProvencePostprocessor], nodes: list[NodeWithScore]
) -> None:
    with pytest.raises(ConfigError, match="pruning needs the query: pass query_bundle or query_str"):
        processor_of().postprocess_nodes(nodes)
    assert processor_of().postprocess_nodes([]) == []
    assert ProvencePostprocessor(model="/no/such/folder").postprocess_nodes([nodes[2]]) == [nodes[2]]


def test_it_is_rebuilt_from_its_dump_and_pickled_without_its_model(
    pruner_folder: Path, nodes: list[NodeWithScore]
) -> None:
    processor = ProvencePostprocessor(model=str(pruner_folder), device="cpu", dtype="float32", min_keep=1)
    want = texts(processor.postprocess_nodes(nodes, query_str=QUESTION))
    unpickled = pickle.loads(pickle.dumps(processor))  # noqa: S301 - our own
    for twin in (ProvencePostprocessor.from_dict(processor.to_dict()), unpickled):
        assert texts(twin.postprocess_nodes(nodes, query_str=QUESTION)) == want
        twin.close()
    processor.close()


class Stored(BaseRetriever):
    """A retriever of given nodes."""

    def __init__(self, nodes: list[NodeWithScore]) -> None:
        self.nodes = nodes
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.nodes


def test_it_works_in_a_query_engine(
    processor_of: Callable[..., ProvencePostprocessor], nodes: list[NodeWithScore]
) -> None:
    processor = processor_of(threshold=0.5)
    engine = RetrieverQueryEngine(
        Stored(nodes),
        response_synthesizer=NoText(llm=MockLLM()),
        node_postprocessors=[processor],
    )
    answer = engine.query(QUESTION)
    assert texts(answer.source_nodes) == texts(processor.postprocess_nodes(nodes, query_str=QUESTION))


def test_without_llamaindex_the_error_holds_the_pip_line() -> None:
    code = "import sys; sys.modules['llama_index.core.postprocessor.types'] = None; import provence.llamaindex"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError: provence.llamaindex needs llama-index-core" in done.stderr
    assert "pip install 'secateur[llamaindex]'" in done.stderr
