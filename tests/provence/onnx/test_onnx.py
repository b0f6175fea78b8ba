"""Pruning without torch: the same tensors, nearly the same numbers, the same answers as every other worker."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from datapipe.errors import (
    ConfigError,
    DeadlineError,
    ItemError,
    MissingExtraError,
    ModelError,
    ModelNotFoundError,
    OverloadedError,
    WorkerError,
    WorkerStoppedError,
)
from datapipe.weights import embedded_folder
from datapipe.workers import LocalWorker, ModelSpec, Priority, RerankItem
from datapipe.workers.folder import ModelFolder
from provence.families.delta import encode_delta
from provence.families.native import NativeConfig, native_conduct, open_native, write_native
from provence.onnx import OnnxWorker, export_onnx
from provence.onnx.command import export
from provence.onnx.engine import OnnxModel
from provence.onnx.graph import build_graph, quantised_rows
from provence.onnx.layout import open_exported
from provence.onnx.outliers import WIDE_CHANNELS, wide_channels
from provence.onnx.read import read_native
from provence.pruner import Pruner
from provence.task import PruneItem
from provence.tokens import UnitTokenizer
from tests.provence.conftest import BASE
from tests.provence.families.checkpoints import batch_of, edit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.provence.conftest import Sample

MARGIN = 0.01
"""How far int8 may move the probability of a unit."""


@pytest.fixture(scope="module")
def worker(pruner_folder: Path) -> Iterator[OnnxWorker]:
    with OnnxWorker(pruner_folder, name="random-pruner", threads=2) as found:
        yield found


@pytest.fixture(scope="module")
def items(samples: list[Sample]) -> list[PruneItem]:
    return [PruneItem(sample.question, sample.text) for sample in samples[:24]]


def probabilities(results: Sequence[Any]) -> Any:
    return np.concatenate([result.probabilities for result in results])


# The same model.


@pytest.mark.parametrize("delta", [None, "int4", pytest.param("int8", marks=pytest.mark.slow)])
def test_tensors_are_read_bit_for_bit_as_torch_reads_them(tmp_path: Path, delta: Any) -> None:
    base = ModelFolder(BASE, embedded_folder(BASE))
    tensors, generator = base.tensors(), torch.Generator().manual_seed(0)
    tuned = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) if "layer.1." in name else tensor
        for name, tensor in tensors.items()
    }
    stored = {} if delta is None else encode_delta(tensors, tuned, bits=int(delta[3:]))  # type: ignore[arg-type]
    heads = {"keep.weight": torch.randn(2, 384), "keep.bias": torch.randn(2).bfloat16()}
    heads |= {"score.weight": torch.randn(1, 384).half(), "score.bias": torch.zeros(1)}
    given = heads | {f"delta.{name}": tensor for name, tensor in stored.items()}
    config = NativeConfig(base=f"embedded:{BASE}", base_digest=base.digest, delta=delta)
    write_native(tmp_path / "m", config=config, tensors=given, tokenizer=base.root / "tokenizer.json")
    folder = ModelFolder("m", tmp_path / "m")
    found = read_native(folder)
    from provence.families.native import _encoder_of

    inside = {name: tensor for name, tensor in folder.tensors().items() if name.startswith("delta.")}
    for name, expected in _encoder_of(folder, config, inside).tensors().items():
        np.testing.assert_array_equal(found.encoder[name], expected.numpy(), err_msg=name)
    difference = (heads["keep.weight"][1:] - heads["keep.weight"][:1]).numpy()
    np.testing.assert_array_equal(found.heads["keep.weight"], difference)
    np.testing.assert_array_equal(found.heads["score.weight"], heads["score.weight"].float().numpy())


def test_an_encoder_that_stands_alone_is_read_too(tmp_path: Path) -> None:
    base = ModelFolder(BASE, embedded_folder(BASE))
    tensors = {f"encoder.{name}": tensor for name, tensor in base.tensors().items()}
    tensors |= {"keep.weight": torch.randn(1, 384), "keep.bias": torch.zeros(1)}
    tensors |= {"score.weight": torch.randn(1, 384), "score.bias": torch.zeros(1)}
    config = NativeConfig(encoder=base.config(), max_length=64)
    write_native(tmp_path / "m", config=config, tensors=tensors, tokenizer=base.root / "tokenizer.json")
    with OnnxWorker(tmp_path / "m") as worker:
        assert worker.load(str(tmp_path / "m")).max_length == 64


def test_codes_and_factors_give_the_weight_back_within_half_a_step() -> None:
    weight = np.random.default_rng(0).normal(size=(7, 40)).astype(np.float32)
    weight[3] = 0
    codes, steps = quantised_rows(weight)
    assert codes.dtype == np.int8
    assert (np.abs(codes * steps[:, None] - weight) <= steps[:, None] * 0.5001).all()


def test_a_table_of_int8_codes_is_kept_as_it_is() -> None:
    table = ModelFolder(BASE, embedded_folder(BASE)).tensors()["embeddings.word_embeddings.weight"].numpy()
    codes, steps = quantised_rows(table)
    np.testing.assert_allclose(codes * steps[:, None], table, rtol=1e-6)


def test_probabilities_and_scores_are_nearly_those_of_torch(
    worker: OnnxWorker, pruner_worker: LocalWorker, items: list[PruneItem]
) -> None:
    found = worker.run("prune", items, model="random-pruner")
    expected = pruner_worker.run("prune", items, model="random-pruner")
    difference = np.abs(probabilities(found) - probabilities(expected))
    assert difference.max() < MARGIN
    assert difference.mean() < MARGIN / 3
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("starts", "ends", "parents", "lengths"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        assert (mine.kinds, mine.tokens, mine.truncated) == (theirs.kinds, theirs.tokens, theirs.truncated)
        assert (mine.rule, mine.threshold, mine.shares) == (theirs.rule, theirs.threshold, theirs.shares)
    scores = np.array([[mine.score, theirs.score] for mine, theirs in zip(found, expected, strict=True)])
    assert np.corrcoef(scores.T)[0, 1] > 0.99


def test_decisions_differ_only_where_the_probability_is_near_the_threshold(
    worker: OnnxWorker, pruner: Pruner, samples: list[Sample]
) -> None:
    mine = Pruner.load("random-pruner", worker=worker)
    for sample in samples[:12]:
        (found,) = mine.prune(sample.question, [sample.text], threshold=0.5)
        (expected,) = pruner.prune(sample.question, [sample.text], threshold=0.5)
        for ours, theirs in zip(found.sentences, expected.sentences, strict=True):
            assert ours.kept == theirs.kept or abs(theirs.keep_probability - 0.5) < MARGIN


def test_token_probabilities_are_those_of_the_float_model_but_for_int8(pruner_folder: Path) -> None:
    folder = ModelFolder("m", pruner_folder)
    windows = batch_of((7, 31, 2, 120))
    cpu = torch.device("cpu")
    expected = open_native(folder, conduct=native_conduct(folder), device=cpu, dtype=torch.float32).heads(windows)
    keep, scores = OnnxModel(open_exported(folder), name="m").heads(windows)
    found = np.concatenate(keep)
    assert np.corrcoef(found, expected.keep.numpy())[0, 1] > 0.998
    np.testing.assert_allclose(scores, expected.scores.numpy(), atol=0.2)


def test_wide_channels_in_float32_halve_the_error(pruner_folder: Path, samples: list[Sample]) -> None:
    folder = ModelFolder("m", pruner_folder)
    exported, pruner = open_exported(folder), read_native(folder)
    tokenizer = UnitTokenizer(folder)
    wide = wide_channels(pruner, tokenizer)
    assert {name.rpartition(".")[2] for name in wide} == {"LayerNorm", "dense"}
    assert all(len(set(channels)) == WIDE_CHANNELS for channels in wide.values())
    windows = [tokenizer.encode([sample.text])[0].ids[:120] for sample in samples[:32:8]]
    cpu = torch.device("cpu")
    expected = open_native(folder, conduct=native_conduct(folder), device=cpu, dtype=torch.float32).heads(windows)

    def error(graph: bytes) -> float:
        keep, _ = OnnxModel(replace(exported, graph=graph), name="m").heads(windows)
        return float(np.abs(np.concatenate(keep) - expected.keep.numpy()).mean())

    assert error(exported.graph) < error(build_graph(pruner, {})) / 2


def test_a_window_has_the_same_bits_alone_and_beside_others(pruner_folder: Path) -> None:
    model = OnnxModel(open_exported(ModelFolder("m", pruner_folder)), name="m")
    windows = batch_of((7, 31, 2, 120))
    together, scores = model.heads(windows)
    for window, keep, score in zip(windows, together, scores, strict=True):
        (alone,), (single,) = model.heads([window])
        np.testing.assert_array_equal(keep, alone)
        assert score == single


def test_the_share_rule_counts_tokens_above_the_threshold(tmp_path: Path, pruner_folder: Path) -> None:
    folder = shutil.copytree(pruner_folder, tmp_path / "m")
    edit(folder, rule="share", threshold=0.45)
    item = PruneItem("Who?", "One two three. Four five six seven.")
    with OnnxWorker(folder) as worker, LocalWorker([ModelSpec("m", str(folder), task="prune")], device="cpu") as torch_:
        (found,), (expected,) = (
            worker.run("prune", [item], model=str(folder)),
            torch_.run("prune", [item], model="m"),
        )
    assert found.rule == "share"
    assert found.shares is not None
    np.testing.assert_allclose(found.shares, expected.shares, atol=0.26)


# The same contract.


def test_long_texts_are_cut_into_windows_and_put_together(worker: OnnxWorker, pruner: Pruner, samples: Any) -> None:
    text = " ".join(sample.text for sample in samples[::8])
    (found,), (expected,) = (
        worker.run("prune", [PruneItem("When did it begin?", text)], model="random-pruner"),
        pruner.scores("When did it begin?", [text]),
    )
    assert len(found.lengths) == len(expected.lengths) > 20
    assert np.abs(found.probabilities - expected.probabilities).max() < MARGIN


def test_results_depend_on_nothing_but_the_items(worker: OnnxWorker, items: list[PruneItem]) -> None:
    whole = worker.run("prune", items, model="random-pruner")
    for place in (0, 11, 23):
        (alone,) = worker.run("prune", [items[place]], model="random-pruner", priority=Priority.ONLINE)
        np.testing.assert_array_equal(alone.probabilities, whole[place].probabilities)
        assert alone.score == whole[place].score


async def test_asynchronous_calls_give_the_same(worker: OnnxWorker, items: list[PruneItem]) -> None:
    expected = worker.run("prune", items, model="random-pruner")
    calls = [worker.arun("prune", items, model="random-pruner", priority=priority) for priority in Priority]
    for found in await asyncio.gather(*calls):
        np.testing.assert_array_equal(probabilities(found), probabilities(expected))


def test_reranking_is_the_score_of_the_same_pass(worker: OnnxWorker, items: list[PruneItem]) -> None:
    pairs = [RerankItem(item.question, item.text) for item in items[:5]]
    ranked = worker.run("prune_rerank", pairs, model="random-pruner")
    pruned = worker.run("prune", items[:5], model="random-pruner")
    assert [each.score for each in ranked] == pytest.approx([1 / (1 + np.exp(-each.score)) for each in pruned])
    assert [each.tokens for each in ranked] == [each.tokens for each in pruned]
    (cut,) = worker.run("prune_rerank", [RerankItem("Who?", "Rain fell. " * 4000)], model="random-pruner")
    assert cut.truncated


def test_nothing_in_gives_nothing_and_an_empty_text_no_units(worker: OnnxWorker) -> None:
    assert worker.run("prune", [], model="random-pruner") == []
    (found,) = worker.run("prune", [PruneItem("Who?", "")], model="random-pruner")
    assert len(found.probabilities) == 0


def test_many_items_are_done_in_order(pruner_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provence.onnx.passes.CHUNK_ITEMS", 7)
    texts = [" ".join(["word"] * (1 + place % 5)) + "." for place in range(60)]
    with OnnxWorker(pruner_folder, name="m") as worker:
        found = worker.run("prune", [PruneItem("Who?", text) for text in texts], model="m")
    assert [int(each.ends[-1]) for each in found] == [len(text) for text in texts]


def test_an_unusable_item_is_named_by_its_place_in_the_call(
    worker: OnnxWorker, items: list[PruneItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provence.onnx.passes.CHUNK_ITEMS", 10)
    with pytest.raises(ItemError) as caught:
        worker.run("prune", [*items[:15], PruneItem("long " * 200, "x")], model="random-pruner")
    assert caught.value.index == 15
    with pytest.raises(ItemError, match="item 1 must be a RerankItem"):
        worker.run("prune_rerank", [RerankItem("a", "b"), PruneItem("a", "b")], model="random-pruner")


def test_unknown_models_and_tasks_are_refused_with_those_there_are(worker: OnnxWorker) -> None:
    with pytest.raises(ModelError, match="knows no model 'other', only 'random-pruner'"):
        worker.run("prune", [], model="other")
    with pytest.raises(ConfigError, match="no task 'embed' on this worker; known are prune, prune_rerank"):
        worker.run("embed", [], model="random-pruner")
    with pytest.raises(ConfigError, match="'threads' parameter"):
        OnnxWorker("x", threads=0)


class Held:
    """Stands in the way of the computation until it is let go; notes the tokens of what is computed, in order."""

    def __init__(self, worker: OnnxWorker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.free = threading.Event(), threading.Event()
        self.lengths: list[int] = []
        real = worker._model.heads

        def heads(windows: Any) -> Any:
            self.begun.set()
            self.lengths.append(sum(map(len, windows)))
            assert self.free.wait(60)
            return real(windows)

        monkeypatch.setattr(worker._model, "heads", heads)


@pytest.fixture
def single(pruner_folder: Path) -> Iterator[OnnxWorker]:
    with OnnxWorker(pruner_folder, name="m", threads=1, queue_items=2) as worker:
        yield worker


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.001)


ONE = [PruneItem("Who?", "She did.")]


def test_a_deadline_that_passes_ends_the_call(single: OnnxWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(single, monkeypatch)
    with pytest.raises(DeadlineError):
        single.run("prune", ONE, model="m", deadline=0.05)
    held.free.set()
    with pytest.raises(DeadlineError):
        single.run("prune", ONE, model="m", deadline=0)
    assert len(single.run("prune", ONE, model="m", deadline=60)) == 1


async def test_a_cancelled_call_leaves_the_queue(single: OnnxWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(single, monkeypatch)
    first = asyncio.create_task(single.arun("prune", ONE, model="m", priority=Priority.ONLINE))
    await asyncio.to_thread(held.begun.wait, 10)
    second = asyncio.create_task(single.arun("prune", ONE, model="m", priority=Priority.ONLINE))
    await asyncio.to_thread(wait_until, lambda: single.health().queued == 1)
    with pytest.raises(OverloadedError, match="2 items are in the worker"):
        await single.arun("prune", ONE, model="m", priority=Priority.ONLINE)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    held.free.set()
    assert len(await first) == 1
    assert len(await single.arun("prune", ONE, model="m", priority=Priority.ONLINE)) == 1


class Slow:
    """Stands in the way of preparing each slice of items until it is let go; counts the items."""

    def __init__(self, worker: OnnxWorker, monkeypatch: pytest.MonkeyPatch, *, fault: Exception | None = None) -> None:
        self.begun, self.free = threading.Event(), threading.Event()
        self.prepared = 0
        preparer = worker._passes._preparer
        real = preparer.prepare_many

        def prepare_many(items: Any, *, first: int = 0) -> Any:
            self.begun.set()
            assert self.free.wait(10)
            self.prepared += len(items)
            if fault is not None:
                raise fault
            return real(items, first=first)

        monkeypatch.setattr(preparer, "prepare_many", prepare_many)


def wait_for_preparers(worker: OnnxWorker) -> None:
    for future in [worker._preparers.submit(int) for _ in range(4)]:
        future.result(10)


async def test_what_was_given_up_is_not_prepared_to_its_end(
    single: OnnxWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(single, monkeypatch)
    with pytest.raises(DeadlineError):
        single.run("prune", ONE * 200, model="m", deadline=0.05)
    calls = [asyncio.create_task(single.arun("prune", ONE * 200, model="m")) for _ in range(3)]
    await asyncio.sleep(0.02)
    for call in calls:
        call.cancel()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(each) for each in ended} == {asyncio.CancelledError}
    slow.free.set()
    await asyncio.to_thread(wait_for_preparers, single)
    assert slow.prepared <= 2 * 32


async def test_a_fault_in_a_call_given_up_is_not_reported_to_the_event_loop(
    single: OnnxWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    slow = Slow(single, monkeypatch, fault=WorkerError("broken"))
    call = asyncio.create_task(single.arun("prune", ONE, model="m"))
    await asyncio.to_thread(slow.begun.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    slow.free.set()
    await asyncio.to_thread(wait_for_preparers, single)
    del call
    for _ in range(3):
        await asyncio.sleep(0)
        gc.collect()
    assert reported == []


def test_online_work_goes_before_bulk_work(single: OnnxWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(single, monkeypatch)

    def call(words: int, priority: Priority) -> threading.Thread:
        items = [PruneItem("Who?", " ".join(["she"] * words))]
        thread = threading.Thread(target=lambda: single.run("prune", items, model="m", priority=priority))
        thread.start()
        return thread

    threads = [call(1, Priority.BULK)]
    assert held.begun.wait(60)
    for words, priority in ((2, Priority.BULK), (3, Priority.ONLINE)):
        queued = single.health().queued
        threads.append(call(words, priority))
        wait_until(lambda queued=queued: single.health().queued > queued)  # type: ignore[misc]
    held.free.set()
    for thread in threads:
        thread.join()
    first = held.lengths[0]
    assert held.lengths == [first, first + 2, first + 1]


def test_a_closed_worker_says_so(pruner_folder: Path) -> None:
    worker = OnnxWorker(pruner_folder, name="m")
    assert worker.health().state == "ok"
    worker.close()
    worker.close()
    assert worker.health().state == "closed"
    with pytest.raises(WorkerStoppedError, match="closed"):
        worker.run("prune", ONE, model="m")


@pytest.mark.parametrize(
    ("fault", "error"),
    [(RuntimeError("no memory"), "onnxruntime failed on a batch"), (FloatingPointError("not finite"), "not finite")],
)
def test_a_fault_reaches_its_caller_only(
    single: OnnxWorker, monkeypatch: pytest.MonkeyPatch, fault: Exception, error: str
) -> None:
    def broken(windows: Any) -> Any:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(single._model, "heads", broken)
        with pytest.raises(WorkerError, match=error):
            single.run("prune", ONE, model="m")
    assert len(single.run("prune", ONE, model="m")) == 1


def test_numbers_that_are_not_finite_are_refused(single: OnnxWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(windows: Any) -> Any:
        return [np.full(len(ids), np.nan, np.float32) for ids in windows], np.zeros(len(windows), np.float32)

    monkeypatch.setattr(single._model, "heads", wrong)
    with pytest.raises(WorkerError, match="window 0 of the batch is not finite"):
        single.run("prune", ONE, model="m")


def test_a_pruner_makes_such_a_worker_of_its_own_and_survives_pickling(pruner_folder: Path, pruner: Pruner) -> None:
    text = "It began in 1973. Prices rose."
    with Pruner.load(pruner_folder, backend="onnx", max_length=64) as mine:
        (found,) = mine.scores("When did it begin?", [text])
        with pickle.loads(pickle.dumps(mine)) as copy:  # noqa: S301 - our own
            (again,) = copy.scores("When did it begin?", [text])
        assert mine.digest != pruner.digest
    np.testing.assert_array_equal(found.probabilities, again.probabilities)
    assert np.abs(found.probabilities - pruner.scores("When did it begin?", [text])[0].probabilities).max() < MARGIN


def test_what_the_backend_cannot_do_is_refused(pruner_folder: Path, worker: OnnxWorker) -> None:
    for options in ({"device": "cuda"}, {"dtype": "float32"}):
        with pytest.raises(ConfigError, match="the backend onnx computes in int8 on the CPU"):
            Pruner.load(pruner_folder, backend="onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"backend must be one of torch, onnx\. Got 'jax'"):
        Pruner.load(pruner_folder, backend="jax")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="backend are the worker's own matter"):
        Pruner.load("random-pruner", worker=worker, backend="onnx")


# Folders.


def test_an_exported_folder_gives_the_same_bits_and_digest(
    worker: OnnxWorker, pruner_folder: Path, items: list[PruneItem], tmp_path: Path
) -> None:
    report = export_onnx(pruner_folder, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").stat().st_size == report["graph_bytes"] < 25_000_000
    with OnnxWorker(tmp_path / "out", name="random-pruner") as exported:
        assert exported.load("random-pruner") == worker.load("random-pruner")
        found = exported.run("prune", items[:5], model="random-pruner")
    expected = worker.run("prune", items[:5], model="random-pruner")
    np.testing.assert_array_equal(probabilities(found), probabilities(expected))
    assert report["digest"] == worker.load("random-pruner").digest != report["source_digest"]
    with pytest.raises(ModelError, match=r"is an ONNX export.* load it with backend='onnx'"):
        Pruner.load(tmp_path / "out")


def test_a_damaged_or_foreign_folder_is_refused(pruner_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_onnx(pruner_folder, out)
    graph = (out / "model.onnx").read_bytes()
    (out / "model.onnx").write_bytes(graph[:-1])
    with pytest.raises(ModelError, match=r"model\.onnx is damaged"):
        OnnxWorker(out)
    (out / "model.onnx").unlink()
    with pytest.raises(ModelNotFoundError, match=r"has no model\.onnx"):
        OnnxWorker(out)
    with pytest.raises(ModelError, match="only pruners of our own layout run without torch"):
        OnnxWorker(f"embedded:{BASE}")
    with pytest.raises(ModelNotFoundError):
        OnnxWorker(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": 9}, "is of format 9, not 1"),
        ({"conduct": {"family": "native"}}, "is incomplete"),
        ({"vocabulary": 100}, "they do not belong together"),
    ],
)
def test_a_config_at_fault_is_refused(pruner_folder: Path, tmp_path: Path, change: Any, error: str) -> None:
    export_onnx(pruner_folder, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=error):
        OnnxWorker(tmp_path / "out")


def test_tensors_that_do_not_fit_are_named(tmp_path: Path, pruner_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    def changed(name: str, tensors: dict[str, torch.Tensor]) -> Path:
        folder = shutil.copytree(pruner_folder, tmp_path / name)
        save_file(tensors, folder / "model.safetensors")
        return folder

    tensors = load_file(pruner_folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"keep\.bias"):
        OnnxWorker(changed("a", {name: tensor for name, tensor in tensors.items() if name != "keep.bias"}))
    with pytest.raises(ModelError, match="stray"):
        OnnxWorker(changed("b", tensors | {"stray": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r"the difference for tensor nothing does not fit"):
        OnnxWorker(changed("c", tensors | {"delta.nothing": torch.zeros(1)}))
    with pytest.raises(ModelError, match="is not a readable safetensors file"):
        (tmp_path / "c" / "model.safetensors").write_bytes(b"no")
        OnnxWorker(tmp_path / "c")


def test_the_command_exports_and_says_how_to_use_it(pruner_folder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(export)
    done = CliRunner().invoke(app, [str(pruner_folder), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert f"Pruner.load('{tmp_path / 'out'}', backend=\"onnx\")" in done.stdout
    done = CliRunner().invoke(app, [str(pruner_folder), str(tmp_path / "out"), "--json"])
    assert json.loads(done.stdout)["graph_bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size


BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not installed")

sys.meta_path.insert(0, Refuse())
from provence import Pruner

with Pruner.load({folder!r}, backend="onnx") as pruner:
    (found,) = pruner.prune("When did it begin?", ["It began in 1973. Prices rose."], threshold=0.0)
    assert found.text == "It began in 1973. Prices rose.", found
    assert len(pruner.rerank("Who?", ["a", "b"])) == 2
assert not {{"torch", "transformers", "pandas"}} & set(sys.modules)
"""


def run_without(blocked: set[str], folder: Path) -> subprocess.CompletedProcess[str]:
    script = BLOCKED.format(blocked=sorted(blocked), folder=str(folder))
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_a_native_folder_is_pruned_with_where_torch_is_not_installed(pruner_folder: Path) -> None:
    done = run_without({"torch", "transformers"}, pruner_folder)
    assert done.returncode == 0, done.stderr


def test_an_exported_folder_needs_no_package_onnx_either(pruner_folder: Path, tmp_path: Path) -> None:
    export_onnx(pruner_folder, tmp_path / "out")
    done = run_without({"torch", "transformers", "onnx"}, tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_a_missing_extra_is_named_with_the_line_that_installs_it(
    pruner_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnxruntime", "onnx"):  # onnx is asked for first
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=rf"needs {package}.*secateur\[onnx\]"):
            OnnxWorker(pruner_folder)
