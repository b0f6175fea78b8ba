"""Our own forward pass of ModernBERT (Warner et al., arXiv 2412.13663).

Pre-norm, turned queries and keys instead of a table of positions, a gated GELU, and a window in all but every third
layer. The same numbers as transformers' ModernBertModel; `packed` says how the texts lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.errors import ModelError
from datapipe.workers.encoders.packed import Linear, PackedEncoder, Tensors, checked_tensors
from datapipe.workers.encoders.steps import Rotation

if TYPE_CHECKING:
    import torch

    from datapipe.workers.encoders.attention import Spans
    from datapipe.workers.encoders.steps import Norm, Stream
    from datapipe.workers.folder import ModelFolder

__all__ = ["ModernBertEncoder", "ModernBertShape"]

_PREFIX = "model."
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_THETA = {_GLOBAL: ("global_rope_theta", 160_000.0), _LOCAL: ("local_rope_theta", 10_000.0)}
"""Where configs before `rope_parameters` state the base of the angles, and what it is if they do not."""


@dataclass(frozen=True)
class ModernBertShape:
    """The numbers in a config.json that decide the forward pass.

    Attributes:
        heads: Heads that `dim` is split into.
        dim: Width of a hidden state.
        inner: Width between the two products of a layer's second half, after the gate.
        vocabulary: Rows of the table of tokens.
        positions: Tokens that a text may have.
        epsilon: Of the norms.
        window: How far apart tokens may be that attend to each other in a local layer.
        local: For each layer, whether it is local.
        theta_local: Base of the angles in local layers.
        theta_global: Base of the angles in the others.
        norm_bias: Whether norms have a bias.
        attention_bias: Whether the products around attention have a bias.
        inner_bias: Whether the products around the gate have a bias.
    """

    heads: int
    dim: int
    inner: int
    vocabulary: int
    positions: int
    epsilon: float
    window: int
    local: tuple[bool, ...]
    theta_local: float
    theta_global: float
    norm_bias: bool = False
    attention_bias: bool = False
    inner_bias: bool = False

    @classmethod
    def of(cls, folder: ModelFolder) -> ModernBertShape | None:
        """Read from config.json; None if it describes something else than a plain ModernBERT.

        Raises:
            ModelError: It does, but a number is missing or impossible.
        """
        config = folder.config()
        if config["model_type"] != "modernbert" or config.get("hidden_activation", "gelu") != "gelu":
            return None
        if config.get("rope_scaling"):
            return None
        try:
            thetas = {kind: _theta(config, kind) for kind in (_LOCAL, _GLOBAL)}
            if None in thetas.values():
                return None
            shape = cls(
                heads=int(config["num_attention_heads"]),
                dim=int(config["hidden_size"]),
                inner=int(config["intermediate_size"]),
                vocabulary=int(config["vocab_size"]),
                positions=int(config["max_position_embeddings"]),
                epsilon=float(config.get("norm_eps", 1e-5)),
                window=int(config.get("local_attention", 128)) // 2,
                local=_local(config),
                theta_local=float(thetas[_LOCAL] or 0.0),
                theta_global=float(thetas[_GLOBAL] or 0.0),
                norm_bias=bool(config.get("norm_bias", False)),
                attention_bias=bool(config.get("attention_bias", False)),
                inner_bias=bool(config.get("mlp_bias", False)),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"model {folder.name}: config.json of a ModernBERT needs {error}") from error
        if shape.heads < 1 or shape.dim % (2 * shape.heads):
            raise ModelError(
                f"model {folder.name}: hidden_size {shape.dim} is no multiple of {shape.heads} heads of even width"
            )
        return shape

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that a checkpoint must hold."""
        dim, inner = self.dim, self.inner
        shapes: dict[str, tuple[int, ...]] = {"embeddings.tok_embeddings.weight": (self.vocabulary, dim)}
        norms = ["embeddings.norm", "final_norm"]
        for layer in range(len(self.local)):
            at = f"layers.{layer}."
            norms += [f"{at}attn_norm"] if layer else []  # the norm after the embedding stands for the first
            norms += [f"{at}mlp_norm"]
            linears = {"attn.Wqkv": (3 * dim, dim), "attn.Wo": (dim, dim)}
            linears |= {"mlp.Wi": (2 * inner, dim), "mlp.Wo": (dim, inner)}
            for name, shape in linears.items():
                shapes[f"{at}{name}.weight"] = shape
                if self.attention_bias if name.startswith("attn") else self.inner_bias:
                    shapes[f"{at}{name}.bias"] = shape[:1]
        for name in norms:
            shapes[f"{name}.weight"] = (dim,)
            if self.norm_bias:
                shapes[f"{name}.bias"] = (dim,)
        return shapes


@dataclass(frozen=True)
class _Layer:
    """A layer, with the norm that follows it."""

    qkv: Linear
    out: Linear
    middle_norm: Norm
    up: Linear
    down: Linear
    next_norm: Norm
    rotation: Rotation
    window: int | None


class ModernBertEncoder(PackedEncoder):
    """A ModernBERT on its device.

    Args:
        folder: Where its safetensors lie.
        shape: Its numbers.
        device: Where it computes.
        dtype: In which precision products are computed; sums, norms and angles between them are float32.
        final_norm: Whether hidden states went through the norm after the last layer. Without it they are the sum that
            runs through the layers, and `finish` applies that norm.

    Raises:
        ModelError: A tensor is missing, left over, or of another shape; names it.
    """

    def __init__(
        self,
        folder: ModelFolder,
        shape: ModernBertShape,
        *,
        device: torch.device,
        dtype: torch.dtype,
        final_norm: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype)
        tensors = Tensors(checked_tensors(folder, shape.tensors(), prefix=_PREFIX), device=device, dtype=dtype)
        self.dim, self.positions, self.vocabulary = shape.dim, shape.positions, shape.vocabulary
        self._heads, self._normed = shape.heads, final_norm
        self._words = tensors.put(tensors["embeddings.tok_embeddings.weight"])
        self._input_norm = tensors.norm("embeddings.norm", shape.epsilon)
        self._layers = _layers(tensors, shape, device)
        parameters = sum(rows[0] * (rows[1] if len(rows) > 1 else 1) for rows in shape.tensors().values())
        self.nbytes = parameters * self._words.element_size()

    def finish(self, states: torch.Tensor) -> torch.Tensor:
        """The norm after the last layer, float32 (rows, dim), of rows of hidden states that have not had it."""
        import torch

        norm = self._layers[-1].next_norm
        with torch.inference_mode():
            return torch.layer_norm(states.float(), (self.dim,), norm.weight, norm.bias, norm.epsilon)

    def _states(self, spans: Spans) -> torch.Tensor:
        stream = self._steps.embed(self._words, None, spans, norm=self._input_norm, dtype=self._dtype)
        last = len(self._layers) - 1 if self._normed else None
        for index, layer in enumerate(self._layers):
            stream = self._layer(stream, layer, spans, last=index == last)
        return stream.sums

    def _layer(self, stream: Stream, layer: _Layer, spans: Spans, *, last: bool) -> Stream:
        steps, tokens = self._steps, len(stream.sums)
        qkv = steps.rotate(self._product(stream.operand, layer.qkv, "qkv"), layer.rotation, spans, heads=self._heads)
        out = self._buffer("mixed", tokens, self.dim)
        mixed = steps.attend(qkv, spans, heads=self._heads, out=out, window=layer.window)
        update = self._product(mixed, layer.out, "sum")
        stream = steps.add_norm(stream.sums, update, norm=layer.middle_norm, kept="sum")
        inner = steps.gate(self._product(stream.operand, layer.up, "inner"))
        update = self._product(inner, layer.down, "sum")
        return steps.add_norm(stream.sums, update, norm=layer.next_norm, kept="norm" if last else "sum")


def _layers(tensors: Tensors, shape: ModernBertShape, device: torch.device) -> list[_Layer]:
    head = shape.dim // shape.heads
    near = _rotation(shape.theta_local, head, shape.positions, device)
    far = _rotation(shape.theta_global, head, shape.positions, device)
    names = [f"layers.{index}.attn_norm" for index in range(1, len(shape.local))] + ["final_norm"]
    layers = []
    for index, local in enumerate(shape.local):
        at = f"layers.{index}."
        layers.append(
            _Layer(
                qkv=tensors.linear(f"{at}attn.Wqkv"),
                out=tensors.linear(f"{at}attn.Wo"),
                middle_norm=tensors.norm(f"{at}mlp_norm", shape.epsilon),
                up=tensors.linear(f"{at}mlp.Wi"),
                down=tensors.linear(f"{at}mlp.Wo"),
                next_norm=tensors.norm(names[index], shape.epsilon),
                rotation=near if local else far,
                window=shape.window if local else None,
            )
        )
    return layers


def _rotation(theta: float, head: int, positions: int, device: torch.device) -> Rotation:
    import torch

    frequencies = 1.0 / (theta ** (torch.arange(0, head, 2, dtype=torch.float32) / head))
    angles = torch.arange(positions, dtype=torch.float32).unsqueeze(1) * frequencies
    return Rotation(angles.cos().to(device), angles.sin().to(device))


def _theta(config: dict[str, Any], kind: str) -> float | None:
    """Base of the angles of a kind of layer; None if its angles are scaled, which we do not compute."""
    name, default = _THETA[kind]
    parameters = (config.get("rope_parameters") or {}).get(kind) or {}
    if parameters.get("rope_type", "default") != "default":
        return None
    stated = parameters.get("rope_theta", config.get(name))
    return default if stated is None else float(stated)


def _local(config: dict[str, Any]) -> tuple[bool, ...]:
    layers = int(config["num_hidden_layers"])
    kinds = config.get("layer_types")
    if kinds is None:
        every = int(config.get("global_attn_every_n_layers", 3))
        return tuple(bool(index % every) for index in range(layers))
    if len(kinds) != layers or not set(kinds) <= {_LOCAL, _GLOBAL}:
        raise ValueError(f"layer_types of {layers} times {_LOCAL} or {_GLOBAL}")
    return tuple(kind == _LOCAL for kind in kinds)
