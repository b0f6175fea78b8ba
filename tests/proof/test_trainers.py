"""The trainers learn what can be learnt, and repeat themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from datapipe.errors import MetricError
from datapipe.proof.heads import HeadRecipe, batches, train_heads
from datapipe.proof.images import ImageRecipe, ImageTrainer, one_cycle

DATA = Path(__file__).resolve().parents[2] / "data"


def _clouds(rows: int, *, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    vectors = np.eye(16)[labels] + draws.normal(0, 0.2, (rows, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels.astype(np.int64)


def test_heads_learn_their_arms_and_the_same_call_predicts_the_same() -> None:
    vectors, labels = _clouds(300, classes=4, seed=0)
    test, truth = _clouds(100, classes=4, seed=1)
    arms = [np.arange(300), np.arange(0, 300, 3), np.arange(300)[labels < 2]]
    recipe = HeadRecipe(steps=60, batch_rows=32, heads_at_once=2)
    found = train_heads(vectors, labels, arms, [0, 1, 2], test, classes=4, recipe=recipe)
    accuracy = (found == truth).mean(axis=1)
    assert (accuracy[:2] > 0.95).all()
    assert accuracy[2] == pytest.approx(0.5, abs=0.03)
    again = train_heads(vectors, labels, arms, [0, 1, 2], test, classes=4, recipe=recipe, threads=1)
    assert (found == again).all()


def test_every_arm_gets_the_same_steps_and_sees_its_rows_equally_often() -> None:
    drawn = batches(np.array([5, 7, 9]), steps=4, batch_rows=3, seed=0)
    assert drawn.shape == (4, 3)
    assert (np.bincount(drawn.ravel(), minlength=10)[[5, 7, 9]] == 4).all()


def test_an_arm_of_one_class_is_refused() -> None:
    vectors, labels = _clouds(8, classes=4, seed=0)
    with pytest.raises(MetricError, match=r"arm 0 has 2 rows of 1 classes"):
        train_heads(vectors, labels, [np.array([0, 4])], [0], vectors, classes=4, recipe=HeadRecipe(steps=1))
    with pytest.raises(MetricError, match="1 arms and 2 seeds"):
        train_heads(vectors, labels, [np.arange(8)], [0, 1], vectors, classes=4, recipe=HeadRecipe(steps=1))


def _fashion(rows: int) -> tuple[np.ndarray, np.ndarray]:
    from datapipe.proof.pictures import decode_images

    frame = pl.read_parquet(DATA / "fashion_mnist_60.parquet")
    return decode_images(frame["image"].to_list()), frame["label"].cast(pl.Int64).to_numpy().copy()


@pytest.mark.slow
def test_the_image_network_learns_small_images_and_shows_its_course() -> None:
    images, labels = _fashion(60)
    recipe = ImageRecipe(steps=40, batch_rows=30, width=8, learning_rate=0.02, average=0.8, shift=1, cutout=0)
    trainer = ImageTrainer(images, labels, images, classes=10, recipe=recipe)
    seen: list[tuple[int, tuple[int, ...]]] = []
    found = trainer.train(
        np.arange(len(images)), seed=0, watch=lambda at, each: seen.append((at, each.shape)), rounds=2
    )
    assert (found == labels).mean() > 0.5
    assert seen == [(0, (len(images), 10)), (1, (len(images), 10))]


def test_images_of_another_shape_or_type_are_refused() -> None:
    labels = np.zeros(2, np.int64)
    small, large = np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 9, 9, 1), np.uint8)
    with pytest.raises(MetricError, match="training images have shape"):
        ImageTrainer(small, labels, large, classes=2, recipe=ImageRecipe())
    with pytest.raises(MetricError, match="type float64"):
        ImageTrainer(small.astype(float), labels, small, classes=2, recipe=ImageRecipe())


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    course = [one_cycle(step, 100) for step in range(100)]
    assert max(course) == 1.0
    assert course.index(1.0) in {19, 20}
    assert course[0] < 0.1
    assert course[-1] < 0.05
