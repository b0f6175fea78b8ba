"""The embedded model against the official one, and ours against sentence-transformers on the same weights.

`data/minilm_reference.parquet` holds vectors that sentence-transformers made with the official float32 weights
(scripts/reference_vectors.py), of texts that the int8 weights were not rounded with.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from datapipe.errors import ItemError, ModelError, WorkerError
from datapipe.weights import embedded_folder
from datapipe.workers.folder import ModelFolder
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.embed import Embedding, EmbedTask, TextItem
from datapipe.workers.worker import LocalWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from datapipe.workers.spec import DtypeName

MINILM = embedded_folder("all-MiniLM-L6-v2")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reference() -> pa.Table:
    return pq.read_table(Path(__file__).parent / "data" / "minilm_reference.parquet")


@pytest.fixture(scope="module")
def texts(reference: pa.Table) -> list[str]:
    found: list[str] = reference["text"].to_pylist()
    return found


@pytest.fixture(scope="module")
def official(reference: pa.Table) -> np.ndarray:
    return np.array(reference["vector"].to_pylist(), np.float32)


def embed(
    texts: list[str], *, dtype: DtypeName = "float32", source: str = "embedded:all-MiniLM-L6-v2"
) -> list[Embedding]:
    with LocalWorker([ModelSpec("m", source, dtype=dtype)], device="cpu") as worker:
        return worker.run("embed", [TextItem(text) for text in texts], model="m")


def vectors_of(results: list[Embedding]) -> np.ndarray:
    return np.stack([result.vector for result in results])


def test_a_text_becomes_a_unit_vector_with_its_tokens() -> None:
    (result,) = embed(["Prune the data you train on."])
    assert result.vector.shape == (384,)
    assert result.vector.dtype == np.float32
    assert np.linalg.norm(result.vector) == pytest.approx(1, abs=1e-6)
    assert (result.tokens, result.truncated) == (10, False)


def test_int8_weights_give_the_vectors_of_the_official_model(texts: list[str], official: np.ndarray) -> None:
    cosines = (vectors_of(embed(texts)) * official).sum(axis=1)
    assert cosines.min() >= 0.999
    assert cosines.mean() >= 0.9997


def test_tokens_and_truncation_are_those_of_the_official_model(texts: list[str], reference: pa.Table) -> None:
    results = embed(texts)
    assert [result.tokens for result in results] == reference["tokens"].to_pylist()
    assert [result.truncated for result in results] == [tokens > 256 for tokens in reference["tokens"].to_pylist()]
    assert any(result.truncated for result in results)


def test_bfloat16_points_the_same_way(texts: list[str]) -> None:
    chosen = [text for text in texts if len(text) < 120][:12]
    exact, rounded = vectors_of(embed(chosen)), vectors_of(embed(chosen, dtype="bfloat16"))
    assert (exact * rounded).sum(axis=1).min() >= 0.9999


@pytest.mark.filterwarnings("default")
def test_ours_equals_sentence_transformers_on_the_same_weights(texts: list[str], tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    shutil.copytree(MINILM, tmp_path, dirs_exist_ok=True)
    save_file(ModelFolder("m", MINILM).tensors(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    ours = vectors_of(embed(texts))
    assert np.abs(ours - theirs).max() <= 1e-4
    assert (ours * theirs).sum(axis=1).min() >= 0.9999
    assert np.array_equal(ours, vectors_of(embed(texts, source=str(tmp_path))))


def test_the_company_of_other_texts_moves_a_vector_by_rounding_only(texts: list[str]) -> None:
    together = vectors_of(embed(texts[:12]))
    alone = np.concatenate([vectors_of(embed([text])) for text in texts[:12]])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_max_length_of_the_spec_cuts_texts_and_never_exceeds_the_positions(tiny_bert: Callable[..., Path]) -> None:
    source, text = str(tiny_bert()), "word " * 60
    specs = [ModelSpec("short", source, max_length=5), ModelSpec("long", source, max_length=1000)]
    with LocalWorker(specs, device="cpu") as worker:
        for name in ("short", "long"):
            (result,) = worker.run("embed", [TextItem(text)], model=name)
            assert (result.tokens, result.truncated) == (62, True)
    task = EmbedTask.open(ModelFolder("m", Path(source)), spec=specs[1], device=CPU, dtype=torch.float32)
    assert task.prepare(TextItem(text)).length == 40


def test_other_architectures_run_the_same_task(tiny_foreign: Callable[[str], Path]) -> None:
    results = embed(["a text", "another, longer text", "a text"], source=str(tiny_foreign("mpnet")))
    np.testing.assert_allclose(results[0].vector, results[2].vector, rtol=0, atol=1e-6)
    assert np.abs(results[0].vector - results[1].vector).max() > 1e-3


def test_what_is_no_text_item_is_refused_by_its_index() -> None:
    with (
        LocalWorker(device="cpu") as worker,
        pytest.raises(ItemError, match=r"item 1 must be a TextItem\. Got str") as e,
    ):
        worker.run("embed", [TextItem("a"), "b"], model="default")
    assert e.value.index == 1


def test_a_model_that_gives_nan_is_refused(tiny_bert: Callable[..., Path]) -> None:
    folder = tiny_bert()
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][9000:] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WorkerError, match=r"FloatingPointError: the vector of text \d of the batch is not finite"):
        embed(["a the", "pruning secateurs"], source=str(folder))
    assert len(embed(["a the"], source=str(folder))) == 1


def test_a_tokenizer_with_more_tokens_than_the_encoder_is_refused(tiny_bert: Callable[..., Path]) -> None:
    folder = tiny_bert(config={"vocab_size": 1000})
    with pytest.raises(ModelError, match=r"tokenizer\.json has 30522 tokens, but the encoder only 1000"):
        embed(["a"], source=str(folder))
