"""Windows on the device, and batches of them: nothing is tokenised, copied or padded on the host while training.

Bank, Windows, Template -> Store (flat tensors) -> plan (lists of windows of like length) -> Store.batch -> Batch
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from datapipe.storage.arrays import Int64
    from provence.training.bank import Bank
    from provence.training.windows import Template, Windows

__all__ = ["Batch", "Flat", "Store", "assemble", "plan"]

_MULTIPLE = 8
"""Batches are padded to a multiple of so many tokens, as tensor cores like it."""

_PIECES = 5
"""Pieces of a window beside its units: special, question, special, title; special."""

_RUN = 64
"""Batches over which windows are sorted by length, after a shuffle."""


class Batch(NamedTuple):
    """Windows side by side.

    Attributes:
        ids: int64 (windows, longest).
        lengths: int64 (windows,).
        unit: Unit of each token, counted in the batch, int64 (windows, longest); `len(target)` for none.
        target: Probability that each unit is to be kept, float32 (units,).
        score: What the score head should say, float32 (windows,).
        order: Place of each unit among all units of the store, int64 (units,).
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    unit: torch.Tensor
    target: torch.Tensor
    score: torch.Tensor
    order: torch.Tensor


class Flat(NamedTuple):
    """Windows as tokens, on the device.

    Attributes:
        ids: int32 (tokens,).
        unit: Unit of each token among all units, -1 for question, title and special tokens, int32 (tokens,).
        at: Bounds of each window in the tokens, int64 (windows + 1,).
    """

    ids: torch.Tensor
    unit: torch.Tensor
    at: torch.Tensor


@dataclass(frozen=True, eq=False)
class Store:
    """Windows as flat tensors on the device.

    Attributes:
        ids: int32 (tokens,).
        unit: Unit of each token, -1 for none, int32 (tokens,).
        at: Bounds of each window in the tokens, int64 (windows + 1,).
        unit_at: Bounds of each window in the units, int64 (windows + 1,).
        target: float32 (units,).
        score: float32 (windows,).
        soft_score: Whether `score` holds a teacher's raw scores instead of 0 and 1.
        lengths: Tokens of each window, on the host, int64 (windows,).
        counts: Units of each window, on the host, int64 (windows,).
    """

    ids: torch.Tensor
    unit: torch.Tensor
    at: torch.Tensor
    unit_at: torch.Tensor
    target: torch.Tensor
    score: torch.Tensor
    soft_score: bool
    lengths: Int64
    counts: Int64

    @classmethod
    def of(cls, bank: Bank, windows: Windows, template: Template, *, device: torch.device) -> Self:
        """With the labels of the windows as targets."""
        flat = assemble(bank, windows, template, device=device)
        return cls(
            ids=flat.ids,
            unit=flat.unit,
            at=flat.at,
            unit_at=torch.from_numpy(windows.at).to(device),
            target=torch.from_numpy(windows.label.astype(np.float32)).to(device),
            score=torch.from_numpy(windows.holds_gold().astype(np.float32)).to(device),
            soft_score=False,
            lengths=np.diff(flat.at.cpu().numpy()),
            counts=np.diff(windows.at),
        )

    def taught(self, keep: torch.Tensor, score: torch.Tensor, *, soft: float) -> Self:
        """The same windows with targets soft * teacher + (1 - soft) * label, and the teacher's scores."""
        target = soft * keep.to(self.target) + (1 - soft) * self.target
        return replace(self, target=target, score=score.to(self.score), soft_score=True)

    def batch(self, chosen: Int64) -> Batch:
        """The chosen windows, padded to the longest."""
        device = self.ids.device
        longest = int(-(-self.lengths[chosen].max() // _MULTIPLE) * _MULTIPLE)
        window = torch.from_numpy(chosen).to(device, non_blocking=True)
        start, lengths = self.at[window], self.at[window + 1] - self.at[window]
        place = torch.arange(longest, device=device)
        there = place < lengths.unsqueeze(1)
        where = (start.unsqueeze(1) + place).clamp(max=len(self.ids) - 1)
        counts = self.unit_at[window + 1] - self.unit_at[window]
        before = counts.cumsum(0) - counts
        units = int(np.sum(self.counts[chosen]))
        owner = torch.repeat_interleave(torch.arange(len(window), device=device), counts, output_size=units)
        order = torch.arange(units, device=device) - before[owner] + self.unit_at[window][owner]
        unit = self.unit[where].long()
        local = unit - self.unit_at[window].unsqueeze(1) + before.unsqueeze(1)
        local = torch.where(there & (unit >= 0), local, units)
        ids = torch.where(there, self.ids[where].long(), 0)
        return Batch(ids, lengths, local, self.target[order], self.score[window], order)


def assemble(bank: Bank, windows: Windows, template: Template, *, device: torch.device) -> Flat:
    """Gather the tokens of all windows: special, question, special, title, sentences, special.

    A window is a row of pieces, each a span of one array of all ids; their lengths say where each token comes from.
    """

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(device)

    special = np.array([*template.before, *template.between, *template.after])
    whole = put(np.concatenate([bank.tokens + template.shift, bank.words + template.shift, special]))
    words, ends = len(bank.tokens), len(bank.tokens) + len(bank.words)
    cuts = (np.cumsum([0, len(template.before), len(template.between), len(template.after)]) + ends).tolist()
    word_at, token_at = put(bank.word_at), put(bank.token_at)
    asked, title, shown = put(bank.asked[windows.question]), put(np.maximum(windows.title, 0)), put(windows.title >= 0)
    unit_at, sentence = put(windows.at), put(windows.sentence)
    count, units = len(windows), len(windows.sentence)
    window, unit = torch.arange(count, device=device), torch.arange(units, device=device)
    first, last = window * _PIECES + unit_at[:-1], window * _PIECES + unit_at[1:] + _PIECES - 1
    each = unit + (window * _PIECES + _PIECES - 1).repeat_interleave(unit_at.diff(), output_size=units)
    start = torch.zeros(_PIECES * count + units, dtype=torch.int64, device=device)
    length, owner = torch.zeros_like(start), torch.full_like(start, -1)
    start[first], length[first] = cuts[0], cuts[1] - cuts[0]
    start[first + 1], length[first + 1] = words + word_at[asked], word_at[asked + 1] - word_at[asked]
    start[first + 2], length[first + 2] = cuts[1], cuts[2] - cuts[1]
    start[first + 3], length[first + 3] = words + word_at[title], (word_at[title + 1] - word_at[title]) * shown
    start[each], length[each] = token_at[sentence], token_at[sentence + 1] - token_at[sentence]
    start[last], length[last] = cuts[2], cuts[3] - cuts[2]
    owner[each] = unit
    begin = functional.pad(length.cumsum(0), (1, 0))
    total = int(begin[-1])
    where = torch.arange(total, device=device) + (start - begin[:-1]).repeat_interleave(length, output_size=total)
    at = torch.cat([begin[first], begin[-1:]])
    return Flat(whole[where].int(), owner.repeat_interleave(length, output_size=total).int(), at)


def plan(lengths: Int64, *, batch_tokens: int, rng: np.random.Generator | None) -> list[Int64]:
    """Cut windows into batches of at most `batch_tokens`, padding included, each of windows of like length.

    Args:
        lengths: int64 (windows,).
        batch_tokens: A window longer than it is a batch of its own.
        rng: Shuffles; without one, the longest come first.
    """
    if not len(lengths):
        return []
    order = np.argsort(-lengths, kind="stable") if rng is None else rng.permutation(len(lengths))
    mean = max(1.0, float(lengths.mean()))
    run = len(order) if rng is None else max(1, int(_RUN * batch_tokens / mean))
    batches: list[Int64] = []
    for begin in range(0, len(order), run):
        part = order[begin : begin + run]
        part = part[np.argsort(-lengths[part], kind="stable")]
        start = 0
        while start < len(part):
            longest = -(-int(lengths[part[start]]) // _MULTIPLE) * _MULTIPLE
            end = start + max(1, batch_tokens // longest)
            batches.append(part[start:end])
            start = end
    if rng is not None:
        batches = [batches[place] for place in rng.permutation(len(batches))]
    return batches
