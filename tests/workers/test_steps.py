"""The steps between products: what transfers do to arrays, and our kernels against torch's functions on CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from datapipe.workers.encoders.attention import TILE, Room, Spans, attend, lay_out
from datapipe.workers.encoders.steps import FusedSteps, Norm, PlainSteps, Rotation, steps_for
from datapipe.workers.encoders.transfer import to_device, to_host
from tests.workers.random_models import batch_of

if TYPE_CHECKING:
    from datapipe.workers.encoders.steps import Kept

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
BATCHES = [[7, 7, 2, 31, 1, 70, 40], [1], [130, 64, 3, 3, 3, 90], [300, 5], [64] * 9]
PLAIN = PlainSteps()


def cuda() -> torch.device:
    return torch.device("cuda")


def near(given: torch.Tensor, expected: torch.Tensor, *, ulps: float = 2.0) -> None:
    """Compare by the rounding of the given precision; nan is never near."""
    step = torch.finfo(given.dtype).eps
    torch.testing.assert_close(given.float(), expected.float(), rtol=ulps * step, atol=ulps * step)


def test_the_arrays_of_a_batch_say_where_its_texts_lie() -> None:
    room = Room(tokens=8, texts=4)
    sections = np.split(lay_out([np.array([5, 6, 7]), np.array([8, 9])], room), np.cumsum(room.sections())[:-1])
    ids, places, rows, bounds, tiles = (section.tolist() for section in sections)
    assert ids == [5, 6, 7, 8, 9, 0, 0, 0]
    assert places == rows == [0, 1, 2, 0, 1, 0, 0, 0]
    assert bounds[:5] == [0, 3, 5, 5, 5]
    assert tiles[:2] == [0, 5]


def test_a_tile_spans_the_texts_that_its_queries_belong_to() -> None:
    spans = Spans.of(batch_of([TILE - 4, 8, 3 * TILE]), torch.device("cpu"))
    assert spans.tiles.tolist()[:3] == [[0, TILE + 4], [TILE - 4, 4 * TILE + 4], [TILE + 4, 4 * TILE + 4]]


def test_transfers_on_the_cpu_share_memory() -> None:
    array = np.arange(5, dtype=np.int32)
    there = to_device(array, torch.device("cpu"))
    assert np.shares_memory(to_host(there), array)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpu_uses_torchs_own_functions(dtype: torch.dtype) -> None:
    assert steps_for(torch.device("cpu"), dtype).name == "torch"


@pytest.mark.gpu
@on_cuda
def test_transfers_come_back_whole_and_leave_nothing_pinned() -> None:
    arrays = [np.random.default_rng(seed).standard_normal((700, 384), np.float32) for seed in range(8)]
    for array, copy in zip(arrays, [to_host(to_device(array, cuda())) for array in arrays], strict=True):
        assert np.array_equal(array, copy)
        assert copy.flags.owndata


@pytest.mark.gpu
@on_cuda
def test_cuda_uses_our_kernels_in_half_precision_only() -> None:
    assert steps_for(cuda(), torch.bfloat16).name == "triton"
    assert steps_for(cuda(), torch.float32).name == "torch"


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize(("dtype", "dim"), [(torch.bfloat16, 48), (torch.bfloat16, 384), (torch.float16, 768)])
@pytest.mark.parametrize("bias", ["bias", "no bias"])
def test_sums_and_norms_equal_torchs(dtype: torch.dtype, dim: int, bias: str) -> None:
    fused = FusedSteps()
    norm = Norm(torch.randn(dim, device="cuda"), torch.randn(dim, device="cuda") if bias == "bias" else None, 1e-12)
    words = torch.randn(30_000, dim, device="cuda", dtype=dtype)
    kinds: tuple[Kept, Kept] = ("norm", "sum")
    for lengths in BATCHES:
        spans, tokens = Spans.of(batch_of(lengths), cuda()), sum(lengths)
        for places in (None, torch.randn(400, dim, device="cuda", dtype=dtype)):
            ours = fused.embed(words, places, spans, norm=norm, dtype=dtype)
            theirs = PLAIN.embed(words, places, spans, norm=norm, dtype=dtype)
            torch.testing.assert_close(ours.sums, theirs.sums, rtol=0, atol=1e-4)
            near(ours.operand, theirs.operand)
        sums, update = torch.randn(tokens, dim, device="cuda"), torch.randn(tokens, dim, device="cuda", dtype=dtype)
        for kept in kinds:
            ours = fused.add_norm(sums.clone(), update, norm=norm, kept=kept)
            theirs = PLAIN.add_norm(sums.clone(), update, norm=norm, kept=kept)
            torch.testing.assert_close(ours.sums, theirs.sums, rtol=0, atol=1e-4)
            near(ours.operand, theirs.operand)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize(("dtype", "inner"), [(torch.bfloat16, 96), (torch.bfloat16, 1152), (torch.float16, 1000)])
def test_the_gate_equals_torchs(dtype: torch.dtype, inner: int) -> None:
    wide = 3 * torch.randn(777, 2 * inner, device="cuda", dtype=dtype)
    left, right = wide.double().chunk(2, dim=1)
    near(FusedSteps().gate(wide), torch.nn.functional.gelu(left) * right)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize(("dtype", "heads", "head"), [(torch.bfloat16, 12, 64), (torch.float16, 3, 128)])
def test_rotations_equal_torchs(dtype: torch.dtype, heads: int, head: int) -> None:
    lengths = [300, 41, 41, 3]
    spans, angles = Spans.of(batch_of(lengths), cuda()), torch.rand(400, head // 2, device="cuda") * 100
    rotation = Rotation(angles.cos(), angles.sin())
    qkv = torch.randn(sum(lengths), 3 * heads * head, device="cuda", dtype=dtype)
    near(
        FusedSteps().rotate(qkv.clone(), rotation, spans, heads=heads),
        PLAIN.rotate(qkv.clone(), rotation, spans, heads=heads),
    )


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize(
    ("dtype", "heads", "head"), [(torch.bfloat16, 4, 16), (torch.bfloat16, 12, 32), (torch.float16, 12, 64)]
)
@pytest.mark.parametrize("window", [None, 0, 40])
def test_both_attention_kernels_equal_float32(dtype: torch.dtype, heads: int, head: int, window: int | None) -> None:
    from datapipe.workers.encoders.kernels import attend_tiled

    for lengths in BATCHES:
        spans = Spans.of(batch_of(lengths), cuda())
        qkv = torch.randn(sum(lengths), 3 * heads * head, device="cuda", dtype=dtype)
        exact = attend(qkv.float(), spans, heads=heads, window=window)
        step = torch.finfo(dtype).eps
        tiled = attend_tiled(qkv, spans.places, spans.tiles, heads=heads, window=window, tile=TILE)
        torch.testing.assert_close(tiled.float(), exact, rtol=2 * step, atol=2 * step)
        varlen = attend(qkv, spans, heads=heads, window=window)
        torch.testing.assert_close(varlen.float(), exact, rtol=2 * step, atol=2 * step)


@pytest.mark.gpu
@on_cuda
def test_tokens_that_belong_to_no_text_touch_none() -> None:
    from datapipe.workers.encoders.kernels import attend_tiled

    batch, room = batch_of([5, 9]), Room(128, 8)
    spans = Spans.over(to_device(lay_out(batch, room), cuda()), room, [], longest=128)
    qkv = torch.randn(128, 3 * 64, device="cuda", dtype=torch.bfloat16)
    exact = attend(qkv[:14].float(), Spans.of(batch, cuda()), heads=2)
    qkv[14:] = float("nan")
    near(attend_tiled(qkv, spans.places, spans.tiles, heads=2, window=None, tile=TILE)[:14], exact)
    near(attend(qkv, spans, heads=2)[:14], exact)
