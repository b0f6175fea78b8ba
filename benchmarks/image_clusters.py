"""Clusters of frozen vectors that neighbours agree on, for a GPU host: an attempt at pseudo labels nearer to classes.

    vectors -> nearest of each row -> heads that give a row and a neighbour the same cluster -> cluster of each row

TEMI (Adaloglou et al. 2023, arXiv 2303.17896), whose clusters ELFS takes as labels: heads on frozen vectors maximise
the pointwise mutual information of neighbours, by a student and its moving average. Many heads learn side by side; the
one of the least loss counts. No label is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32, Int32

_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How the heads learn.

    Attributes:
        neighbours: Of each row, among which a partner is drawn.
        heads: Side by side.
        steps: Updates of Adam.
        batch_rows: Pairs of an update.
        rate: Adam's learning rate.
        temperature: Divides the logits of vectors of unit length.
        power: Of the product of the two probabilities; below 1 it keeps the clusters from emptying.
        average: Decay of the teacher's weights a step; that of the share of each cluster is 0.9.
    """

    neighbours: int = 50
    heads: int = 16
    steps: int = 4000
    batch_rows: int = 1024
    rate: float = 5e-3
    temperature: float = 0.1
    power: float = 0.8
    average: float = 0.99


def agreed_clusters(
    vectors: Float32, *, classes: int, how: Agreement, device: str, seed: int = 0
) -> tuple[Int32, Float32]:
    """Return the cluster of each row, int32 (rows,), and the cosines of its nearest, float32 (rows, neighbours).

    Args:
        vectors: Float32 (rows, dim), unit length; more rows than neighbours.
        classes: Clusters.
        how: The settings.
        device: Where.
        seed: Of weights and draws.
    """
    place = torch.device(device)
    rows = torch.from_numpy(vectors).to(place)
    cosines, near = _nearest(rows, how.neighbours)
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    draws = torch.Generator(place)
    draws.manual_seed(seed)
    weights = torch.randn(how.heads, classes, rows.shape[1], generator=draws, device=place) * 0.02
    student, teacher = weights.clone().requires_grad_(), weights.clone()
    shares = torch.full((how.heads, 1, classes), 1 / classes, device=place)
    adam = torch.optim.Adam([student], lr=how.rate)
    course = torch.zeros(how.heads, device=place)
    for step in range(how.steps):
        at = torch.randint(len(rows), (how.batch_rows,), generator=draws, device=place)
        drawn = torch.randint(how.neighbours, (how.batch_rows,), generator=draws, device=place)
        pair = rows[torch.cat([at, near[at, drawn]])]
        own = _probabilities(pair, student, how.temperature)
        with torch.no_grad():
            theirs = _probabilities(pair, teacher, how.temperature)
            shares.lerp_(theirs.mean(1, keepdim=True), 0.1)
        losses = _loss(own, theirs, shares, power=how.power)
        adam.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.sum())
        adam.step()
        with torch.no_grad():
            teacher.lerp_(student, 1 - how.average)
            if 2 * step >= how.steps:
                course += losses.detach()
    best = teacher[int(course.argmin())][None]
    parts = [_probabilities(part, best, how.temperature)[0].argmax(1) for part in torch.split(rows, _AT_ONCE)]
    found: Int32 = torch.cat(parts).cpu().numpy().astype(np.int32)
    return found, cosines.cpu().numpy()


def _nearest(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = [], []
    for start in range(0, len(rows), _AT_ONCE):
        cosines = rows[start : start + _AT_ONCE] @ rows.t()
        cosines[torch.arange(len(cosines)), start + torch.arange(len(cosines))] = -2.0
        best = cosines.topk(count, dim=1)
        values.append(best.values)
        indices.append(best.indices)
    return torch.cat(values), torch.cat(indices)


def _probabilities(rows: torch.Tensor, weights: torch.Tensor, temperature: float) -> torch.Tensor:
    """Float32 (heads, rows, classes)."""
    logits = torch.einsum("rd,hcd->hrc", rows, weights) / temperature
    return logits.softmax(2)


def _loss(own: torch.Tensor, theirs: torch.Tensor, shares: torch.Tensor, *, power: float) -> torch.Tensor:
    """Of each head, float32 (heads,): pairs on which the teachers agree count more, by the mean of all heads."""
    half = own.shape[1] // 2
    one, other = theirs[:, :half], theirs[:, half:]
    agree = (one * other).sum(2).mean(0)
    total = torch.zeros(len(own), device=own.device)
    for mine, partner in ((own[:, :half], other), (own[:, half:], one)):
        information = ((mine * partner).clamp_min(1e-12).pow(power) / shares).sum(2).log()
        total = total - (agree * information).mean(1) / 2
    return total
