"""Reranking by the cosine of a served embedder, on the embedded model and real questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, lists, sampled_from, tuples

from datapipe.errors import ConfigError, ItemError
from datapipe.weights import embedded_folder
from datapipe.workers.folder import ModelFolder
from datapipe.workers.spec import DEFAULT_EMBEDDER, ModelSpec
from datapipe.workers.tasks.embed import EmbedTask, TextItem
from datapipe.workers.tasks.rerank import RerankItem, RerankScore, RerankTask
from datapipe.workers.worker import LocalWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

WORDS = ["a", "pruning", "secateur", "garden tools", "bank card", "how do I cut a rose?", ""]
MINILM = ModelFolder("m", embedded_folder("all-MiniLM-L6-v2"))
MODEL = ModelSpec("m", "embedded:all-MiniLM-L6-v2", dtype="float32")


class Counting:
    """An embedder that notes what it computes."""

    def __init__(self, base: Any, *, padded: bool) -> None:
        self.base, self.padded, self.nbytes = base, padded, base.nbytes
        self.prepared: list[int] = []
        self.computed: list[int] = []

    def prepare_many(self, items: Sequence[Any], *, first: int = 0) -> Any:
        self.prepared.append(len(items))
        return self.base.prepare_many(items, first=first)

    def forward(self, batch: Sequence[Any]) -> Any:
        self.computed.append(len(batch))
        assert [each.length for each in batch] == sorted((each.length for each in batch), reverse=True)
        return self.base.forward(batch)


@pytest.fixture(scope="module")
def base() -> EmbedTask:
    return EmbedTask.open(MINILM, spec=DEFAULT_EMBEDDER, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def items(data: Path) -> list[RerankItem]:
    rows = pq.read_table(data / "squad20_dev.parquet", columns=["question", "context"])
    found = rows.filter(np.arange(len(rows)) % 400 == 0).to_pylist()[:6]
    return [RerankItem(one["question"], other["context"]) for one in found for other in found]


def run(items: list[RerankItem], *, model: ModelSpec = MODEL) -> list[RerankScore]:
    with LocalWorker([model], device="cpu") as worker:
        return worker.run("rerank", items, model="m")


def cosines(items: list[RerankItem]) -> np.ndarray:
    with LocalWorker([MODEL], device="cpu") as worker:
        one, two = (
            np.stack([each.vector for each in worker.run("embed", [TextItem(text) for text in texts], model="m")])
            for texts in ([item.query for item in items], [item.document for item in items])
        )
    return np.asarray((one * two).sum(axis=1))


def score(task: RerankTask, items: Sequence[RerankItem]) -> list[RerankScore]:
    prepared = task.prepare_many(items)
    return [task.finish(raw, each) for raw, each in zip(task.forward(prepared), prepared, strict=True)]


def test_the_document_that_answers_comes_first() -> None:
    query = "how do I prune a rose?"
    best, worst = run([RerankItem(query, "Cut rose stems above a bud."), RerankItem(query, "My card was declined.")])
    assert -1 <= worst.score < best.score <= 1
    assert (best.tokens, best.truncated) == (10 + 9, False)


def test_scores_are_the_cosines_of_the_embeddings(items: list[RerankItem]) -> None:
    results = run(items)
    np.testing.assert_allclose([result.score for result in results], cosines(items), rtol=0, atol=1e-5)
    by_query = np.array([result.score for result in results]).reshape(6, 6)
    assert (by_query.argmax(axis=1) == np.arange(6)).all()


@settings(max_examples=25)
@given(pairs=lists(tuples(sampled_from(WORDS), sampled_from(WORDS)), min_size=1, max_size=12), cut=integers(0, 12))
def test_the_company_of_other_items_moves_a_score_by_rounding_only(
    base: EmbedTask, pairs: list[tuple[str, str]], cut: int
) -> None:
    task = RerankTask.over(base)  # type: ignore[arg-type]
    items = [RerankItem(*pair) for pair in pairs]
    together = [result.score for result in score(task, items)]
    parts = [part for part in (items[:cut], items[cut:]) if part]
    apart = [result.score for part in parts for result in score(task, part)]
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-5)
    assert all(-1 <= each <= 1 for each in together)


@pytest.mark.parametrize("padded", [False, True])
def test_a_text_that_a_batch_holds_twice_is_computed_once(base: EmbedTask, padded: bool) -> None:  # noqa: FBT001
    counting = Counting(base, padded=padded)
    items = [RerankItem("a query", f"document number {place // 2}") for place in range(10)]
    results = score(RerankTask.over(counting), items)  # type: ignore[arg-type]
    assert counting.computed == ([1, 5] if padded else [6])
    assert counting.prepared == [1, 10]
    assert results == score(RerankTask.over(base), items)  # type: ignore[arg-type]


def test_the_length_is_what_both_texts_cost_at_most(base: EmbedTask) -> None:
    task = RerankTask.over(base)  # type: ignore[arg-type]
    one = task.prepare(RerankItem("a query", "a document"))
    assert one.length == 8
    assert (task.padded, task.nbytes, task.dim, task.reranks, task.derives_from) == (
        False,
        base.nbytes,
        0,
        True,
        "embed",
    )
    cut = task.prepare(RerankItem("a", "word " * 400))
    assert cut.length == 3 + 256
    (result,) = score(task, [RerankItem("a", "word " * 400)])
    assert (result.tokens, result.truncated) == (3 + 402, True)


def test_an_embedder_that_pads_and_does_not_normalise_reranks_too(tiny_foreign: Callable[[str], Path]) -> None:
    folder = tiny_foreign("mpnet")
    (folder / "modules.json").write_text(
        '[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "pooling"}]'
    )
    (folder / "pooling").mkdir()
    (folder / "pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    model = ModelSpec("m", str(folder), dtype="float32")
    same, other = run([RerankItem("a b", "a b"), RerankItem("a b", "the secateurs")], model=model)
    assert same.score == pytest.approx(1, abs=1e-5)
    assert other.score < same.score


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("text", r"item 2 must be a RerankItem of texts\. Got str"),
        (RerankItem(3, "a"), r"item 2 must be a RerankItem of texts\. Got int"),  # type: ignore[arg-type]
        (RerankItem("a", None), r"item 2 must be text\. Got NoneType"),  # type: ignore[arg-type]
        (RerankItem("\ud800", "a"), "item 2 holds half a surrogate pair"),
        (RerankItem("a", "\ud800"), "item 2 holds half a surrogate pair"),
    ],
)
def test_what_is_no_text_is_refused_by_its_index(item: Any, message: str) -> None:
    with pytest.raises(ItemError, match=message) as caught:
        run([RerankItem("a", "b"), RerankItem("a", "b"), item])
    assert caught.value.index == 2


def test_a_model_for_another_task_does_not_rerank() -> None:
    model = ModelSpec("m", "embedded:all-MiniLM-L6-v2", task="classify")
    with pytest.raises(ConfigError, match="model m is for the task 'classify', not for 'rerank'"):
        run([RerankItem("a", "b")], model=model)
