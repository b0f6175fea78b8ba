"""What our own encoders share: texts packed one after another, products of one precision, sums and norms in float32.

    batch -> lay_out -> Spans (device) -> _states (the architecture) -> hidden states

Nothing is computed for padding and no mask is needed; query, key and value are one product. On the CPU every product
writes into buffers that stay, since fresh memory costs more than the sums that fill it, and the batches that `pack`
makes are small enough that an activation is still in the cache when it is read again. On CUDA torch's own cache serves
that end, a stream at a time.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.workers.encoders.attention import Spans
from datapipe.workers.encoders.checkpoint import UNUSED_TENSORS, refuse_difference
from datapipe.workers.encoders.graphs import Replays
from datapipe.workers.encoders.steps import Norm, steps_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch

    from datapipe.storage.arrays import Int32
    from datapipe.workers.folder import ModelFolder

__all__ = ["Linear", "PackedEncoder", "Tensors", "checked_tensors"]


@dataclass(frozen=True)
class Linear:
    """A product with a weight (in, out), and a bias (out,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class Tensors:
    """The tensors of a checkpoint on their way to the device.

    Args:
        given: By name, on the CPU.
        device: Where they go.
        dtype: In which precision products are computed.
    """

    def __init__(self, given: Mapping[str, torch.Tensor], *, device: torch.device, dtype: torch.dtype) -> None:
        self._given, self._device, self._dtype = given, device, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._given[name]

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device, in the precision of the products."""
        return tensor.to(device=self._device, dtype=self._dtype).contiguous()

    def linear(self, *names: str) -> Linear:
        """The linear layers of these names as one, their outputs side by side."""
        import torch

        weight = torch.cat([self._given[f"{name}.weight"] for name in names])
        biases = [self._given[f"{name}.bias"] for name in names if f"{name}.bias" in self._given]
        # The CPU's products read rows of (in, out) fastest, the tensor cores' rows of (out, in).
        put = self.put(weight.t()) if self._device.type == "cpu" else self.put(weight).t()
        return Linear(put, self.put(torch.cat(biases)) if biases else None)

    def norm(self, name: str, epsilon: float) -> Norm:
        """The layer norm of that name, in float32."""
        import torch

        weight, bias = (self._given.get(f"{name}.{part}") for part in ("weight", "bias"))
        where: dict[str, Any] = {"device": self._device, "dtype": torch.float32}
        if weight is None:
            raise KeyError(f"{name}.weight")
        return Norm(weight.to(**where), None if bias is None else bias.to(**where), epsilon)


class PackedEncoder(ABC):
    """An encoder on its device; several threads may use one, each with a CUDA stream of its own.

    Args:
        device: Where it computes.
        dtype: In which precision products are computed; sums and norms between them are float32.
        padding: A token id that its position table counts as none (see `lay_out`), or None.
        replays: Whether its forward pass may be recorded: it needs the lengths of texts on the device only.
    """

    padded = False
    dim: int
    positions: int
    vocabulary: int
    nbytes: int

    def __init__(
        self, *, device: torch.device, dtype: torch.dtype, padding: int | None = None, replays: bool = True
    ) -> None:
        self._device, self._dtype, self._padding = device, dtype, padding
        self._steps = steps_for(device, dtype)
        self._buffers = threading.local()
        self._replays = Replays(self._states, device=device, dtype=dtype, padding=padding, allowed=replays)

    @property
    def kernels(self) -> str:
        """What computes the steps between products, for they differ in the last bits: `torch` or `triton`."""
        return self._steps.name

    def hidden(self, batch: Sequence[Int32]) -> torch.Tensor:
        """Hidden states of the last layer, float32 (tokens of all texts, dim), on the device, text after text.

        Computed on the current stream. Inside `graphs.replaying()` a small batch may be the replay of a graph, whose
        last bits may differ.
        """
        import torch

        with torch.inference_mode(), self._here():
            replayed = self._replays.run(batch)
            return self._states(Spans.of(batch, self._device, padding=self._padding)) if replayed is None else replayed

    @abstractmethod
    def _states(self, spans: Spans) -> torch.Tensor:
        """The hidden states of packed texts."""

    def _here(self) -> AbstractContextManager[Any]:
        """Makes the device the current one: kernels start on that, whichever device their tensors lie on."""
        import torch

        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _product(self, operand: torch.Tensor, linear: Linear, name: str) -> torch.Tensor:
        """Product with a linear layer; on the CPU into the buffer of that name."""
        import torch

        out = self._buffer(name, len(operand), linear.weight.shape[1])
        if linear.bias is None:
            return torch.mm(operand, linear.weight) if out is None else torch.mm(operand, linear.weight, out=out)
        if out is None:
            return torch.addmm(linear.bias, operand, linear.weight)
        return torch.addmm(linear.bias, operand, linear.weight, out=out)

    def _buffer(self, name: str, rows: int, columns: int) -> torch.Tensor | None:
        """Memory of this thread that holds nothing of value any more; None on CUDA."""
        import torch

        if self._device.type != "cpu":
            return None
        kept: dict[str, Any] = self._buffers.__dict__
        buffer = kept.get(name)
        if buffer is None or buffer.shape[0] < rows:
            buffer = kept[name] = torch.empty((rows, columns), device=self._device, dtype=self._dtype)
        found: torch.Tensor = buffer[:rows]
        return found


def checked_tensors(
    folder: ModelFolder, expected: Mapping[str, tuple[int, ...]], *, prefix: str, spare: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """The tensors of a folder, by names without `prefix`. Raises `ModelError` unless they are the expected.

    Names that begin with one of `spare` or of `UNUSED_TENSORS` may be there and are left out.
    """
    given = {name.removeprefix(prefix): tensor for name, tensor in folder.tensors().items()}
    given = {name: tensor for name, tensor in given.items() if not name.startswith((*UNUSED_TENSORS, *spare))}
    refuse_difference(folder, expected, given)
    return given
