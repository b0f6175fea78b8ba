"""Small batches by graphs: which batches, on which threads, and the same vectors as without.

What the CPU cannot show: that a recording takes in all of the forward pass, and that lanes do not write into each
other's. Hence the tests marked gpu, which run the embedded model.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers, lists

from datapipe.weights import embedded_folder
from datapipe.workers.encoders import graphs, open_encoder
from datapipe.workers.encoders.bert import BertEncoder
from datapipe.workers.encoders.graphs import TEXTS, TOKENS, replaying
from datapipe.workers.folder import ModelFolder
from tests.workers.random_models import batch_of, random_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from datapipe.storage.arrays import Int32
    from datapipe.workers.encoders.attention import Spans

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")


def embedder(device: str, dtype: torch.dtype) -> BertEncoder:
    folder = ModelFolder("m", embedded_folder("all-MiniLM-L6-v2"))
    encoder = open_encoder(folder, device=torch.device(device), dtype=dtype)
    assert isinstance(encoder, BertEncoder)
    settle()
    return encoder


def settle() -> None:
    """Wait for the tensors of an encoder, which other streams are going to read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@given(lists(integers(1, 600), min_size=1, max_size=TEXTS + 2))
def test_a_small_batch_gets_the_least_room_that_holds_it(lengths: list[int]) -> None:
    size, tokens = graphs._Size.of(batch_of(lengths)), sum(lengths)
    assert (size is None) == (tokens > TOKENS[-1] or len(lengths) > TEXTS)
    if size is not None:
        assert size.tokens == min(room for room in TOKENS if room >= tokens)
        assert max(lengths) <= size.longest <= size.tokens


def test_on_the_cpu_nothing_changes() -> None:
    encoder, batch = embedder("cpu", torch.float32), batch_of([9, 4])
    plain = encoder.hidden(batch)
    with replaying(enabled=True):
        assert torch.equal(encoder.hidden(batch), plain)


def test_replaying_holds_for_its_own_thread_until_its_end() -> None:
    def here() -> bool:
        return getattr(graphs._here, "enabled", False)

    with replaying(enabled=True), ThreadPoolExecutor(1) as other:
        assert here()
        assert not other.submit(here).result()
        with replaying(enabled=False):
            assert not here()
        assert here()
    assert not here()


def in_a_lane(work: Callable[[], torch.Tensor], *, enabled: bool = True) -> torch.Tensor:
    with torch.cuda.stream(torch.cuda.Stream()), replaying(enabled=enabled):
        return work().cpu()


def same_direction(given_states: torch.Tensor, expected: torch.Tensor, *, least: float = 0.9995) -> None:
    assert torch.isfinite(given_states).all()
    assert torch.nn.functional.cosine_similarity(given_states.float().cpu(), expected.float().cpu()).min() > least


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("kind", ["embedded", "xlm-roberta", "modernbert"])
def test_replays_equal_eager_passes_whatever_was_replayed_before(tmp_path: Path, kind: str) -> None:
    encoder: Any
    exact: Any
    if kind == "embedded":
        encoder, exact = embedder("cuda", torch.bfloat16), embedder("cpu", torch.float32)
    else:
        folder = ModelFolder("m", random_model(tmp_path / "m", kind, max_position_embeddings=514))
        exact = open_encoder(folder, device=torch.device("cpu"), dtype=torch.float32)
        encoder = open_encoder(folder, device=torch.device("cuda"), dtype=torch.bfloat16)
        settle()
    batches = [batch_of(lengths, seed=n) for n, lengths in enumerate([[9], [3, 3], [200, 40, 7], [90] * 8, [9]] * 3)]

    def run() -> torch.Tensor:
        return torch.cat([encoder.hidden(batch) for batch in batches])

    replayed, eager = in_a_lane(run), in_a_lane(run, enabled=False)
    least = 0.9995 if kind == "embedded" else 0.99
    same_direction(replayed, eager, least=least)
    same_direction(replayed, torch.cat([exact.hidden(batch) for batch in batches]), least=0.99)
    assert encoder._replays._possible


@pytest.mark.gpu
@on_cuda
def test_only_small_batches_of_a_lane_of_its_own_are_recorded() -> None:
    encoder = embedder("cuda", torch.bfloat16)

    def recorded(batch: list[Int32]) -> int:
        encoder.hidden(batch)
        return sum(len(lane.graphs) for lane in encoder._replays._lanes.__dict__.get("lanes", {}).values())

    assert recorded(batch_of([5])) == 0
    with replaying(enabled=True):
        assert recorded(batch_of([5])) == 0  # on the default stream, which every thread shares
        with torch.cuda.stream(torch.cuda.Stream()):
            assert recorded(batch_of([512] * 5)) == 0
            assert recorded(batch_of([1] * (TEXTS + 1))) == 0
            assert recorded(batch_of([5])) == 1
            assert recorded(batch_of([6])) == 1
            assert recorded(batch_of([250])) == 2


@pytest.mark.gpu
@on_cuda
def test_the_graphs_of_a_lane_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_KEPT", 2)
    encoder = embedder("cuda", torch.bfloat16)
    batches = [batch_of([length], seed=length) for length in (5, 70, 130, 200, 5, 70, 130)]

    def run() -> torch.Tensor:
        return torch.cat([encoder.hidden(batch) for batch in batches])

    with torch.cuda.stream(torch.cuda.Stream()), replaying(enabled=True):
        replayed = run().cpu()
        (lane,) = encoder._replays._lanes.__dict__["lanes"].values()
        assert len(lane.graphs) == 2
    same_direction(replayed, in_a_lane(run, enabled=False))


@pytest.mark.gpu
@on_cuda
def test_lanes_record_and_replay_side_by_side_with_bulk_batches() -> None:
    encoder = embedder("cuda", torch.bfloat16)
    bulk = batch_of([200] * 300, seed=9)
    expected_bulk = encoder.hidden(bulk).cpu()
    small = [batch_of([length] * texts, seed=length) for length, texts in ((5, 3), (30, 8), (100, 2), (250, 6))]
    expected = [in_a_lane(partial(encoder.hidden, batch), enabled=False) for batch in small]
    start = threading.Barrier(4)

    def online(lane: int) -> None:
        start.wait()
        with torch.cuda.stream(torch.cuda.Stream(priority=-1)), replaying(enabled=True):
            for turn in range(40):
                place = (turn + lane) % len(small)
                same_direction(encoder.hidden(small[place]).cpu(), expected[place])

    def heavy(_: int) -> None:
        start.wait()
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(15):
                assert torch.equal(encoder.hidden(bulk).cpu(), expected_bulk)

    with ThreadPoolExecutor(4) as threads:
        done = [
            threads.submit(online, 0),
            threads.submit(online, 1),
            threads.submit(heavy, 0),
            threads.submit(heavy, 1),
        ]
        for future in done:
            future.result()
    assert encoder._replays._possible


@pytest.mark.gpu
@on_cuda
def test_what_cannot_be_recorded_stays_eager_for_good(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, batch = embedder("cuda", torch.bfloat16), batch_of([5, 9])
    expected = encoder.hidden(batch).cpu()
    forward = encoder._replays._forward

    def waiting(spans: Spans) -> torch.Tensor:
        states = forward(spans)
        states.cpu()  # waits for the device, which nothing that is recorded may do
        return states

    monkeypatch.setattr(encoder._replays, "_forward", waiting)
    for _ in range(2):
        same_direction(in_a_lane(lambda: encoder.hidden(batch)), expected)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "no CUDA graphs for this encoder, small batches stay eager"
    ]
