"""A batch of prompts continued token by token, with the keys and values of what was read before kept on the device.

prompts -> padded on the left -> body (once) -> last states -> logits -> next tokens -> body (one token a row) -> ...

Rows that have ended drop out of the batch once they are half of it. Which tokens come depends on the prompts of the
batch, their limits and draws alone, never on time: rows drop out at fixed steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.workers.encoders.transfer import to_device, to_host

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Float32, Int32
    from datapipe.workers.encoders.causal import CausalModel

__all__ = ["Decoding", "decode"]

CHECK_STEPS = 8
"""Steps between two looks at how many rows have ended: each makes the host wait for the device."""


@dataclass(frozen=True, eq=False)
class Decoding:
    """One prompt and how it is to be continued.

    Attributes:
        ids: The prompt, int32 (length,), at least one token.
        limit: Tokens after which the continuation is cut, >= 1.
        temperature: Divides the logits; 0 takes the most probable token (ties: the lowest id).
        top_p: The most probable tokens that together have at least this probability are drawn from, 0 < top_p <= 1.
        draws: Uniform in [0, 1), float32 (limit,), one a token; unused at temperature 0.
    """

    ids: Int32
    limit: int
    temperature: float
    top_p: float
    draws: Float32


def decode(model: CausalModel, batch: Sequence[Decoding], *, stops: Sequence[int], device: torch.device) -> list[Int32]:
    """Continue every prompt; int32 (tokens,) each, up to `limit` of them, ended by one of `stops` where it has ended.

    Args:
        model: On its device.
        batch: At least one prompt; those of a batch are padded to the longest.
        stops: Ids of tokens that end a continuation.
        device: Of the model.

    Raises:
        FloatingPointError: A logit that decides is not finite; names the prompt's place in the batch.
    """
    import torch

    with torch.inference_mode():
        run = _Run(model, batch, stops=stops, device=device)
        for step in range(max(each.limit for each in batch)):
            run.step(step)
            if (step + 1) % CHECK_STEPS == 0 and not run.settle():
                break
        found, wrong = to_host(run.found), to_host(run.wrong)
    if wrong.any():
        raise FloatingPointError(f"the logits of item {int(wrong.argmax())} of the batch are not finite")
    return [_ended(row[: each.limit], stops) for row, each in zip(found, batch, strict=True)]


def _ended(row: Any, stops: Sequence[int]) -> Int32:
    """A row up to and with its first stop; -1 stands where nothing was drawn any more."""
    ends = np.flatnonzero(np.isin(row, [*stops, -1]))
    end = len(row) if not len(ends) else int(ends[0]) + int(row[ends[0]] != -1)
    ids: Int32 = row[:end].astype(np.int32)
    return ids


class _Run:
    """What a batch has come to.

    Attributes:
        found: Tokens of every prompt, int64 (prompts, longest limit); -1 where none was drawn.
        wrong: Whether a logit of the prompt was not finite, bool (prompts,).
    """

    def __init__(
        self, model: CausalModel, batch: Sequence[Decoding], *, stops: Sequence[int], device: torch.device
    ) -> None:
        import torch

        count, longest = len(batch), max(len(each.ids) for each in batch)
        steps = max(each.limit for each in batch)
        ids, there = np.zeros((count, longest), np.int64), np.ones((count, longest + steps), np.int64)
        draws = np.zeros((count, steps), np.float32)
        for row, each in enumerate(batch):
            ids[row, longest - len(each.ids) :] = each.ids
            there[row, : longest - len(each.ids)] = 0
            draws[row, : each.limit] = each.draws[: each.limit]
        self._model, self._cache, self._seen = model, None, longest
        self._ids, self._mask, self._draws = (to_device(array, device) for array in (ids, there, draws))
        self._limits = to_device(np.array([each.limit for each in batch], np.int64), device)
        self._temperature, self._top_p = (
            to_device(np.array([getattr(each, name) for each in batch], np.float32)[:, None], device)
            for name in ("temperature", "top_p")
        )
        self._sampled = any(each.temperature > 0 for each in batch)
        self._narrow = any(each.top_p < 1 for each in batch if each.temperature > 0)
        self._stops = to_device(np.array([*stops], np.int64), device)
        self._own = torch.arange(count, device=device)
        self._done = torch.zeros(count, dtype=torch.bool, device=device)
        self.found = torch.full((count, steps), -1, dtype=torch.int64, device=device)
        self.wrong = torch.zeros(count, dtype=torch.bool, device=device)

    def step(self, step: int) -> None:
        """Read what is new and draw one token a row."""
        import torch

        mask = self._mask[:, : self._seen]
        places = (mask.cumsum(1) - 1).clamp_(min=0)[:, -self._ids.shape[1] :]
        states, self._cache = self._model.advance(self._ids, mask=mask, places=places, cache=self._cache)
        chunks = [slice(at, at + self._model.chunk_rows) for at in range(0, len(states), self._model.chunk_rows)]
        told = [self._drawn(self._model.logits(states[chunk]), chunk, step) for chunk in chunks]
        tokens, finite = torch.cat([each[0] for each in told]), torch.cat([each[1] for each in told])
        going = ~self._done
        self.wrong[self._own] |= going & ~finite
        self.found[self._own, step] = torch.where(going, tokens, -1)
        self._done |= torch.isin(tokens, self._stops) | (self._limits <= step + 1) | ~finite
        self._ids, self._seen = tokens[:, None], self._seen + 1

    def settle(self) -> bool:
        """Whether rows go on; those that have ended leave once they are half of the batch."""
        import torch

        rest = torch.nonzero(~self._done).squeeze(1)
        if not len(rest):
            return False
        if 2 * len(rest) <= len(self._done):
            self._cache.batch_select_indices(rest)  # type: ignore[attr-defined]
            for name in ("_ids", "_mask", "_draws", "_limits", "_temperature", "_top_p", "_own", "_done"):
                setattr(self, name, getattr(self, name)[rest])
        return True

    def _drawn(self, logits: torch.Tensor, rows: slice, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Next tokens, int64 (rows,), and whether the logits that decide are finite, bool (rows,)."""
        greatest, likely = logits.max(1)
        finite = greatest.isfinite()
        if not self._sampled:
            return likely, finite
        temperature = self._temperature[rows]
        mass = ((logits - greatest[:, None]) / temperature.clamp(min=1e-6)).softmax(1)
        if self._narrow:
            ordered, order = mass.sort(stable=True, dim=1, descending=True)
            outside = ordered.cumsum(1) - ordered >= self._top_p[rows]
            mass.masked_fill_(outside.scatter(1, order, outside), 0.0)
        # In the order of the ids, which rounding does not change, as it does the order of all but equal probabilities.
        summed = mass.double().cumsum(1)
        drawn = (summed <= self._draws[rows, step, None] * summed[:, -1:]).sum(1).clamp_(max=logits.shape[1] - 1)
        return drawn.where(temperature.squeeze(1) > 0, likely), finite
