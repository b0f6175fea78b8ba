"""An encoder with a keep head on every token and a score head on every window: what all families share.

    windows -> encoder.hidden -> states (tokens, dim) -> KeepHead -> keep probabilities (tokens,)
                                                      -> ScoreHead -> scores (windows,)

Heads compute in float32 whatever the encoder's precision: they cost nothing beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from datapipe.workers.encoders.pooling import pool
from provence.families.base import Heads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from datapipe.storage.arrays import Int32
    from datapipe.workers.encoders import Encoder
    from datapipe.workers.encoders.steps import Norm
    from provence.families.base import Conduct

__all__ = ["ACTIVATIONS", "Activation", "Affine", "HeadedPruner", "KeepHead", "ScoreHead"]

Activation: TypeAlias = Literal["gelu", "relu", "silu", "tanh"]
ACTIVATIONS: tuple[Activation, ...] = ("gelu", "relu", "silu", "tanh")


class Affine(NamedTuple):
    """A linear layer: weight float32 (out, in), bias float32 (out,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], name: str, *, device: torch.device) -> Affine:
        """The layer `name` on the device; a bias only if there is one."""
        bias = tensors.get(f"{name}.bias")
        return cls(tensors[f"{name}.weight"].float().to(device), None if bias is None else bias.float().to(device))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Float32 (rows, in) to (rows, out)."""
        import torch

        return torch.nn.functional.linear(inputs, self.weight, self.bias)


@dataclass(frozen=True)
class KeepHead:
    """Keep probabilities of tokens.

    Attributes:
        logit: Its one output's sigmoid is the probability.
    """

    logit: Affine

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], name: str, *, device: torch.device) -> KeepHead:
        """The head `name` with one row, or with two of which softmax's second is the probability.

        A softmax of two is the sigmoid of their difference, which one row computes.
        """
        weight, bias = Affine.of(tensors, name, device=device)
        if len(weight) == 1:
            return cls(Affine(weight, bias))
        return cls(Affine(weight[1:] - weight[:1], None if bias is None else bias[1:] - bias[:1]))

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states, float32 (tokens, dim), to probabilities, float32 (tokens,)."""
        return self.logit(states).squeeze(1).sigmoid()


@dataclass(frozen=True)
class ScoreHead:
    """Relevance of windows: norm of the states, pooling, dense, activation, norm, output, in this order.

    Attributes:
        out: Gives the logit.
        dense: The layer before it, if there is one.
        activation: After `dense`.
        state_norm: Of the hidden states, where the encoder leaves it out.
        dense_norm: After the activation.
        pooling: Which state stands for a window: the first, or the mean.
        squashed: Whether the score is the logit's sigmoid instead of the logit.
    """

    out: Affine
    dense: Affine | None = None
    activation: Activation = "gelu"
    state_norm: Norm | None = None
    dense_norm: Norm | None = None
    pooling: Literal["cls", "mean"] = "cls"
    squashed: bool = False

    def __call__(self, states: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Hidden states, float32 (tokens, dim), of windows of these lengths to scores, float32 (windows,)."""
        import torch

        if self.pooling == "mean":
            pooled = pool(_normed(states, self.state_norm), lengths, mode="mean", normalised=False)
        else:
            pooled = _normed(pool(states, lengths, mode="cls", normalised=False), self.state_norm)
        if self.dense is not None:
            apply = torch.tanh if self.activation == "tanh" else getattr(torch.nn.functional, self.activation)
            pooled = _normed(apply(self.dense(pooled)), self.dense_norm)
        logits = self.out(pooled).squeeze(1)
        return logits.sigmoid() if self.squashed else logits


class HeadedPruner:
    """A pruner on its device: any encoder with both heads.

    Args:
        encoder: On the device.
        conduct: How the family wants to be used; its `max_length` is lowered to the encoder's positions.
        keep: On the device.
        score: On the device.
    """

    def __init__(self, encoder: Encoder, *, conduct: Conduct, keep: KeepHead, score: ScoreHead) -> None:
        self._encoder, self._keep, self._score = encoder, keep, score
        self.conduct = replace(conduct, max_length=min(conduct.max_length, encoder.positions))
        self.vocabulary, self.positions, self.padded = encoder.vocabulary, encoder.positions, encoder.padded
        self.nbytes = encoder.nbytes

    def heads(self, windows: Sequence[Int32]) -> Heads:
        """Keep probabilities of all tokens, window after window, and a score a window; float32, on the device."""
        import torch

        with torch.inference_mode():
            states = self._encoder.hidden(windows).float()
            return Heads(self._keep(states), self._score(states, [len(window) for window in windows]))


def _normed(states: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    import torch

    if norm is None:
        return states
    return torch.nn.functional.layer_norm(states, states.shape[-1:], norm.weight, norm.bias, norm.epsilon)
