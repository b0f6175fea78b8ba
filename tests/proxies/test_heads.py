"""Heads: what they learn, and that nothing but their inputs decides the bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from datapipe.errors import MetricError
from datapipe.metrics.dynamics import DYNAMICS
from datapipe.proxies.heads import Head, HeadConfig, HeadData, train_head
from datapipe.proxies.training import Place, dynamics_of_heads, memorization_of_heads
from datapipe.storage.vectors import codes, encode

if TYPE_CHECKING:
    from pathlib import Path

ROWS, CLASSES = 400, 4
CONFIG = HeadConfig(hidden=16, epochs=5, batch_rows=32, learning_rate=0.01)


def blobs(*, flipped: int = 20, unlabelled: int = 10) -> HeadData:
    """Four clusters; the first rows have a wrong label, the last ones none."""
    draws = np.random.default_rng(0)
    labels = np.arange(ROWS, dtype=np.int32) % CLASSES
    vectors = np.eye(12)[labels] + draws.normal(0, 0.1, (ROWS, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels[:flipped] = (labels[:flipped] + 1) % CLASSES
    labels[ROWS - unlabelled :] = -1
    return HeadData(codes(encode(vectors.astype(np.float32))), labels, np.flatnonzero(labels >= 0), CLASSES)


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_step_follows_the_gradient_that_autograd_finds(hidden: int) -> None:
    config = HeadConfig(hidden=hidden, weight_decay=0.01)
    head = Head(12, CLASSES, config, seed=1, device=torch.device("cpu"))
    weights = [each.clone().requires_grad_() for each in head._weights]
    optimiser = torch.optim.AdamW(
        [
            {"params": weights[::2], "weight_decay": 0.01},
            {"params": weights[1::2], "weight_decay": 0.0},
        ],
        lr=0.01,
    )
    data = blobs(unlabelled=0)
    labels = torch.from_numpy(data.labels).long()
    for start in (0, 50, 100):
        rows = slice(start, start + 50)
        vectors = data.vectors(rows, torch.device("cpu"))
        inner = (vectors @ weights[0] + weights[1]).relu() if hidden else vectors
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(inner @ weights[-2] + weights[-1], labels[rows]).backward()
        optimiser.step()
        head.step(vectors, labels[rows], rate=0.01)
    for own, other in zip(head._weights, weights, strict=True):
        assert torch.allclose(own, other.detach(), atol=1e-5)


def test_wrong_labels_are_the_hardest_and_missing_ones_have_no_score(tmp_path: Path) -> None:
    found = dynamics_of_heads(blobs(), CONFIG, heads=2, seed=0, place=Place(scratch=tmp_path))
    assert np.isnan(found[:, -10:]).all()
    assert np.isfinite(found[:, :-10]).all()
    hardest = np.argsort(-found[DYNAMICS.index("aum"), :-10])[:20]
    assert len(set(hardest.tolist()) & set(range(20))) >= 18
    assert not list(tmp_path.iterdir())


def test_the_number_of_threads_changes_no_bit(tmp_path: Path) -> None:
    one, three = (
        dynamics_of_heads(blobs(), CONFIG, heads=3, seed=0, place=Place(scratch=tmp_path, threads=n)) for n in (1, 3)
    )
    assert one.tobytes() == three.tobytes()


def test_a_row_that_only_its_own_label_explains_is_memorised(tmp_path: Path) -> None:
    halves = np.random.default_rng(1).random((4, ROWS)) < 0.5
    config = HeadConfig(hidden=64, epochs=30, batch_rows=16, learning_rate=0.02)
    found = memorization_of_heads(blobs(), config, halves=halves, seed=0, place=Place(scratch=tmp_path))
    assert found[:20].mean() > found[20:-10].mean() + 0.05
    assert np.isnan(found[-10:]).all()


def test_one_class_is_nothing_to_learn() -> None:
    data = blobs()
    with pytest.raises(MetricError, match=r"learns from at least two classes, the [0-9]+ labelled rows have 1"):
        HeadData(data.codes, data.labels, np.flatnonzero(data.labels == 0), CLASSES)
    assert train_head(data, HeadConfig(hidden=0, epochs=1), seed=0, watch=None) is not None
