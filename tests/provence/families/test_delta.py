"""Packed tensors: what is stored gives the values back within the stated bound, group by group."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import DrawFn, composite, floats, integers, sampled_from

from datapipe.errors import ConfigError, ModelError
from provence.families.delta import decode_delta, encode_delta, pack_tensors, unpack_tensors

LEVELS = {4: 14, 8: 254}


@composite
def matrices(draw: DrawFn) -> torch.Tensor:
    """Matrices of values of one magnitude each, from far below float16's normal range to large."""
    shape = (draw(integers(1, 4)), draw(sampled_from([1, 7, 16, 24, 48, 64, 128, 192])))
    scale = draw(sampled_from([1e-9, 1e-6, 1e-3, 1.0, 1e4]))
    values = draw(arrays(np.float32, shape, elements=floats(-1, 1, width=32)))
    return torch.from_numpy(values).mul(scale)


@given(matrix=matrices(), bits=sampled_from([4, 8]), group=sampled_from([16, 32, 64]))
def test_a_groups_error_is_within_its_bound(matrix: torch.Tensor, bits: Any, group: int) -> None:
    stored = pack_tensors({"w": matrix}, bits=bits, group=group)
    found = unpack_tensors(stored)["w"]
    assert found.shape == matrix.shape
    size = math.gcd(matrix.shape[1], group)
    if size < 16:
        assert torch.equal(found, matrix)
        return
    assert stored["w.packed"].shape == (len(matrix), matrix.shape[1] * bits // 8)
    groups = matrix.reshape(len(matrix), -1, size).double()
    errors = (found.reshape(groups.shape).double() - groups).square().mean(2).sqrt()
    bound = groups.abs().amax(2) / LEVELS[bits]
    assert (errors <= bound * 1.001 + 3e-7).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [1e-9, 3e-8, 1e-6, 1.1e-5, 1e-4])
def test_a_value_below_the_normal_range_of_steps_is_neither_lost_nor_clipped(bits: Any, size: float) -> None:
    matrix = torch.full((2, 32), size)
    found = unpack_tensors(pack_tensors({"w": matrix}, bits=bits, group=32))["w"]
    assert (found - matrix).abs().max() <= size / LEVELS[bits] * 1.001 + 3e-7


@given(matrix=matrices(), bits=sampled_from([4, 8]))
def test_what_is_unpacked_packs_to_the_same_values(matrix: torch.Tensor, bits: Any) -> None:
    once = unpack_tensors(pack_tensors({"w": matrix}, bits=bits))["w"]
    twice = unpack_tensors(pack_tensors({"w": once}, bits=bits))["w"]
    assert (once - twice).abs().max() <= once.abs().max() / LEVELS[bits] + 3e-7


def test_codes_and_steps_lie_as_the_format_says() -> None:
    row = torch.tensor([[-8.0, 7.0, *range(-7, 7)]]) * 0.5
    stored = pack_tensors({"w": row}, bits=4)
    assert stored["w.steps"].tolist() == [[0.5]]
    assert stored["w.steps"].dtype == torch.float16
    assert stored["w.packed"].dtype == torch.uint8
    codes = [code for byte in stored["w.packed"][0].tolist() for code in (byte & 15, byte >> 4)]
    assert [code - 8 for code in codes] == [-8, 7, *range(-7, 7)]
    assert torch.equal(unpack_tensors(stored)["w"], row)


def test_a_step_is_negative_where_the_longer_side_is_positive() -> None:
    row = torch.tensor([[8.0, -7.0, *range(-7, 7)]])
    stored = pack_tensors({"w": row}, bits=4)
    assert stored["w.steps"].tolist() == [[-1.0]]
    assert torch.equal(unpack_tensors(stored)["w"], row)


def test_biases_norms_and_odd_shapes_are_stored_as_they_are() -> None:
    tensors = {"bias": torch.randn(64), "odd": torch.randn(3, 9), "cube": torch.randn(2, 16, 16)}
    stored = pack_tensors(tensors)
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensors[name]) for name in tensors)


def test_what_did_not_change_is_left_out_and_comes_back_as_it_was() -> None:
    torch.manual_seed(0)
    base = {"table": torch.randn(50, 64), "weight": torch.randn(64, 64), "bias": torch.randn(64)}
    tuned = base | {"weight": base["weight"] + 0.01 * torch.randn(64, 64), "bias": base["bias"] + 0.5}
    stored = encode_delta(base, tuned)
    assert set(stored) == {"weight.packed", "weight.steps", "bias"}
    found = decode_delta(base, stored)
    assert torch.equal(found["table"], base["table"])
    torch.testing.assert_close(found["bias"], tuned["bias"], rtol=0, atol=1e-6)
    assert (found["weight"] - tuned["weight"]).square().mean().sqrt() < 0.001
    assert decode_delta(base, encode_delta(base, base)).keys() == base.keys()


def test_six_layers_of_minilm_take_less_than_six_megabytes() -> None:
    stored = pack_tensors({"slice": torch.randn(48, 384)})
    weight = sum(tensor.numel() * tensor.element_size() for tensor in stored.values()) / (48 * 384)
    assert weight == 0.5 + 2 / 64
    weights, others = 6 * (4 * 384 * 384 + 2 * 384 * 1536), 6 * (9 * 384 + 1536)
    assert weights * weight + others * 4 < 6_000_000


@pytest.mark.parametrize(
    ("base", "tuned", "message"),
    [
        ({"a": torch.zeros(2)}, {"b": torch.zeros(2)}, "base and tuned model differ in their tensors: a, b"),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, r"tensor a has shape \(2,\) in the base, \(3,\) when tuned"),
        ({"a": torch.zeros(2)}, {"a": torch.full((2,), torch.nan)}, "tensor a holds values that are not finite"),
    ],
)
def test_models_that_do_not_fit_each_other_are_refused(base: Any, tuned: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        encode_delta(base, tuned)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"b": torch.zeros(2)}, "a difference for tensor b is stored, but the base has no such tensor"),
        ({"a": torch.zeros(3)}, r"the difference for tensor a has shape \(3,\), but the base \(2, 16\)"),
        ({"a.packed": torch.zeros(2, 8, dtype=torch.uint8)}, r"tensor a\.packed has no a\.steps beside it"),
        ({"a.steps": torch.zeros(2, 1)}, r"tensor a\.steps has no a\.packed beside it"),
        (
            {"a.packed": torch.zeros(2, 8, dtype=torch.uint8), "a.steps": torch.zeros(2, 3)},
            r"tensor a\.packed means 2 x 16 values, but its steps have shape \(2, 3\)",
        ),
        (
            {"a.packed": torch.zeros(2, 8), "a.steps": torch.zeros(2, 1)},
            r"a\.packed must be uint8 or int8 with two axes",
        ),
    ],
)
def test_differences_that_are_damaged_are_refused(stored: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        decode_delta({"a": torch.zeros(2, 16)}, stored)


@pytest.mark.parametrize(
    ("bits", "group", "message"), [(5, 64, "bits must be 4 or 8"), (4, 17, "group must be an even")]
)
def test_settings_out_of_range_are_refused(bits: Any, group: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pack_tensors({}, bits=bits, group=group)
