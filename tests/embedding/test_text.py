"""Texts to matrices of unit rows, and to token counts."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from datapipe.embedding.text import count_tokens, embed_texts, open_tokenizer, token_counts, tokenizer_digest
from datapipe.errors import ItemError, ModelNotFoundError, VectorError
from datapipe.weights import embedded_folder
from datapipe.workers.protocol import Priority
from datapipe.workers.tasks.embed import Embedding, TextItem
from datapipe.workers.worker import LocalWorker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MINILM = embedded_folder("all-MiniLM-L6-v2")


class Recorded:
    """A worker that gives vectors made beforehand."""

    def __init__(self, vectors: list[list[float]]) -> None:
        self.vectors = vectors

    def run(
        self,
        task: str,
        items: Sequence[Any],
        *,
        model: str,
        priority: Priority = Priority.BULK,
        deadline: float | None = None,
    ) -> list[Any]:
        assert (task, model, priority, deadline) == ("embed", "m", Priority.BULK, None)
        assert all(isinstance(item, TextItem) for item in items)
        return [Embedding(np.array(vector, np.float32), place, place == 1) for place, vector in enumerate(self.vectors)]

    async def arun(self, *given: Any, **options: Any) -> list[Any]:
        return self.run(*given, **options)

    def close(self) -> None:
        pass


def recorded(vectors: list[list[float]]) -> Any:
    return Recorded(vectors)


def test_texts_become_unit_rows_with_tokens_in_their_order() -> None:
    with LocalWorker(device="cpu") as worker:
        vectors, tokens, truncated = embed_texts(worker, ["one", "word " * 300, ""], model="default")
    assert (vectors.shape, vectors.dtype.name) == ((3, 384), "float32")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (tokens.tolist(), tokens.dtype.name) == ([3, 302, 2], "int32")
    assert (truncated.tolist(), truncated.dtype.name) == ([False, True, False], "bool")


def test_vectors_of_a_model_that_does_not_normalise_are_scaled() -> None:
    found = embed_texts(recorded([[3.0, 4.0], [0.0, -2.0]]), ["a", "b"], model="m")
    np.testing.assert_allclose(found.vectors, np.array([[0.6, 0.8], [0, -1]]), atol=1e-7)
    assert (found.tokens.tolist(), found.truncated.tolist()) == ([0, 1], [False, True])


def test_unit_vectors_keep_their_bits() -> None:
    vector = np.array([0.6, 0.8], np.float32)
    assert np.array_equal(embed_texts(recorded([vector.tolist()]), ["a"], model="m").vectors[0], vector)


def test_a_vector_without_direction_is_named_by_its_text() -> None:
    with pytest.raises(VectorError, match="the vector of text 1 by model m has length 0"):
        embed_texts(recorded([[1.0, 0.0], [0.0, 0.0]]), ["a", "b"], model="m")


def test_no_texts_have_no_width() -> None:
    with pytest.raises(VectorError, match="there are no texts to embed"):
        embed_texts(recorded([]), [], model="m")


def test_what_is_no_text_is_named_by_its_place() -> None:
    with LocalWorker(device="cpu") as worker, pytest.raises(ItemError, match=r"item 1 must be text\. Got int"):
        embed_texts(worker, ["a", 3], model="default")  # type: ignore[list-item]


@pytest.mark.parametrize(
    "source", ["default", "embedded:all-MiniLM-L6-v2", str(MINILM), str(MINILM / "tokenizer.json")]
)
def test_tokens_are_counted_whole_and_with_special_tokens(source: str) -> None:
    assert count_tokens(source, ["one", "word " * 300, ""]).tolist() == [3, 302, 2]
    assert token_counts(open_tokenizer(source), []).dtype == np.int32


def test_counting_needs_no_weights(tmp_path: Path) -> None:
    inner = tmp_path / "0_Transformer"
    inner.mkdir()
    shutil.copy(MINILM / "tokenizer.json", inner)
    modules = [{"type": "x.Transformer", "path": "0_Transformer"}, {"type": "x.Pooling", "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert count_tokens(str(tmp_path), ["one"]).tolist() == [3]


def test_the_digest_of_a_tokenizer_is_that_of_its_file() -> None:
    expected = hashlib.sha256((MINILM / "tokenizer.json").read_bytes()).hexdigest()
    assert tokenizer_digest("default") == expected


def test_a_source_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"{tmp_path} has no tokenizer\.json"):
        count_tokens(str(tmp_path), ["a"])


def test_embedding_imports_nothing_that_a_bare_gpu_host_lacks() -> None:
    lines = [
        "import sys",
        "from datapipe.embedding.text import embed_texts",
        "from datapipe.workers.worker import LocalWorker",
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules",
        "with LocalWorker(device='cpu') as worker:",
        "    embed_texts(worker, ['a'], model='default')",
        "absent = {'polars', 'prefect', 'langchain_core', 'sklearn', 'pydantic', 'typer', 'fastapi', 'ray'}",
        "assert not absent & sys.modules.keys(), absent & sys.modules.keys()",
        "assert 'transformers' not in sys.modules",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True)
