"""Pruning as a LlamaIndex node postprocessor.

    nodes + query -> texts and titles -> Pruner -> copies of the nodes with the text that is left and the score

Raises `ConfigError` for a call without a query, and what `Pruner.prune` raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapipe.errors import ConfigError, MissingExtraError
from provence.options import PruneOptions
from provence.render import details

try:
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
except ImportError as error:
    raise MissingExtraError.of("llama-index-core", extra="llamaindex", purpose="provence.llamaindex") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provence.results import PrunedContext

__all__ = ["ProvencePostprocessor"]


class ProvencePostprocessor(PruneOptions, BaseNodePostprocessor):
    """Cuts from retrieved nodes what a query does not need, and scores them, in one pass of one model.

    Results are copies: the given nodes do not change, and ids, relations and metadata stay. Nodes without text, such as
    images, go through as they are, in their place, or with `top_n` after those that were ranked. With `details`, the
    metadata key `provence` tells spans and scores; no prompt or embedding shows it.
    """

    @classmethod
    def class_name(cls) -> str:
        """What LlamaIndex calls it."""
        return "ProvencePostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        places, texts, titles = self._asked(nodes)
        if not places:
            return list(nodes)
        return self._results(nodes, places, self.prune(_query(query_bundle), texts, titles))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        places, texts, titles = self._asked(nodes)
        if not places:
            return list(nodes)
        return self._results(nodes, places, await self.aprune(_query(query_bundle), texts, titles))

    def _asked(self, nodes: Sequence[NodeWithScore]) -> tuple[list[int], list[str], list[str | None]]:
        """Places of the nodes that have text, their texts, and their titles."""
        contents = [found.node.get_content(metadata_mode=MetadataMode.NONE) for found in nodes]
        places = [place for place, content in enumerate(contents) if content.strip()]
        titles = [self.title_of(nodes[place].node.metadata) for place in places]
        return places, [contents[place] for place in places], titles

    def _results(
        self, nodes: Sequence[NodeWithScore], places: Sequence[int], contexts: Sequence[PrunedContext]
    ) -> list[NodeWithScore]:
        pruned = [(places[context.index], self._result(nodes[places[context.index]], context)) for context in contexts]
        others = [(place, node) for place, node in enumerate(nodes) if place not in set(places)]
        if self.top_n is not None:
            return [node for _, node in [*pruned, *others]]
        return [node for _, node in sorted([*pruned, *others], key=lambda found: found[0])]

    def _result(self, found: NodeWithScore, context: PrunedContext) -> NodeWithScore:
        node = found.node.model_copy(deep=True)
        node.set_content(context.text)
        if self.details:
            node.metadata["provence"] = details(context)
            for hidden in (node.excluded_llm_metadata_keys, node.excluded_embed_metadata_keys):
                hidden.append("provence")
        return NodeWithScore(node=node, score=float(context.relevance_score))


def _query(bundle: QueryBundle | None) -> str:
    if bundle is None:
        raise ConfigError("pruning needs the query: pass query_bundle or query_str")
    return bundle.query_str
