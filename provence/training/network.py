"""A trainable encoder of the BERT kind with both heads, whose tensors have the names of its checkpoint.

    ModelFolder -> open_network -> PrunerNetwork(ids, lengths) -> keep logits (windows, tokens), score logits (windows,)
                                -> tensors() -> write_native

BERT (Devlin et al., arXiv 1810.04805) and MPNet (Song et al., arXiv 2004.09297: positions from 2, one table of relative
biases for all layers). Post-norm, exact GELU, token type 0. The numbers are those of transformers' classes; padding
changes nothing. Raises `ModelError` for other architectures and for tensors that do not fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from datapipe.errors import ModelError
from provence.families.stacking import stacked_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from datapipe.workers.folder import ModelFolder

__all__ = ["HEADS", "NetworkShape", "Outputs", "PrunerNetwork", "open_network"]

HEADS = ("keep.weight", "keep.bias", "score.weight", "score.bias")
"""Names of the heads' tensors, as in a native folder."""

_ENDS = ("weight", "bias")

_FARTHEST = 128
"""Distance from which relative positions share a bucket (`max_distance` of T5 and MPNet)."""

_BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "mixed": "attention.output.dense",
    "mixed_norm": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "outer_norm": "output.LayerNorm",
}
_MPNET = _BERT | {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "mixed": "attention.attn.o",
    "mixed_norm": "attention.LayerNorm",
}


class Outputs(NamedTuple):
    """Logits of both heads.

    Attributes:
        keep: Of every token, (windows, longest); meaningless where there is padding.
        score: Of every window, (windows,).
    """

    keep: torch.Tensor
    score: torch.Tensor


@dataclass(frozen=True)
class NetworkShape:
    """The numbers of a config.json that decide the forward pass.

    Attributes:
        kind: `bert` or `mpnet`.
        layers: How many there are.
        heads: Heads that the states are split into.
        epsilon: Of the norms.
        buckets: Of relative positions, both directions together; 0 for none.
        first: Row of the position table of the first token.
    """

    kind: str
    layers: int
    heads: int
    epsilon: float
    buckets: int = 0
    first: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any], *, name: str) -> NetworkShape:
        """Read from a config. Raises `ModelError` if it is of another kind, or a number is missing."""
        kind = config.get("model_type")
        if kind not in {"bert", "mpnet"} or config.get("hidden_act", "gelu") != "gelu":
            raise ModelError(f"model {name}: model_type {kind} cannot be trained; bert and mpnet with gelu can")
        try:
            return cls(
                kind=kind,
                layers=int(config["num_hidden_layers"]),
                heads=int(config["num_attention_heads"]),
                epsilon=float(config.get("layer_norm_eps", 1e-12)),
                buckets=int(config.get("relative_attention_num_buckets", 32)) if kind == "mpnet" else 0,
                first=2 if kind == "mpnet" else 0,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"model {name}: config.json lacks a number that the encoder needs ({error})") from error


class PrunerNetwork(nn.Module):
    """The encoder with its heads.

    Args:
        shape: Of the encoder.
        tensors: Its weights by the names of its checkpoint, and perhaps those of the heads; new heads start at 0
            (score) and small random values (keep).
        dropout: Of hidden states and of what attention and feed-forward add, while training.

    Attributes:
        instead: Used by the forward pass in place of the weights of these names.
        dtype: In which the forward pass computes; weights and their gradients are float32.
    """

    def __init__(self, shape: NetworkShape, tensors: Mapping[str, torch.Tensor], *, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape, self.dropout = shape, dropout
        self.instead: Mapping[str, torch.Tensor] = {}
        self.dtype = torch.float32
        self._names = _BERT if shape.kind == "bert" else _MPNET
        dim = tensors["embeddings.word_embeddings.weight"].shape[1]
        heads = {"keep.weight": torch.randn(1, dim) * 0.02, "score.weight": torch.zeros(1, dim)}
        heads |= {"keep.bias": torch.full((1,), -1.5), "score.bias": torch.zeros(1)}
        whole = heads | dict(tensors)
        self.weights = nn.ParameterDict({_key(n): nn.Parameter(t.float().clone()) for n, t in whole.items()})

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by the names of the checkpoint."""
        for key, weight in self.weights.items():
            yield _name(key), weight

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of all weights by the names of the checkpoint, float32, on the CPU."""
        return {name: weight.detach().float().cpu().clone() for name, weight in self.named_weights()}

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> Outputs:
        """Logits of both heads.

        Args:
            ids: int64 (windows, longest); what stands after a window's length is ignored.
            lengths: Tokens of each window, int64 (windows,).
        """
        place = torch.arange(ids.shape[1], device=ids.device)
        states = self._embedded(ids, place)
        bias = self._bias(place < lengths.unsqueeze(1), place)
        for layer in range(self.shape.layers):
            states = self._layer(states, bias, f"encoder.layer.{layer}.")
        keep = self._linear(states, "keep").squeeze(2)
        return Outputs(keep.float(), self._linear(states[:, 0], "score").squeeze(1).float())

    def _embedded(self, ids: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        words = functional.embedding(ids, self._weight("embeddings.word_embeddings.weight"))
        states = words + self._weight("embeddings.position_embeddings.weight")[place + self.shape.first]
        if self.shape.kind == "bert":
            states = states + self._weight("embeddings.token_type_embeddings.weight")[0]
        return self._dropped(self._norm(states, "embeddings.LayerNorm"))

    def _bias(self, there: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """What is added to attention's logits, (windows, heads or 1, longest, longest).

        It is -inf for keys of the padding, plus MPNet's relative biases; contiguous, as the fused kernels want it.
        """
        closed = torch.zeros(there.shape, device=there.device, dtype=self.dtype).masked_fill(~there, -torch.inf)
        closed = closed[:, None, None, :]
        if not self.shape.buckets:
            return closed.expand(-1, 1, len(place), -1).contiguous()
        buckets = _buckets(place - place.unsqueeze(1), self.shape.buckets)
        table = self._weight("encoder.relative_attention_bias.weight")
        return (closed + table[buckets].permute(2, 0, 1).contiguous()).contiguous()

    def _layer(self, states: torch.Tensor, bias: torch.Tensor, prefix: str) -> torch.Tensor:
        windows, longest, dim = states.shape
        heads = self.shape.heads
        name = {part: prefix + place for part, place in self._names.items()}
        three = [name[part] for part in ("query", "key", "value")]
        weight, shift = (torch.cat([self._weight(f"{part}.{end}") for part in three]) for end in _ENDS)
        mixed = functional.linear(states, weight, shift).view(windows, longest, 3, heads, dim // heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        mask = bias.expand(-1, heads, -1, -1)
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):  # cuDNN plans anew for every shape
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = self._linear(mixed.transpose(1, 2).reshape(windows, longest, dim), name["mixed"])
        states = self._norm(states + self._dropped(mixed), name["mixed_norm"])
        inner = functional.gelu(self._linear(states, name["inner"]))
        return self._norm(states + self._dropped(self._linear(inner, name["outer"])), name["outer_norm"])

    def _weight(self, name: str) -> torch.Tensor:
        weight = self.instead[name] if name in self.instead else self.weights[_key(name)]
        return weight.to(self.dtype)

    def _linear(self, states: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(states, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"))

    def _norm(self, states: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = (self._weight(f"{name}.{end}") for end in _ENDS)
        return functional.layer_norm(states, states.shape[-1:], weight, bias, self.shape.epsilon)

    def _dropped(self, states: torch.Tensor) -> torch.Tensor:
        return functional.dropout(states, self.dropout, self.training) if self.dropout else states


def open_network(
    folder: ModelFolder, *, layers: Sequence[int] = (), dropout: float = 0.0, seed: int = 0
) -> PrunerNetwork:
    """Read an encoder for training; a pooler is left out.

    Args:
        folder: Where it lies.
        layers: Layers of it that the network's start from, one each; empty for its own.
        dropout: While training.
        seed: Of the new keep head.

    Raises:
        ModelError: It is of another kind, or tensors are missing, left over or of the wrong shape.
    """
    config = folder.config()
    shape = NetworkShape.of(config, name=folder.name)
    tensors = {name.removeprefix(f"{shape.kind}."): tensor for name, tensor in folder.tensors().items()}
    tensors = {n: t for n, t in tensors.items() if not n.startswith("pooler.") and not n.endswith("position_ids")}
    expected = _expected(shape)
    if expected != tensors.keys():
        odd = sorted(expected ^ tensors.keys())
        raise ModelError(f"model {folder.name}: tensors are missing or left over: {', '.join(odd[:5])}")
    if layers:
        tensors, shape = stacked_tensors(tensors, layers), replace(shape, layers=len(layers))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PrunerNetwork(shape, tensors, dropout=dropout)


def _expected(shape: NetworkShape) -> set[str]:
    names = ["embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"]
    names += [f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position")]
    if shape.kind == "bert":
        names.append("embeddings.token_type_embeddings.weight")
    if shape.buckets:
        names.append("encoder.relative_attention_bias.weight")
    parts = (_BERT if shape.kind == "bert" else _MPNET).values()
    names += [f"encoder.layer.{i}.{part}.{end}" for i in range(shape.layers) for part in parts for end in _ENDS]
    return set(names)


def _buckets(relative: torch.Tensor, buckets: int) -> torch.Tensor:
    """Bucket of each position relative to the query: exact when near, logarithmic when far (T5, arXiv 1910.10683)."""
    half = buckets // 2
    sign = (relative > 0) * half
    distance = relative.abs()
    near = half // 2
    ratio = torch.log(distance.float().clamp(min=1) / near) / math.log(_FARTHEST / near)
    far = (near + (ratio * (half - near)).long()).clamp(max=half - 1)
    return sign + torch.where(distance < near, distance, far)


def _key(name: str) -> str:
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
