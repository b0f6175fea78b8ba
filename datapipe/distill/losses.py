"""The loss of knowledge distillation against stored soft labels.

    SoftLabels of codec.py -> targets_of -> DenseTargets | TopTargets | SampledTargets
    kd_loss(student logits, targets, labels) = (1 - alpha) CE(label, student) + alpha T^2 KL(teacher || student)

as in Hinton et al., arXiv 1503.02531, weighted as in Ben-Baruch et al., arXiv 2403.07854. Positions are rows, or scored
tokens. Half precision is raised to float32; float64 stays. Memory beside the logits: one or two copies of them.

How the KL is taken from what is stored, with p the teacher and q the student:

| labels | KL | T |
|---|---|---|
| dense | over all classes, both sides tempered: softmax(log p / T) against softmax(z / T) | any |
| topk | over k + 1 buckets, the last one all other classes together | any |
| sampled | sum over drawn ids of count / draws * -log q, minus the stored entropy of p | 1 |

The buckets of `topk` are made first, at T = 1, and then tempered as if they were k + 1 classes, on both sides: bucket b
weighs m_b^(1/T) / sum_c m_c^(1/T), where m is its mass. A tempered sum over the tail itself would need the classes that
are not stored. So the loss is 0 exactly where the student has the teacher's masses, and at T = 1 it is never above the
KL over all classes. It does not see how the student spreads the tail.

`sampled` is unbiased at T = 1, loss and gradient: the counts are all that depends on the draws, and enter linearly. One
position's value may be below 0. At another T the ratio p^(1/T) / p would have to be known for each draw, and its sum
over all classes, and only p's counts are stored: T != 1 is refused.

Raises `SoftLabelError`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import numpy as np
import torch
from torch.nn import functional
from torch.utils.dlpack import from_dlpack

from datapipe.distill.codec import DenseLabels, TopLabels
from datapipe.errors import SoftLabelError

if TYPE_CHECKING:
    from datapipe.distill.codec import Float16, SoftLabels
    from datapipe.distill.header import SoftLabelHeader

__all__ = ["NO_LABEL", "DenseTargets", "SampledTargets", "Targets", "TopTargets", "kd_loss", "targets_of"]

NO_LABEL = -100
"""The label of a position that has none; torch's own cross entropy skips it too."""


@dataclass(frozen=True, slots=True)
class _Movable:
    """Goes to a device, or to page-locked memory, as a whole."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the same on `device`."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(
            self, **{name: part.to(device, non_blocking=non_blocking) for name, part in parts.items()}
        )

    def pin_memory(self) -> Self:
        """Return the same in page-locked memory; the `DataLoader` asks for it."""
        names = [field.name for field in dataclasses.fields(self)]
        return dataclasses.replace(self, **{name: getattr(self, name).pin_memory() for name in names})


@dataclass(frozen=True, slots=True)
class DenseTargets(_Movable):
    """Whole distributions.

    Attributes:
        log_probabilities: Up to a constant a position, floating (positions, classes).
    """

    log_probabilities: torch.Tensor

    def __len__(self) -> int:
        return len(self.log_probabilities)


@dataclass(frozen=True, slots=True)
class TopTargets(_Movable):
    """The k most probable classes.

    Attributes:
        ids: int64 (positions, k).
        log_probabilities: Floating (positions, k).
        tail: Logarithm of the mass of all other classes, floating (positions,).
    """

    ids: torch.Tensor
    log_probabilities: torch.Tensor
    tail: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class SampledTargets(_Movable):
    """Draws from the teacher.

    Attributes:
        ids: int64 (positions, width), filled up with 0.
        weights: Count / draws of each id, 0 where filled up, float32 (positions, width).
        entropy: Of the teacher's distribution in nats, floating (positions,).
    """

    ids: torch.Tensor
    weights: torch.Tensor
    entropy: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)


Targets: TypeAlias = DenseTargets | TopTargets | SampledTargets


def targets_of(labels: SoftLabels, header: SoftLabelHeader) -> Targets:
    """Return labels as tensors on the host; those of float16 share the memory of the labels."""
    if isinstance(labels, DenseLabels):
        return DenseTargets(_shared(labels.log_probabilities))
    if isinstance(labels, TopLabels):
        return TopTargets(
            torch.from_numpy(labels.ids.astype(np.int64)), _shared(labels.log_probabilities), _shared(labels.tail)
        )
    sizes = np.diff(labels.offsets)
    filled = np.arange(max(1, int(sizes.max(initial=0)))) < sizes[:, None]
    ids, weights = np.zeros(filled.shape, np.int64), np.zeros(filled.shape, np.float32)
    ids[filled] = labels.ids
    weights[filled] = labels.counts / np.float32(header.draws or 1)
    return SampledTargets(torch.from_numpy(ids), torch.from_numpy(weights), _shared(labels.entropy))


def kd_loss(
    student_logits: torch.Tensor,
    targets: Targets,
    labels: torch.Tensor | None,
    *,
    alpha: float | torch.Tensor,
    temperature: float = 1.0,
    reduction: Literal["mean", "none"] = "mean",
    check: bool = True,
) -> torch.Tensor:
    """Return (1 - alpha) CE + alpha T^2 KL(teacher || student); the module's text says how the KL is taken.

    Args:
        student_logits: z, floating (positions, classes), finite.
        targets: Of the same positions; moved to the logits' device if need be.
        labels: Class of each position, int64 (positions,); `NO_LABEL` or None where alpha is 1.
        alpha: Weight of the teacher, 0 ... 1: one for all, or floating (positions,).
        temperature: T > 0; 1 for sampled targets.
        reduction: `mean` over the positions, or `none`: floating (positions,).
        check: Whether values are looked at: finite logits, ids and labels in range. On an accelerator that waits for
            the device once a call. Shapes and options are always checked.

    Raises:
        SoftLabelError: Shapes differ, k is over the class count, an id, a label, alpha or T is out of range, a logit is
            not finite, or a position has neither label nor teacher; names the first such position.
    """
    _check_shapes(student_logits, targets, labels, temperature)
    targets = targets.to(student_logits.device)
    labels = None if labels is None else labels.to(student_logits.device)
    exact = student_logits if student_logits.dtype == torch.float64 else student_logits.float()
    weight = torch.as_tensor(alpha, dtype=exact.dtype, device=exact.device).expand(len(exact))
    if check:
        _check_values(exact, targets, labels, weight)
    if isinstance(targets, DenseTargets):
        divergence = _dense(exact, targets, temperature)
    elif isinstance(targets, TopTargets):
        divergence = _buckets(exact, targets, temperature)
    else:
        divergence = _draws(exact, targets)
    losses = weight * (temperature**2 * divergence)
    if labels is not None:
        losses = losses + (1 - weight) * functional.cross_entropy(
            exact, labels, reduction="none", ignore_index=NO_LABEL
        )
    return losses.mean() if reduction == "mean" else losses


def _dense(logits: torch.Tensor, targets: DenseTargets, temperature: float) -> torch.Tensor:
    teacher = functional.log_softmax(targets.log_probabilities.to(logits.dtype) / temperature, dim=1)
    return _divergence(teacher, functional.log_softmax(logits / temperature, dim=1))


def _buckets(logits: torch.Tensor, targets: TopTargets, temperature: float) -> torch.Tensor:
    teacher = targets.log_probabilities.to(logits.dtype)
    student = logits.gather(1, targets.ids)
    if targets.ids.shape[1] < logits.shape[1]:
        # The sum over the others themselves: 1 minus the sum over the k would have no digits left where they are few.
        others = logits.scatter(1, targets.ids, -torch.inf).logsumexp(dim=1, keepdim=True)
        teacher = torch.cat([teacher, targets.tail.to(logits.dtype)[:, None]], dim=1)
        student = torch.cat([student, others], dim=1)
    # Unnormalised masses may be tempered as they are: log_softmax takes the constant out.
    return _divergence(
        functional.log_softmax(teacher / temperature, dim=1), functional.log_softmax(student / temperature, dim=1)
    )


def _draws(logits: torch.Tensor, targets: SampledTargets) -> torch.Tensor:
    drawn = logits.gather(1, targets.ids) - logits.logsumexp(dim=1, keepdim=True)
    return -(targets.weights.to(logits.dtype) * drawn).sum(dim=1) - targets.entropy.to(logits.dtype)


def _divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return (teacher.exp() * (teacher - student)).sum(dim=1)


def _check_shapes(logits: torch.Tensor, targets: Targets, labels: torch.Tensor | None, temperature: float) -> None:
    if logits.ndim != 2 or not logits.is_floating_point():  # noqa: PLR2004 - a matrix has two axes
        raise SoftLabelError(
            f"the student's logits must be floating and of shape (positions, classes). Got {logits.dtype} of shape "
            f"{tuple(logits.shape)}"
        )
    positions, classes = logits.shape
    if len(targets) != positions or (labels is not None and labels.shape != (positions,)):
        given = None if labels is None else tuple(labels.shape)
        raise SoftLabelError(
            f"there are logits of {positions} positions, soft labels of {len(targets)} and labels of shape {given}"
        )
    if isinstance(targets, DenseTargets) and targets.log_probabilities.shape[1] != classes:
        raise SoftLabelError(
            f"the teacher's labels are of {targets.log_probabilities.shape[1]:,} classes and the student's logits of "
            f"{classes:,}: they must be the same classes in the same order"
        )
    if isinstance(targets, TopTargets) and targets.ids.shape[1] > classes:
        raise SoftLabelError(f"k must be at most the student's {classes:,} classes. Got {targets.ids.shape[1]:,}")
    if not temperature > 0 or (temperature != 1 and isinstance(targets, SampledTargets)):
        raise SoftLabelError(
            f"the temperature must be above 0, and 1 for sampled labels, whose draws are of the teacher at T = 1. Got "
            f"{temperature}; store `topk` or `dense` labels to train at another"
        )


def _check_values(logits: torch.Tensor, targets: Targets, labels: torch.Tensor | None, alpha: torch.Tensor) -> None:
    classes = logits.shape[1]
    faults = {
        "a student's logit is not finite": ~torch.isfinite(logits.detach()).all(dim=1),
        "alpha is not within 0 ... 1": ~((alpha >= 0) & (alpha <= 1)),
    }
    if labels is None:
        faults["there is no label and alpha is below 1"] = alpha != 1
    else:
        missing = labels == NO_LABEL
        faults["there is no label and alpha is below 1"] = missing & (alpha != 1)
        faults[f"the label is not within 0 ... {classes - 1}"] = ~missing & ((labels < 0) | (labels >= classes))
    if isinstance(targets, DenseTargets):
        faults["a soft label is not finite"] = ~torch.isfinite(targets.log_probabilities).all(dim=1)
    else:
        outside = ((targets.ids < 0) | (targets.ids >= classes)).any(dim=1)
        faults[f"a soft label's class id is not within 0 ... {classes - 1}"] = outside
    found = torch.stack(list(faults.values()))
    if not bool(found.any()):
        return
    kind, position = (int(each) for each in found.nonzero()[0])
    count = f"{int(found[kind].sum())} of {len(alpha)} are like that"
    raise SoftLabelError(f"position {position} of the batch: {list(faults)[kind]}; {count}")


def _shared(values: Float16) -> torch.Tensor:
    """The same memory as a tensor; `from_numpy` would warn of Arrow's read-only buffers."""
    return from_dlpack(values)
