"""Our own forward pass of BERT encoders (Devlin et al., arXiv 1810.04805; post-norm, absolute positions, exact GELU).

The same numbers as transformers' BertModel, faster on texts of mixed lengths: texts lie packed one after another, so
nothing is computed for padding and no mask is needed; query, key and value are one product; every product writes into
buffers that stay, since fresh memory costs more than the sums that fill it; the batches that `pack` makes are small
enough that an activation is still in the cache when it is read again.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.errors import ModelError
from datapipe.workers.encoders.attention import Spans, attend
from datapipe.workers.encoders.checkpoint import UNUSED_TENSORS, refuse_difference

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Int32
    from datapipe.workers.folder import ModelFolder

__all__ = ["BertEncoder", "BertShape"]

_PREFIX = "bert."


@dataclass(frozen=True)
class BertShape:
    """The numbers in a BERT's config.json that decide its forward pass."""

    layers: int
    heads: int
    dim: int
    inner: int
    vocabulary: int
    positions: int
    types: int
    epsilon: float

    @classmethod
    def of(cls, folder: ModelFolder) -> BertShape | None:
        """Read from config.json; None if it describes something else than a plain BERT encoder.

        Raises:
            ModelError: It does, but a number is missing or impossible.
        """
        config = folder.config()
        plain = (
            config["model_type"] == "bert"
            and config.get("hidden_act", "gelu") == "gelu"
            and config.get("position_embedding_type", "absolute") == "absolute"
            and not config.get("is_decoder", False)
        )
        if not plain:
            return None
        try:
            shape = cls(
                layers=int(config["num_hidden_layers"]),
                heads=int(config["num_attention_heads"]),
                dim=int(config["hidden_size"]),
                inner=int(config["intermediate_size"]),
                vocabulary=int(config["vocab_size"]),
                positions=int(config["max_position_embeddings"]),
                types=int(config.get("type_vocab_size", 2)),
                epsilon=float(config.get("layer_norm_eps", 1e-12)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"model {folder.name}: config.json of a BERT needs {error}") from error
        if shape.heads < 1 or shape.dim % shape.heads:
            raise ModelError(f"model {folder.name}: hidden_size {shape.dim} is no multiple of {shape.heads} heads")
        return shape

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that a checkpoint must hold."""
        dim, inner = self.dim, self.inner
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocabulary, dim),
            "embeddings.position_embeddings.weight": (self.positions, dim),
            "embeddings.token_type_embeddings.weight": (self.types, dim),
        }
        norms = ["embeddings.LayerNorm"]
        for layer in range(self.layers):
            at = f"encoder.layer.{layer}."
            linears = {f"attention.self.{name}": (dim, dim) for name in ("query", "key", "value")}
            linears |= {"attention.output.dense": (dim, dim), "intermediate.dense": (inner, dim)}
            linears |= {"output.dense": (dim, inner)}
            for name, shape in linears.items():
                shapes[f"{at}{name}.weight"] = shape
                shapes[f"{at}{name}.bias"] = shape[:1]
            norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
        for name in norms:
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (dim,)
        return shapes


@dataclass(frozen=True)
class _Linear:
    weight: (
        torch.Tensor
    )  # (in, out): rows of the output are sums of rows of the weight, which the products read fastest
    bias: torch.Tensor


@dataclass(frozen=True)
class _Norm:
    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class _Layer:
    qkv: _Linear
    out: _Linear
    attention_norm: _Norm
    up: _Linear
    down: _Linear
    output_norm: _Norm


class BertEncoder:
    """A BERT on its device.

    Args:
        folder: Where its safetensors lie.
        shape: Its numbers.
        device: Where it computes.
        dtype: In which precision products are computed; sums and norms between them are float32.

    Raises:
        ModelError: A tensor is missing, left over, or of another shape; names it.
    """

    padded = False

    def __init__(self, folder: ModelFolder, shape: BertShape, *, device: torch.device, dtype: torch.dtype) -> None:
        import torch

        tensors = _checked(folder, shape)
        self.dim, self.positions, self.vocabulary = shape.dim, shape.positions, shape.vocabulary
        self._shape, self._device, self._dtype = shape, device, dtype

        def put(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device=device, dtype=dtype).contiguous()

        def linear(*names: str) -> _Linear:
            weight = torch.cat([tensors[f"{name}.weight"] for name in names])
            return _Linear(put(weight.t()), put(torch.cat([tensors[f"{name}.bias"] for name in names])))

        def norm(name: str) -> _Norm:
            weight, bias = (
                tensors[f"{name}.{part}"].to(device=device, dtype=torch.float32) for part in ("weight", "bias")
            )
            return _Norm(weight, bias)

        def layer(at: str) -> _Layer:
            return _Layer(
                qkv=linear(*(f"{at}attention.self.{name}" for name in ("query", "key", "value"))),
                out=linear(f"{at}attention.output.dense"),
                attention_norm=norm(f"{at}attention.output.LayerNorm"),
                up=linear(f"{at}intermediate.dense"),
                down=linear(f"{at}output.dense"),
                output_norm=norm(f"{at}output.LayerNorm"),
            )

        self._words = put(tensors["embeddings.word_embeddings.weight"])
        # Every token of a text is of type 0, so its row is part of each position.
        types = tensors["embeddings.token_type_embeddings.weight"].float()
        self._places = put(tensors["embeddings.position_embeddings.weight"].float() + types[0])
        self._input_norm = norm("embeddings.LayerNorm")
        self._layers = [layer(f"encoder.layer.{index}.") for index in range(shape.layers)]
        self._buffers = threading.local()
        parameters = sum(rows[0] * (rows[1] if len(rows) > 1 else 1) for rows in shape.tensors().values())
        self.nbytes = parameters * self._words.element_size()

    def hidden(self, batch: Sequence[Int32]) -> torch.Tensor:
        """Hidden states of the last layer, (tokens of all texts, dim), on the device, text after text."""
        import torch

        with torch.inference_mode():
            spans = Spans.of(batch, self._device)
            states = torch.embedding(self._words, spans.ids).float().add_(torch.embedding(self._places, spans.places))
            states = self._norm(states, self._input_norm)
            for layer in self._layers:
                states = self._layer(states, layer, spans)
            return states

    def _layer(self, states: torch.Tensor, layer: _Layer, spans: Spans) -> torch.Tensor:
        import torch

        shape = self._shape
        qkv = self._product(states, layer.qkv, "qkv")
        mixed = attend(qkv, spans, heads=shape.heads, out=self._buffer("mixed", len(states), shape.dim))
        states = self._norm(states.add_(self._product(mixed, layer.out, "sum")), layer.attention_norm)
        inner = torch.ops.aten.gelu_(self._product(states, layer.up, "inner"))
        return self._norm(states.add_(self._product(inner, layer.down, "sum")), layer.output_norm)

    def _product(self, states: torch.Tensor, linear: _Linear, name: str) -> torch.Tensor:
        import torch

        out = self._buffer(name, len(states), len(linear.bias))
        return torch.addmm(linear.bias, states.to(self._dtype), linear.weight, out=out)

    def _norm(self, states: torch.Tensor, norm: _Norm) -> torch.Tensor:
        import torch

        return torch.layer_norm(states, (self.dim,), norm.weight, norm.bias, self._shape.epsilon)

    def _buffer(self, name: str, rows: int, columns: int) -> torch.Tensor:
        import torch

        kept: dict[str, Any] = self._buffers.__dict__
        buffer = kept.get(name)
        if buffer is None or buffer.shape[0] < rows:
            buffer = kept[name] = torch.empty((rows, columns), device=self._device, dtype=self._dtype)
        found: torch.Tensor = buffer[:rows]
        return found


def _checked(folder: ModelFolder, shape: BertShape) -> dict[str, torch.Tensor]:
    given = {name.removeprefix(_PREFIX): tensor for name, tensor in folder.tensors().items()}
    given = {name: tensor for name, tensor in given.items() if not name.startswith(UNUSED_TENSORS)}
    refuse_difference(folder, shape.tensors(), given)
    return given
