"""Texts to unit vectors, and texts to token counts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from datapipe.errors import VectorError
from datapipe.workers.folder import ModelFolder, resolve
from datapipe.workers.spec import spec_of
from datapipe.workers.tasks.embed import TextItem
from datapipe.workers.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Bool, Float32, Int32
    from datapipe.workers.protocol import Worker

__all__ = ["EmbeddedTexts", "count_tokens", "embed_texts", "open_tokenizer", "token_counts", "tokenizer_digest"]

_TINY = np.float32(1e-12)


class EmbeddedTexts(NamedTuple):
    """One row a text, in the order of the texts.

    Attributes:
        vectors: Of unit length, float32 (texts, dim).
        tokens: Tokens before truncation, special tokens included, int32 (texts,).
        truncated: Whether the model saw only the beginning, bool (texts,).
    """

    vectors: Float32
    tokens: Int32
    truncated: Bool


def embed_texts(worker: Worker, texts: Sequence[str], *, model: str) -> EmbeddedTexts:
    """Embed texts with a model of the worker.

    Args:
        worker: Where the model runs.
        texts: At least one text.
        model: Its name at the worker.

    Raises:
        ItemError: A text is none; holds its index.
        ModelError: The model is unknown or cannot be loaded.
        WorkerError: The device failed.
        VectorError: There are no texts, or a text's vector has no direction; names its place.
    """
    if not texts:
        raise VectorError("there are no texts to embed, so the width of the vectors is unknown")
    results = worker.run("embed", [TextItem(text) for text in texts], model=model)
    vectors = np.stack([result.vector for result in results])
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float32))
    if not (lengths > _TINY).all():
        raise VectorError(f"the vector of text {int((lengths > _TINY).argmin())} by model {model} has length 0")
    # Vectors of a model that normalises are of unit length already and keep their bits.
    if not np.allclose(lengths, 1.0, rtol=0.0, atol=1e-5):
        vectors /= lengths[:, None]
    tokens = np.fromiter((result.tokens for result in results), dtype=np.int32, count=len(results))
    truncated = np.fromiter((result.truncated for result in results), dtype=np.bool_, count=len(results))
    return EmbeddedTexts(vectors, tokens, truncated)


def open_tokenizer(source: str) -> TextTokenizer:
    """The tokenizer of a model, without its weights.

    Args:
        source: A tokenizer.json, or a model: `default`, `embedded:NAME`, a folder, a cached hub id.

    Raises:
        ModelNotFoundError: There is no such model, or no tokenizer.json.
        ModelError: It is damaged.
    """
    return TextTokenizer(_tokenizer_folder(source))


def tokenizer_digest(source: str) -> str:
    """SHA-256 of the tokenizer.json that `open_tokenizer` reads, as 64 hex digits. Raises `ModelNotFoundError`."""
    open_tokenizer(source)
    return hashlib.sha256(_tokenizer_folder(source).path("tokenizer.json").read_bytes()).hexdigest()


def token_counts(tokenizer: TextTokenizer, texts: Sequence[str]) -> Int32:
    """Tokens of each text, special tokens included, nothing cut, int32 (texts,). Raises `ItemError`."""
    return tokenizer.count(texts)


def count_tokens(source: str, texts: Sequence[str]) -> Int32:
    """`token_counts` with the tokenizer of `source`; see `open_tokenizer` for what that may be."""
    return token_counts(open_tokenizer(source), texts)


def _tokenizer_folder(source: str) -> ModelFolder:
    path = Path(source).expanduser()
    if path.name == "tokenizer.json" and path.is_file():
        return ModelFolder(source, path.parent)
    folder = resolve(spec_of(source))
    modules = folder.json("modules.json")
    if isinstance(modules, list) and not folder.path("tokenizer.json").is_file():
        for module in modules:
            inner = folder.within(str(module.get("path", "")) if isinstance(module, dict) else "")
            if inner.path("tokenizer.json").is_file():
                return inner
    return folder
