"""Tensors in 4 or 8 bits, alone or as differences to a base that is there already.

    base, tuned -> encode_delta -> stored (packed codes, steps) -> decode_delta(base, stored) -> tuned, nearly

A weight (rows, columns) is cut along its rows into groups of `group` columns. A value is its code times its group's
step: codes of -8 to 7 in 4 bits, of -127 to 127 in 8, and a float16 step, which may be negative so that the longer side
of the codes lies where the group needs it. Of several steps the one with the least squared error is taken: clipping the
largest values often harms less than a coarser step for all.

Stored are `NAME.packed` (4 bits: uint8 (rows, columns / 2), the even column in the low half, as code + 8; 8 bits: int8
(rows, columns)) and `NAME.steps` (float16 (rows, columns / group)). Biases, norms and what has no even groups of at
least 16 columns are stored as NAME, as they are; so shapes need no table. What did not change is left out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

from datapipe.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = ["PACKED", "STEPS", "Bits", "decode_delta", "encode_delta", "pack_tensors", "unpack_tensors"]

Bits: TypeAlias = Literal[4, 8]

PACKED = ".packed"
STEPS = ".steps"

_RANGES = {4: (-8, 7), 8: (-127, 127)}
_REACHES = {4: (7.0, 7.5, 8.0, 8.5, 9.0, 10.0), 8: (127.0, 132.0)}
"""Candidates of a step are a group's largest value, of either sign, over these; the first of them clips nothing."""

_SMALLEST_GROUP = 16
_FLOAT16_MAX = 65_504.0
_FLOAT16_NORMAL = 2.0**-14
_FLOAT16_LEAST = 2.0**-24
_SHIFT = 8


def encode_delta(
    base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], *, bits: Bits = 4, group: int = 64
) -> dict[str, torch.Tensor]:
    """What turns `base` into `tuned`, packed; equal tensors are left out.

    The root of a group's mean squared error is at most its largest difference / 14 (4 bits) or / 254 (8 bits), and
    what float16 adds to that: 0.1 %, or 3e-7 where steps are below its normal range.

    Raises:
        ModelError: Names or shapes differ, or a difference is not finite.
        ConfigError: `bits` or `group` is out of range.
    """
    import torch

    if base.keys() != tuned.keys():
        raise ModelError(f"base and tuned model differ in their tensors: {_some(base.keys() ^ tuned.keys())}")
    differences: dict[str, torch.Tensor] = {}
    for name, start in base.items():
        end = tuned[name]
        if start.shape != end.shape:
            raise ModelError(f"tensor {name} has shape {tuple(start.shape)} in the base, {tuple(end.shape)} when tuned")
        if not torch.equal(start.float(), end.float()):
            differences[name] = end.float() - start.float()
    return pack_tensors(differences, bits=bits, group=group)


def decode_delta(base: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The base with the stored differences added, float32: base + unpack_tensors(stored), and base where none is.

    Raises:
        ModelError: A difference belongs to no tensor of the base, has another shape, or is incomplete; names it.
    """
    found = {name: tensor.float() for name, tensor in base.items()}
    for name, difference in unpack_tensors(stored).items():
        if name not in found:
            raise ModelError(f"a difference for tensor {name} is stored, but the base has no such tensor")
        if found[name].shape != difference.shape:
            raise ModelError(
                f"the difference for tensor {name} has shape {tuple(difference.shape)}, but the base "
                f"{tuple(found[name].shape)}"
            )
        found[name] = found[name] + difference
    return found


def pack_tensors(tensors: Mapping[str, torch.Tensor], *, bits: Bits = 4, group: int = 64) -> dict[str, torch.Tensor]:
    """Tensors as they are stored; `unpack_tensors` gives them back within the bound of `encode_delta`.

    Args:
        tensors: Of any shape; those with two axes are packed.
        bits: 4 or 8.
        group: Columns that share a step, an even number of at least 16; fewer where columns do not divide by it.

    Raises:
        ModelError: A value is not finite; names its tensor.
        ConfigError: `bits` or `group` is out of range.
    """
    if bits not in _RANGES:
        raise ConfigError(f"bits must be 4 or 8. Got {bits}")
    if group < _SMALLEST_GROUP or group % 2:
        raise ConfigError(f"group must be an even number of at least {_SMALLEST_GROUP}. Got {group}")
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        values = tensor.detach().float()
        if not values.isfinite().all():
            raise ModelError(f"tensor {name} holds values that are not finite")
        size = math.gcd(values.shape[1], group) if values.ndim == 2 else 0  # noqa: PLR2004 - rows and columns
        if size < _SMALLEST_GROUP or size % 2 or values.abs().max() / _REACHES[bits][-1] > _FLOAT16_MAX:
            stored[name] = values.contiguous()
        else:
            stored[name + PACKED], stored[name + STEPS] = _packed(values, bits=bits, size=size)
    return stored


def unpack_tensors(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The values of what `pack_tensors` made, float32.

    Raises:
        ModelError: Codes without steps or the other way round, of the wrong dtype or shape; names the tensor.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(PACKED):
            whole = name.removesuffix(PACKED)
            if whole + STEPS not in stored:
                raise ModelError(f"tensor {name} has no {whole + STEPS} beside it")
            found[whole] = _unpacked(name, tensor, stored[whole + STEPS])
        elif name.endswith(STEPS):
            if name.removesuffix(STEPS) + PACKED not in stored:
                raise ModelError(f"tensor {name} has no {name.removesuffix(STEPS) + PACKED} beside it")
        else:
            found[name] = tensor.float()
    return found


def _packed(values: torch.Tensor, *, bits: Bits, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and steps of values (rows, columns) with the least squared error a group among the candidates."""
    import torch

    groups = values.reshape(len(values), -1, size)
    largest = groups.abs().amax(2, keepdim=True)
    low, high = _RANGES[bits]
    best_codes = torch.zeros_like(groups)
    best_steps = torch.zeros_like(largest)
    least = torch.full_like(largest, torch.inf)
    for reach in _REACHES[bits]:
        for sign in (1.0, -1.0):
            steps = _float16(largest * (sign / reach))
            codes = (groups / torch.where(steps == 0, 1.0, steps)).round().clamp(low, high)
            error = (codes * steps - groups).square().sum(2, keepdim=True)
            better = error < least
            best_codes = torch.where(better, codes, best_codes)
            best_steps = torch.where(better, steps, best_steps)
            least = torch.where(better, error, least)
    codes = best_codes.flatten(1)
    steps = best_steps.squeeze(2).half()
    if bits == 4:  # noqa: PLR2004 - two a byte
        halves = (codes + _SHIFT).to(torch.uint8)
        return (halves[:, ::2] | halves[:, 1::2] << 4).contiguous(), steps
    return codes.to(torch.int8), steps


def _float16(steps: torch.Tensor) -> torch.Tensor:
    """Steps as float16 has them; below its normal range the next larger, so that a group's values stay in reach."""
    import torch

    rounded = steps.clamp(-_FLOAT16_MAX, _FLOAT16_MAX).half().float()
    larger = steps.sign() * (steps.abs() / _FLOAT16_LEAST).ceil() * _FLOAT16_LEAST
    return torch.where(steps.abs() < _FLOAT16_NORMAL, larger, rounded)


def _unpacked(name: str, packed: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    import torch

    if packed.ndim != 2 or steps.ndim != 2 or packed.dtype not in {torch.uint8, torch.int8}:  # noqa: PLR2004
        raise ModelError(f"tensor {name} must be uint8 or int8 with two axes. Got {packed.dtype} {tuple(packed.shape)}")
    if packed.dtype == torch.uint8:
        codes = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1).float() - _SHIFT
    else:
        codes = packed.float()
    rows, columns = codes.shape
    if len(steps) != rows or not steps.shape[1] or columns % steps.shape[1]:
        shape = tuple(steps.shape)
        raise ModelError(f"tensor {name} means {rows} x {columns} values, but its steps have shape {shape}")
    groups = codes.reshape(rows, steps.shape[1], -1)
    return (groups * steps.float().unsqueeze(2)).flatten(1)


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5])
