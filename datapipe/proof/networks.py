"""One network, or several of one shape that are computed as one, each with its own weights.

    encoder, seeds -> open_networks -> groups() for the optimiser, logits(ids, there) (networks, texts, classes)

Several have their weights stacked, so a step asks the device for no more kernels than that of one network does. Sums of
one network do not read those of another, so the loss may be added up over all of them. Imports torch.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.func import functional_call, vmap

from datapipe.workers.encoders.checkpoint import UNUSED_TENSORS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_HEAD_SPREAD = 0.02
_HEAD_KEY = 3
"""Of the head's start, apart from those of order and choice of the rows."""


class Networks(Protocol):
    """Networks in training."""

    def groups(self, decay: float) -> list[dict[str, Any]]:
        """What the optimiser moves: matrices of the encoder, its norms and biases, the head."""

    def logits(self, ids: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """Logits, float32 (networks, texts, classes).

        Args:
            ids: Token ids, int64 (networks, texts, width).
            there: Which of them are no padding, bool of that shape.
        """


def open_networks(encoder: torch.nn.Module, seeds: Sequence[int], *, classes: int) -> Networks:
    """Start a network a seed from one encoder, which stays as it is.

    Args:
        encoder: A transformers model; its token table is shared and stays as it is.
        seeds: Of the heads.
        classes: Their number.
    """
    heads = torch.stack([_head(encoder, seed, classes) for seed in seeds])
    return _One(encoder, heads) if len(seeds) == 1 else _Stacked(encoder, heads)


class _One:
    def __init__(self, encoder: torch.nn.Module, head: torch.Tensor) -> None:
        self._encoder = copy.deepcopy(encoder)
        self._weights = {name: each.requires_grad_() for name, each in _trained(self._encoder).items()}
        self._head = head.requires_grad_()

    def groups(self, decay: float) -> list[dict[str, Any]]:
        return _groups(self._weights, self._head, decay, ndim=1)

    def logits(self, ids: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        mask = there[0].long()
        states = self._encoder(input_ids=ids[0], attention_mask=mask).last_hidden_state
        return _classified(states, there[0], self._head[0]).unsqueeze(0)


class _Stacked:
    def __init__(self, encoder: torch.nn.Module, heads: torch.Tensor) -> None:
        self._encoder = encoder
        count = len(heads)
        self._weights = {
            name: each.detach().expand(count, *each.shape).clone().requires_grad_()
            for name, each in _trained(encoder).items()
        }
        self._heads = heads.requires_grad_()
        self._all = vmap(self._logits)

    def groups(self, decay: float) -> list[dict[str, Any]]:
        return _groups(self._weights, self._heads, decay, ndim=2)

    def logits(self, ids: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._all(self._weights, self._heads, ids, there)
        return found

    def _logits(
        self, weights: Mapping[str, torch.Tensor], head: torch.Tensor, ids: torch.Tensor, there: torch.Tensor
    ) -> torch.Tensor:
        # Of four axes it is added to the scores as it is; nothing looks into it, which several at once do not allow.
        least = torch.finfo(torch.float32).min
        mask = torch.where(there, 0.0, least)[:, None, None, :]
        given = {"input_ids": ids, "attention_mask": mask}
        states = functional_call(self._encoder, dict(weights), kwargs=given).last_hidden_state
        return _classified(states, there, head)


def _trained(encoder: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    table = encoder.get_input_embeddings().weight  # type: ignore[operator]
    return {
        name: each
        for name, each in encoder.named_parameters()
        if each is not table and not name.startswith(UNUSED_TENSORS)
    }


def _groups(
    weights: Mapping[str, torch.Tensor], head: torch.Tensor, decay: float, *, ndim: int
) -> list[dict[str, Any]]:
    wide = [each for each in weights.values() if each.ndim > ndim]
    narrow = [each for each in weights.values() if each.ndim <= ndim]
    return [
        {"params": wide, "weight_decay": decay},
        {"params": narrow, "weight_decay": 0.0},
        {"params": [head], "weight_decay": 0.0},
    ]


def _head(encoder: torch.nn.Module, seed: int, classes: int) -> torch.Tensor:
    """Weights and, in the last column, biases, float32 (classes, dim + 1)."""
    table: torch.Tensor = encoder.get_input_embeddings().weight  # type: ignore[operator]
    dim = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
    draws = np.random.Generator(np.random.Philox(key=[seed, _HEAD_KEY]))
    start = np.zeros((classes, dim + 1), np.float32)
    start[:, :-1] = draws.normal(0, _HEAD_SPREAD, (classes, dim))
    return torch.from_numpy(start).to(table.device)


def _classified(states: torch.Tensor, there: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Logits, float32 (texts, classes), of the mean state of each text, whatever the precision of the states."""
    weights = there.unsqueeze(-1).float()
    with torch.autocast(states.device.type, enabled=False):
        means = (states.float() * weights).sum(1) / weights.sum(1)
        return torch.addmm(head[:, -1], means, head[:, :-1].T)
