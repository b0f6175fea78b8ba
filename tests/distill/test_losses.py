"""The loss against a float64 reference that knows every class, its gradients, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from datapipe.distill.codec import encode
from datapipe.distill.header import SoftLabelHeader, Teacher
from datapipe.distill.losses import NO_LABEL, DenseTargets, SampledTargets, TopTargets, kd_loss, targets_of
from datapipe.errors import SoftLabelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from datapipe.distill.losses import Targets

    Float64 = NDArray[np.float64]

POSITIONS, CLASSES = 7, 12


def logits(seed: int, classes: int = CLASSES, positions: int = POSITIONS) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(positions, classes, generator=draw, dtype=torch.float64)


def some_labels(positions: int = POSITIONS) -> torch.Tensor:
    return torch.arange(positions) % CLASSES


def softmax(values: Float64) -> Float64:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    whole: Float64 = powers / powers.sum(axis=1, keepdims=True)
    return whole


def reference(
    student: Float64,
    teacher: Float64,
    buckets: list[list[list[int]]],
    *,
    labels: Any,
    alpha: Any,
    t: float,
) -> Float64:
    """(1 - a) CE + a T^2 KL over the given groups of classes, group by group, in plain loops."""
    found = np.zeros(len(student))
    probabilities = softmax(student)
    for position, groups in enumerate(buckets):
        p = np.array([teacher[position, group].sum() for group in groups]) ** (1 / t)
        q = np.array([probabilities[position, group].sum() for group in groups]) ** (1 / t)
        p, q = p / p.sum(), q / q.sum()
        divergence = float(np.sum(np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(q)), 0.0)))
        entropy = -np.log(probabilities[position, labels[position]])
        found[position] = (1 - alpha[position]) * entropy + alpha[position] * t**2 * divergence
    return found


def top(teacher: torch.Tensor, k: int) -> TopTargets:
    """Float64 targets, so that only the loss itself is compared."""
    whole = teacher.log_softmax(dim=1)
    values, ids = whole.topk(k, dim=1)
    rest = whole.exp().scatter(1, ids, 0.0).sum(dim=1).clamp(min=1e-300).log()
    return TopTargets(ids, values, rest)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_dense_targets_give_the_loss_of_the_formula(temperature: float) -> None:
    student, teacher = logits(1), logits(2)
    alpha = torch.linspace(0, 1, POSITIONS, dtype=torch.float64)
    loss = kd_loss(
        student, DenseTargets(teacher), some_labels(), alpha=alpha, temperature=temperature, reduction="none"
    )
    groups = [[[each] for each in range(CLASSES)]] * POSITIONS
    expected = reference(
        student.numpy(), softmax(teacher.numpy()), groups, labels=some_labels(), alpha=alpha.numpy(), t=temperature
    )
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-11, atol=1e-12)
    mean = kd_loss(student, DenseTargets(teacher), some_labels(), alpha=alpha, temperature=temperature)
    assert mean.item() == pytest.approx(expected.mean())


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("k", [1, 4, CLASSES - 1, CLASSES])
def test_top_targets_give_the_loss_over_k_buckets_and_the_rest(k: int, temperature: float) -> None:
    student, teacher = logits(1), logits(2)
    targets = top(teacher, k)
    groups = []
    for ids in targets.ids.tolist():
        rest = [each for each in range(CLASSES) if each not in ids]
        groups.append([[each] for each in ids] + ([rest] if rest else []))
    alpha = torch.full((POSITIONS,), 0.7, dtype=torch.float64)
    loss = kd_loss(student, targets, some_labels(), alpha=0.7, temperature=temperature, reduction="none")
    expected = reference(
        student.numpy(), softmax(teacher.numpy()), groups, labels=some_labels(), alpha=alpha.numpy(), t=temperature
    )
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@given(seed=st.integers(0, 10_000), k=st.integers(1, CLASSES))
@settings(max_examples=12, deadline=None)
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(temperature: float, seed: int, k: int) -> None:
    student = logits(seed).requires_grad_()
    for targets in (DenseTargets(student.detach()), top(student.detach(), k)):
        loss = kd_loss(student, targets, None, alpha=1.0, temperature=temperature)
        (gradient,) = torch.autograd.grad(loss, student)
        assert abs(loss.item()) < 1e-10
        assert gradient.abs().max() < 1e-10


@given(seed=st.integers(0, 10_000), k=st.integers(1, CLASSES))
@settings(max_examples=12, deadline=None)
def test_the_loss_over_buckets_is_between_zero_and_that_over_all_classes(seed: int, k: int) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    whole = kd_loss(student, DenseTargets(teacher), None, alpha=1.0, reduction="none")
    buckets = kd_loss(student, top(teacher, k), None, alpha=1.0, reduction="none")
    assert (buckets >= -1e-12).all()
    assert (buckets <= whole + 1e-12).all()


def test_sampled_targets_that_hold_every_probability_give_the_dense_loss() -> None:
    student, teacher = logits(1), logits(2)
    p = teacher.softmax(dim=1)
    ids = torch.arange(CLASSES).expand(POSITIONS, CLASSES)
    targets = SampledTargets(ids, p, -(p * p.log()).sum(dim=1))
    got = kd_loss(student, targets, some_labels(), alpha=0.3, reduction="none")
    expected = kd_loss(student, DenseTargets(teacher), some_labels(), alpha=0.3, reduction="none")
    np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-12)


def test_sampled_loss_and_gradient_are_unbiased_over_seeds() -> None:
    student, teacher = logits(1), logits(2)
    ids = np.stack([np.arange(POSITIONS, dtype=np.uint64)] * 2, axis=1)
    losses, gradients = [], []
    for seed in range(400):
        header = SoftLabelHeader(
            level="row",
            mode="sampled",
            draws=3,
            classes=CLASSES,
            teachers=(Teacher("t", "d"),),
            preprocessing="p",
            seed=seed,
        )
        targets = targets_of(encode(teacher.numpy(), header, row_ids=ids), header)
        value, gradient = loss_and_gradient(student, targets)
        losses.append(value)
        gradients.append(gradient)
    value, gradient = loss_and_gradient(student, DenseTargets(teacher))
    for found, expected in ((losses, value), (gradients, gradient)):
        draws = np.stack(found)
        error = draws.std(axis=0) / np.sqrt(len(draws))
        # The stored entropy is float16: 2^-11 of it is no bias of the draws.
        assert np.all(np.abs(draws.mean(axis=0) - expected) <= 4.5 * error + 2e-3)
    assert np.std(losses) > 0.01, "the draws must have differed"


def loss_and_gradient(student: torch.Tensor, targets: Targets) -> tuple[Any, Any]:
    own = student.clone().requires_grad_()
    losses = kd_loss(own, targets, None, alpha=1.0, reduction="none", check=False)
    losses.sum().backward()
    assert own.grad is not None
    return losses.detach().numpy(), own.grad.numpy()


@pytest.mark.parametrize("kind", ["dense", "top", "top of all", "sampled"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    student, teacher = logits(3, positions=2).requires_grad_(), logits(4, positions=2)
    p = teacher.softmax(dim=1)
    every: dict[str, Targets] = {
        "dense": DenseTargets(teacher),
        "top": top(teacher, 4),
        "top of all": top(teacher, CLASSES),
        "sampled": SampledTargets(torch.tensor([[1, 5, 0]] * 2), torch.tensor([[0.5, 0.5, 0.0]] * 2), p[:, 0]),
    }
    targets = every[kind]
    temperature = 1.0 if kind == "sampled" else 2.5
    alpha = torch.tensor([0.4, 1.0])
    assert gradcheck(
        lambda z: kd_loss(z, targets, some_labels(2), alpha=alpha, temperature=temperature, reduction="none"), student
    )


def test_a_tiny_tail_keeps_a_finite_and_right_gradient_in_float32() -> None:
    student = torch.zeros(1, 50)
    student[0, 0] = 40.0
    student.requires_grad_()
    targets = TopTargets(torch.tensor([[0]]), torch.tensor([[-0.01]]), torch.tensor([-4.6]))
    loss = kd_loss(student, targets, None, alpha=1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    mass = np.exp([-0.01, -4.6])
    mass /= mass.sum()
    assert gradient[0, 0].item() == pytest.approx(mass[1], rel=1e-4)
    assert gradient[0, 1:].sum().item() == pytest.approx(-mass[1], rel=1e-4)


def test_stored_float16_labels_change_the_loss_by_less_than_a_hundredth() -> None:
    student, teacher = logits(1), logits(2)
    whole = kd_loss(student, DenseTargets(teacher), some_labels(), alpha=0.5)
    half = kd_loss(student, DenseTargets(teacher.log_softmax(dim=1).half()), some_labels(), alpha=0.5)
    assert half.item() == pytest.approx(whole.item(), rel=0.01)
    assert half.item() != whole.item()


def test_half_precision_logits_are_raised_to_float32() -> None:
    loss = kd_loss(logits(1).bfloat16(), DenseTargets(logits(2)), some_labels(), alpha=0.5, temperature=2)
    assert loss.dtype == torch.float32


def test_classes_without_probability_add_nothing() -> None:
    student = logits(1)
    targets = DenseTargets(torch.full((POSITIONS, CLASSES), -65504.0).index_fill(1, torch.tensor([2, 3]), 0.0).half())
    loss = kd_loss(student, targets, None, alpha=1.0, reduction="none")
    expected = -np.log(2) - student.log_softmax(dim=1)[:, 2:4].mean(dim=1).numpy()
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12)


def test_positions_without_label_learn_from_the_teacher_alone() -> None:
    labels = some_labels()
    labels[2] = NO_LABEL
    alpha = torch.full((POSITIONS,), 0.5)
    alpha[2] = 1.0
    both = kd_loss(logits(1), DenseTargets(logits(2)), labels, alpha=alpha, reduction="none")
    alone = kd_loss(logits(1), DenseTargets(logits(2)), None, alpha=1.0, reduction="none")
    assert both[2] == alone[2]
    with pytest.raises(SoftLabelError, match="position 2 of the batch: there is no label and alpha is below 1; 1 of 7"):
        kd_loss(logits(1), DenseTargets(logits(2)), labels, alpha=0.5)


def poisoned(value: float) -> torch.Tensor:
    values = logits(1)
    values[3, 1] = value
    return values


TARGETS = DenseTargets(logits(2))


@pytest.mark.parametrize(
    ("student", "targets", "labels", "options", "message"),
    [
        (poisoned(float("nan")), TARGETS, some_labels(), {}, "position 3 of the batch: a student's logit is not fin"),
        (poisoned(float("inf")), TARGETS, some_labels(), {}, "position 3 of the batch: a student's logit is not fin"),
        (logits(1), DenseTargets(poisoned(float("nan"))), some_labels(), {}, "position 3 .* soft label is not finite"),
        (
            logits(1),
            DenseTargets(logits(2, classes=5)),
            some_labels(),
            {},
            "of 5 classes and .* logits of 12",
        ),
        (
            logits(1, classes=3),
            top(logits(2), 4),
            some_labels(),
            {},
            "k must be at most .* 3 classes. Got 4",
        ),
        (logits(1, classes=9), top(logits(2), 4), some_labels(), {}, r"class id is not within 0 ... 8"),
        (logits(1), TARGETS, some_labels() + 9, {}, "position 3 .*: the label is not within 0 ... 11"),
        (logits(1), TARGETS, some_labels(3), {}, r"logits of 7 positions, soft labels of 7 and labels of shape \(3,\)"),
        (logits(1)[:3], TARGETS, None, {}, "logits of 3 positions, soft labels of 7"),
        (logits(1), TARGETS, None, {}, "position 0 .* no label and alpha is below 1; 7 of 7"),
        (logits(1), TARGETS, some_labels(), {"alpha": 1.5}, "alpha is not within 0 ... 1"),
        (logits(1), TARGETS, some_labels(), {"temperature": 0.0}, "temperature must be above 0"),
        (logits(1).long(), TARGETS, some_labels(), {}, "must be floating"),
        (
            logits(1),
            SampledTargets(torch.zeros(7, 1).long(), torch.ones(7, 1), torch.zeros(7)),
            some_labels(),
            {"temperature": 2.0},
            "1 for sampled labels.* Got 2.0; store `topk` or `dense`",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    student: torch.Tensor, targets: Targets, labels: torch.Tensor | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SoftLabelError, match=message):
        kd_loss(student, targets, labels, **{"alpha": 0.5, **options})
