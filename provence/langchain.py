"""Pruning as a LangChain document compressor.

    documents + query -> texts and titles -> Pruner -> new documents, with a child run that counts

`ProvenceCompressor` goes wherever a `BaseDocumentCompressor` does, such as `ContextualCompressionRetriever` and
`DocumentCompressorPipeline`; `as_runnable` makes it a part of a chain. Raises what `Pruner.prune` raises.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from datapipe.errors import ConfigError, MissingExtraError
from provence.options import PruneOptions
from provence.render import details

try:
    from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.runnables import RunnableLambda, ensure_config
except ImportError as error:
    raise MissingExtraError.of("langchain-core", extra="langchain", purpose="provence.langchain") from error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from langchain_core.callbacks import Callbacks
    from langchain_core.runnables import Runnable, RunnableConfig

    from provence.results import PrunedContext

__all__ = ["ProvenceCompressor"]

_QUESTIONS = ("query", "question")


class ProvenceCompressor(PruneOptions, BaseDocumentCompressor):
    """Cuts from retrieved documents what a question does not need, and scores them, in one pass of one model.

    Results are new documents in the order of the old ones, or with `top_n` best first. They keep id and metadata (a
    deep copy), and `metadata["relevance_score"]` is the score; `page_content` is made of verbatim parts of the old.
    With `details`, `metadata["provence"]` holds kept spans, sentences with their scores, compression and tokens.
    """

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Prune documents for a query.

        Args:
            documents: They are not changed. An empty sequence gives an empty list.
            query: The question.
            callbacks: Told of a run that holds the query and counts, never a document's text.
        """
        if not documents:
            return []
        manager = CallbackManager.configure(inheritable_callbacks=_callbacks(callbacks))
        run = manager.on_chain_start(None, {"query": query, **_counts(documents)}, name=self.get_name())
        try:
            pruned = self._results(documents, self.prune(query, *self._asked(documents)))
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(_counts(pruned))
        return pruned

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The same without blocking the event loop."""
        if not documents:
            return []
        manager = AsyncCallbackManager.configure(inheritable_callbacks=_callbacks(callbacks))
        run = await manager.on_chain_start(None, {"query": query, **_counts(documents)}, name=self.get_name())
        try:
            pruned = self._results(documents, await self.aprune(query, *self._asked(documents)))
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        await run.on_chain_end(_counts(pruned))
        return pruned

    def as_runnable(self) -> Runnable[Mapping[str, Any], list[Document]]:
        """A runnable from `{"query" or "question": …, "documents": […]}` to pruned documents, sync and async.

        Raises:
            ConfigError: When it runs: the input lacks documents, or holds none or both of query and question.
        """

        def compress(inputs: Mapping[str, Any], config: RunnableConfig) -> list[Document]:
            return self.compress_documents(*_taken(inputs), callbacks=config.get("callbacks"))

        async def acompress(inputs: Mapping[str, Any], config: RunnableConfig) -> list[Document]:
            return await self.acompress_documents(*_taken(inputs), callbacks=config.get("callbacks"))

        return RunnableLambda(compress, acompress, name="prune")

    def get_name(self) -> str:
        """What its runs are called."""
        return type(self).__name__

    def _asked(self, documents: Sequence[Document]) -> tuple[list[str], list[str | None]]:
        texts = [document.page_content for document in documents]
        return texts, [self.title_of(document.metadata) for document in documents]

    def _results(self, documents: Sequence[Document], contexts: Sequence[PrunedContext]) -> list[Document]:
        return [self._result(documents[context.index], context) for context in contexts]

    def _result(self, document: Document, context: PrunedContext) -> Document:
        metadata = copy.deepcopy(document.metadata)
        metadata["relevance_score"] = float(context.relevance_score)
        if self.details:
            metadata["provence"] = details(context)
        return Document(id=document.id, page_content=context.text, metadata=metadata)


def _callbacks(given: Callbacks | None) -> Callbacks | None:
    """Those given, else those of the chain that this runs in."""
    return given if given is not None else ensure_config().get("callbacks")


def _counts(documents: Sequence[Document]) -> dict[str, int]:
    return {"documents": len(documents), "characters": sum(len(document.page_content) for document in documents)}


def _taken(inputs: Mapping[str, Any]) -> tuple[Sequence[Document], str]:
    named = [name for name in _QUESTIONS if name in inputs]
    if len(named) != 1 or "documents" not in inputs:
        found = ", ".join(map(repr, inputs)) or "nothing"
        raise ConfigError(f"the input must hold 'documents' and one of 'query' and 'question'. Got {found}")
    return inputs["documents"], inputs[named[0]]
