"""What a causal teacher says of each token, against transformers' own logits, all at once and in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datapipe.distill.codec import draw_points, encode, entropies, log_softmax
from datapipe.distill.header import SoftLabelHeader, Teacher
from datapipe.errors import ConfigError, ItemError, WorkerError
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.teach import TeachItem, TokenTeaching
from datapipe.workers.wire import from_arrow, to_arrow
from datapipe.workers.worker import LocalWorker
from tests.workers.tiny import text_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from datapipe.storage.arrays import Float64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teacher")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return text_folder(folder, "llama", mapping="MODEL_FOR_CAUSAL_LM_MAPPING")


@pytest.fixture(scope="module")
def worker(folder: Path, model: Any) -> Iterator[LocalWorker]:
    with LocalWorker([ModelSpec("m", str(folder), task="causal", dtype="float32")], device="cpu") as started:
        yield started


@pytest.fixture(scope="module")
def items(data: Path) -> list[TeachItem]:
    rows = pq.read_table(data / "dolly_3k.parquet").slice(0, 6).to_pylist()
    return [
        TeachItem(row["output"][:90], row["instruction"][:60] if place % 2 else "", bytes([place]) * 16)
        for place, row in enumerate(rows)
    ]


def wanting(items: list[TeachItem], **what: int) -> list[TeachItem]:
    return [TeachItem(item.text, item.context, item.row, **what) for item in items]


def dense(model: Any, found: TokenTeaching) -> Float64:
    """Log probabilities at the scored places, by transformers."""
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(found.sequence.astype(np.int64))[None]).logits[0]
    return log_softmax(logits.float().numpy()[found.begin - 1 : -1])


def test_the_most_probable_tokens_and_the_mass_of_the_rest_are_those_of_all_logits(
    model: Any, worker: LocalWorker, items: list[TeachItem]
) -> None:
    for found in worker.run("teach", wanting(items, k=5), model="m"):
        exact = dense(model, found)
        scored = found.sequence[found.begin :]
        ids, values = found.ids.reshape(-1, 5), found.values.reshape(-1, 5)
        assert len(scored) == len(exact) == len(ids) > 0
        assert found.log_probabilities == pytest.approx(exact[np.arange(len(scored)), scored], abs=1e-4)
        assert found.entropy == pytest.approx(entropies(exact), abs=1e-3)
        assert values == pytest.approx(np.sort(exact, axis=1)[:, :-6:-1], abs=1e-4)
        assert values == pytest.approx(np.take_along_axis(exact, ids, axis=1), abs=1e-4)
        rest = 1 - np.exp(np.take_along_axis(exact, ids, axis=1)).sum(axis=1)
        assert np.exp(found.tail) == pytest.approx(rest, abs=1e-4)


def test_draws_are_those_of_the_store_at_the_same_points(
    model: Any, worker: LocalWorker, items: list[TeachItem]
) -> None:
    for found, item in zip(worker.run("teach", wanting(items, draws=8, seed=3), model="m"), items, strict=True):
        exact = dense(model, found)
        row = np.tile(np.frombuffer(item.row, ">u8").astype(np.uint64), (len(exact), 1))
        points = draw_points(row, np.arange(len(exact)), draws=8, seed=3)
        running = np.exp(exact).cumsum(axis=1)
        pairs = zip(running, points, strict=True)
        wanted = [np.searchsorted(sums, each * sums[-1], side="right") for sums, each in pairs]
        same = found.ids.reshape(-1, 8) == np.array(wanted)
        assert same.mean() > 0.999  # a point within rounding of an edge may fall on either side
        assert len(found.tail) == len(found.values) == 0
        header = SoftLabelHeader(
            level="token",
            mode="sampled",
            classes=exact.shape[1],
            teachers=(Teacher("m", "0"),),
            preprocessing="",
            tokenizer="t",
            draws=8,
            seed=3,
        )
        stored = encode(exact, header, row_ids=row, places=np.arange(len(exact)))
        assert len(stored) == len(exact)


def test_what_is_said_of_a_text_does_not_depend_on_its_company(worker: LocalWorker, items: list[TeachItem]) -> None:
    together = worker.run("teach", wanting(items, k=3), model="m")
    alone = [worker.run("teach", [item], model="m")[0] for item in wanting(items, k=3)]
    for one, two in zip(together, alone, strict=True):
        assert one.values == pytest.approx(two.values, abs=1e-4)


def test_items_and_results_travel_between_processes(worker: LocalWorker, items: list[TeachItem]) -> None:
    from datapipe.workers.tasks.teach import TeachTask

    asked = wanting(items, draws=4)
    assert from_arrow(to_arrow(asked, TeachTask.item_schema()), TeachTask.item_schema(), TeachItem) == asked
    found = worker.run("teach", asked, model="m")
    schema = TeachTask.result_schema()
    for one, two in zip(from_arrow(to_arrow(found, schema), schema, TokenTeaching), found, strict=True):
        assert np.array_equal(one.ids, two.ids)
        assert np.array_equal(one.values, two.values)
        assert (one.begin, one.tokens, one.truncated) == (two.begin, two.tokens, two.truncated)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ({"k": 3, "draws": 3}, "one of them. Got k 3, draws 3"),
        ({}, "one of them. Got k 0, draws 0"),
        ({"k": 30_523}, "the 30,523 most probable of 30,522 tokens"),
    ],
)
def test_wanting_nothing_both_or_too_much_is_refused(
    worker: LocalWorker, items: list[TeachItem], what: dict[str, int], told: str
) -> None:
    with pytest.raises(ItemError, match=f"item 0 wants .*{told}"):
        worker.run("teach", wanting(items, **what), model="m")


def test_a_row_without_a_name_of_16_bytes_and_a_text_without_tokens_are_refused(worker: LocalWorker) -> None:
    with pytest.raises(ItemError, match="must name its row by 16 bytes"):
        worker.run("teach", [TeachItem("a", "", b"12", k=2)], model="m")
    with pytest.raises(ItemError, match="item 1 has no tokens to score"):
        good = TeachItem("a text", "", b"0" * 16, k=2)
        worker.run("teach", [good, TeachItem("", "", b"0" * 16, k=2)], model="m")


def test_a_teacher_whose_logits_are_no_numbers_is_refused(tmp_path: Path, items: list[TeachItem]) -> None:
    text_folder(tmp_path, "llama", mapping="MODEL_FOR_CAUSAL_LM_MAPPING")
    with LocalWorker([ModelSpec("m", str(tmp_path), task="causal", dtype="float32")], device="cpu") as worker:
        causal: Any = worker.load("m", task="causal").task
        causal.model._body.norm.weight.data[3] = float("nan")
        with pytest.raises(WorkerError, match="what follows a token of item 0 of the batch is not finite"):
            worker.run("teach", wanting(items[:1], k=2), model="m")


def test_several_models_together_can_teach_and_nothing_else(folder: Path) -> None:
    with pytest.raises(ConfigError, match="several models together can teach, model m is for the task 'causal'"):
        ModelSpec("m", str(folder), task="causal", beside=("another",))
