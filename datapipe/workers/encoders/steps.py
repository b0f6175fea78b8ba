"""What an encoder computes between its matrix products: sums, norms, activations, rotations, attention.

Two sets with one meaning. `PlainSteps` calls torch, works everywhere, and is what the other is tested against.
`FusedSteps` (CUDA, bfloat16 or float16) reads and writes each activation once: on an H200 the plain steps of a BERT
move as many bytes as its products take time. Which set an encoder uses follows from device, precision and whether
Triton is there, never from a timing, since the two differ in the last bits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from datapipe.workers.encoders.attention import TILE, attend

if TYPE_CHECKING:
    import torch

    from datapipe.workers.encoders.attention import Spans
    from datapipe.workers.encoders.relative import Relative

__all__ = ["HEAD_WIDTHS", "FusedSteps", "Norm", "PlainSteps", "Rotation", "Steps", "Stream", "steps_for"]

_log = logging.getLogger(__name__)

TILED_UP_TO = 128
"""Tokens of the longest text up to which the tiled kernel is used: texts share its tiles, so short ones waste none."""

HEAD_WIDTHS = frozenset({16, 32, 64, 128})
"""Widths of a head that our attention kernels take."""


@dataclass(frozen=True)
class Norm:
    """Layer norm: weight and bias float32 (dim,), a bias of None is 0."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    epsilon: float


class Rotation(NamedTuple):
    """Cosines and sines of the angles that a head's halves are turned by, each float32 (positions, head dim / 2)."""

    cosines: torch.Tensor
    sines: torch.Tensor


class Stream(NamedTuple):
    """What runs through the layers.

    Attributes:
        sums: What the next update is added to, float32 (tokens, dim).
        operand: What the next product reads, (tokens, dim), in the encoder's precision.
    """

    sums: torch.Tensor
    operand: torch.Tensor


Kept = Literal["norm", "sum"]
"""What is added to later: the output of the norm (post-norm encoders) or its input (pre-norm encoders)."""


class Steps(Protocol):
    """The steps. None changes its arguments but those it says."""

    name: str

    def embed(
        self, words: torch.Tensor, places: torch.Tensor | None, spans: Spans, *, norm: Norm, dtype: torch.dtype
    ) -> Stream:
        """Norm of a token's row of `words` plus its row of `places`; kept is the norm."""

    def add_norm(self, sums: torch.Tensor, update: torch.Tensor, *, norm: Norm, kept: Kept) -> Stream:
        """Norm of `sums` + `update`, in the precision of `update`; may write into `sums`."""

    def gate(self, wide: torch.Tensor) -> torch.Tensor:
        """GELU of the left half times the right half: (tokens, 2 * inner) to (tokens, inner)."""

    def rotate(self, qkv: torch.Tensor, rotation: Rotation, spans: Spans, *, heads: int) -> torch.Tensor:
        """Turn queries and keys by their places (Su et al., arXiv 2104.09864); writes into `qkv` and returns it."""

    def attend(
        self, qkv: torch.Tensor, spans: Spans, *, heads: int, out: torch.Tensor | None, window: int | None
    ) -> torch.Tensor:
        """See `attention.attend`."""

    def attend_relative(
        self, qkv: torch.Tensor, spans: Spans, relative: Relative, *, heads: int, out: torch.Tensor | None
    ) -> torch.Tensor:
        """See `relative.attend_relative`."""


class PlainSteps:
    """The steps by torch's own functions."""

    name = "torch"

    def embed(
        self, words: torch.Tensor, places: torch.Tensor | None, spans: Spans, *, norm: Norm, dtype: torch.dtype
    ) -> Stream:
        """See `Steps.embed`."""
        import torch

        states = torch.embedding(words, spans.ids).float()
        if places is not None:
            states = states.add_(torch.embedding(places, spans.rows))
        normed = _norm(states, norm)
        return Stream(normed, normed.to(dtype))

    def add_norm(self, sums: torch.Tensor, update: torch.Tensor, *, norm: Norm, kept: Kept) -> Stream:
        """See `Steps.add_norm`."""
        sums = sums.add_(update)
        normed = _norm(sums, norm)
        return Stream(normed if kept == "norm" else sums, normed.to(update.dtype))

    def gate(self, wide: torch.Tensor) -> torch.Tensor:
        """See `Steps.gate`."""
        import torch

        left, right = wide.chunk(2, dim=-1)
        return torch.nn.functional.gelu(left).mul_(right)

    def rotate(self, qkv: torch.Tensor, rotation: Rotation, spans: Spans, *, heads: int) -> torch.Tensor:
        """See `Steps.rotate`."""
        import torch

        half = rotation.cosines.shape[1]
        cosines, sines = (torch.nn.functional.embedding(spans.places, table)[:, None, None] for table in rotation)
        turned = qkv.view(len(qkv), 3, heads, 2 * half)[:, :2]
        first, second = turned[..., :half].float(), turned[..., half:].float()
        turned[..., :half], turned[..., half:] = first * cosines - second * sines, second * cosines + first * sines
        return qkv

    def attend(
        self, qkv: torch.Tensor, spans: Spans, *, heads: int, out: torch.Tensor | None, window: int | None
    ) -> torch.Tensor:
        """See `attention.attend`."""
        return attend(qkv, spans, heads=heads, out=out, window=window)

    def attend_relative(
        self, qkv: torch.Tensor, spans: Spans, relative: Relative, *, heads: int, out: torch.Tensor | None
    ) -> torch.Tensor:
        """See `relative.attend_relative`."""
        from datapipe.workers.encoders.relative import attend_relative

        return attend_relative(qkv, spans, relative, heads=heads, out=out)


class FusedSteps(PlainSteps):
    """The steps by kernels of our own, for CUDA in bfloat16 or float16."""

    name = "triton"

    def embed(
        self, words: torch.Tensor, places: torch.Tensor | None, spans: Spans, *, norm: Norm, dtype: torch.dtype
    ) -> Stream:
        """See `Steps.embed`."""
        from datapipe.workers.encoders import kernels

        index = (spans.ids, spans.rows)
        return Stream(*kernels.add_norm(words, places, index, norm.weight, norm.bias, norm.epsilon, dtype=dtype))

    def add_norm(self, sums: torch.Tensor, update: torch.Tensor, *, norm: Norm, kept: Kept) -> Stream:
        """See `Steps.add_norm`."""
        from datapipe.workers.encoders import kernels

        return Stream(
            *kernels.add_norm(
                sums, update, None, norm.weight, norm.bias, norm.epsilon, dtype=update.dtype, keep_sum=kept == "sum"
            )
        )

    def gate(self, wide: torch.Tensor) -> torch.Tensor:
        """See `Steps.gate`."""
        from datapipe.workers.encoders import kernels

        return kernels.gate(wide)

    def rotate(self, qkv: torch.Tensor, rotation: Rotation, spans: Spans, *, heads: int) -> torch.Tensor:
        """See `Steps.rotate`."""
        from datapipe.workers.encoders import kernels

        return kernels.rotate(qkv, rotation.cosines, rotation.sines, spans.places, heads=heads)

    def attend(
        self, qkv: torch.Tensor, spans: Spans, *, heads: int, out: torch.Tensor | None, window: int | None
    ) -> torch.Tensor:
        """Short texts by the tiled kernel, long ones as `attention.attend`: which, follows from `longest` alone."""
        from datapipe.workers.encoders import kernels

        if spans.longest <= TILED_UP_TO and qkv.shape[1] // 3 // heads in HEAD_WIDTHS:
            return kernels.attend_tiled(qkv, spans.places, spans.tiles, heads=heads, window=window, tile=TILE)
        return attend(qkv, spans, heads=heads, out=out, window=window)

    def attend_relative(
        self, qkv: torch.Tensor, spans: Spans, relative: Relative, *, heads: int, out: torch.Tensor | None
    ) -> torch.Tensor:
        """See `relative.attend_relative`; lengths may be unknown where the width of a head is of `HEAD_WIDTHS`."""
        from datapipe.workers.encoders.relative_kernel import attend_relative_tiled

        if qkv.shape[1] // 3 // heads in HEAD_WIDTHS:
            return attend_relative_tiled(qkv, spans, relative, heads=heads, tile=TILE)
        return super().attend_relative(qkv, spans, relative, heads=heads, out=out)


def steps_for(device: torch.device, dtype: torch.dtype) -> Steps:
    """The steps for a device and a precision."""
    import torch

    half = dtype in {torch.bfloat16, torch.float16}
    return FusedSteps() if device.type == "cuda" and half and _triton_works() else PlainSteps()


@cache
def _triton_works() -> bool:
    import torch

    try:
        from datapipe.workers.encoders import kernels

        kernels.gate(torch.ones((1, 2 * TILE), device="cuda", dtype=torch.bfloat16))
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - no package, no compiler, a kernel that this device cannot run
        _log.warning("Triton kernels do not work here, encoders use torch's own: %s: %s", type(error).__name__, error)
        return False
    return True


def _norm(states: torch.Tensor, norm: Norm) -> torch.Tensor:
    import torch

    return torch.layer_norm(states, (states.shape[1],), norm.weight, norm.bias, norm.epsilon)
