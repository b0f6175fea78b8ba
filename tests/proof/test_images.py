"""The image network starts as what it should be, and its trainings depend on what they are told alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datapipe.distill.losses import DenseTargets, kd_loss
from datapipe.errors import ItemError, MetricError
from datapipe.proof.images import ImageRecipe, ImageTrainer, SoftLabels
from datapipe.proof.pictures import decode_images
from datapipe.proof.resnet import ResNet

DATA = Path(__file__).resolve().parents[2] / "data"
SMALL = ImageRecipe(steps=3, batch_rows=8, width=4)


@cache
def fashion() -> tuple[np.ndarray, np.ndarray]:
    rows = pq.read_table(DATA / "fashion_mnist_60.parquet")
    return decode_images(rows["image"].to_pylist()), rows["label"].to_numpy().astype(np.int64)


def trainer(recipe: ImageRecipe = SMALL) -> ImageTrainer:
    images, labels = fashion()
    return ImageTrainer(images, labels, images, classes=10, recipe=recipe)


def test_the_first_layer_makes_patches_of_variance_one_without_correlation() -> None:
    images, _ = fashion()
    network = ResNet(3, 10, width=4)
    seen = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 64
    # Grey images in three channels have components without variance; those stay near zero.
    seen += torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))
    network.whiten(seen)
    found = torch.nn.functional.conv2d(seen, network.components)[:, :12].transpose(0, 1).flatten(1).double()
    moment = found @ found.T / found.shape[1]
    assert torch.allclose(moment, torch.eye(12, dtype=torch.float64), atol=2e-2)
    assert torch.equal(network.components[12:], -network.components[:12])


@pytest.mark.parametrize("side", [16, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_usual_size_become_logits(side: int, channels: int) -> None:
    network = ResNet(channels, 7, width=4)
    assert network(torch.randn(2, channels, side, side)).shape == (2, 7)
    assert network.body(torch.randn(2, channels, side, side)).shape == (2, network.features)


def test_the_same_rows_and_seed_predict_the_same_whatever_was_trained_before() -> None:
    images = trainer()
    rows = np.arange(0, 60, 2)
    first = images.train(rows, seed=3)
    images.train(np.arange(60), seed=4)
    assert (images.train(rows, seed=3) == first).all()
    assert (images.train_many([np.arange(60), rows], [4, 3])[1] == first).all()
    assert (trainer().train(rows, seed=3) == first).all()


def test_a_training_learns_the_labels_that_it_is_given() -> None:
    recipe = ImageRecipe(steps=30, batch_rows=30, width=4, shift=1, cutout=0, average=0.8)
    images, labels = fashion()
    halves = (labels >= 5).astype(np.int64)
    found = trainer(recipe).train(np.arange(60), seed=0, labels=halves)
    assert set(found.tolist()) <= {0, 1}
    assert (found == halves).mean() > 0.8
    assert len(images) == len(found)


def spoken(labels: np.ndarray, sure: float = 0.99) -> np.ndarray:
    """Log-probabilities of a teacher that is so sure of these labels."""
    return np.log(np.where(np.eye(10)[labels] > 0, sure, (1 - sure) / 9)).astype(np.float32)


def test_a_student_learns_what_its_teacher_says_against_the_labels() -> None:
    recipe = ImageRecipe(steps=30, batch_rows=30, width=4, shift=1, cutout=0, average=0.8)
    halves = (fashion()[1] >= 5).astype(np.int64)
    (taught,) = trainer(recipe).train_many([np.arange(60)], [0], soft=[SoftLabels(targets=spoken(halves), alpha=1.0)])
    assert (taught == halves).mean() > 0.8


def test_a_teacher_of_weight_zero_is_none_also_beside_arms_that_have_one() -> None:
    rows, targets = np.arange(60), spoken(fashion()[1])
    soft = [SoftLabels(targets=targets, alpha=1.0), SoftLabels(targets=targets, alpha=0.0), None]
    taught, deaf, alone = trainer().train_many([rows] * 3, [0] * 3, soft=soft)
    assert (deaf == alone).all()
    assert (alone == trainer().train(rows, seed=0)).all()
    assert (taught != alone).any()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_knowledge_distillation(smoothing: float) -> None:
    recipe = ImageRecipe(steps=3, batch_rows=8, width=4, smoothing=smoothing)
    images, labels = trainer(recipe), fashion()[1]
    (lane,) = images._lanes
    logits, rows = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 10))), torch.arange(3, 11)
    for alpha, temperature in ((0.0, 1.0), (0.3, 1.0), (0.9, 4.0), (1.0, 0.5)):
        soft = SoftLabels(targets=spoken(labels[::-1], 0.7), alpha=alpha, temperature=temperature)
        lane.load(np.arange(60), labels, seed=0, soft=soft)
        own = torch.from_numpy(labels)[rows]
        # Cross-entropy is linear in its target: smoothing is a part of the same for every class.
        parts = [own] + [torch.full_like(own, each) for each in range(10)]
        shares = [1 - smoothing] + [smoothing / 10] * 10
        said = DenseTargets(torch.from_numpy(soft.targets[rows].astype(np.float64)))
        expected = sum(
            share * float(kd_loss(logits, said, part, alpha=alpha, temperature=temperature))
            for share, part in zip(shares, parts, strict=True)
        )
        assert float(lane._loss(logits.float(), rows)) == pytest.approx(expected, rel=1e-5)


def test_each_training_has_labels_of_its_own() -> None:
    images, labels = trainer(), fashion()[1]
    rows, turned = np.arange(60), (labels + 1) % 10
    one, other = images.train_many([rows, rows], [0, 0], labels=[labels, turned])
    assert (one == images.train(rows, seed=0)).all()
    assert (other == images.train(rows, seed=0, labels=turned)).all()


def test_a_teacher_says_log_probabilities_of_every_training_image() -> None:
    images = trainer()
    rows = np.arange(0, 60, 2)
    predicted, said = images.teach(rows, seed=3)
    assert (predicted == images.train(rows, seed=3)).all()
    assert said.shape == (60, 10)
    assert said.dtype == np.float32
    assert np.exp(said.astype(float)).sum(1) == pytest.approx(np.ones(60), abs=1e-4)
    assert (said.argmax(1) == predicted).all()  # test and training images are the same here


def test_soft_labels_of_another_shape_or_range_are_refused() -> None:
    labels, rows = fashion()[1], np.arange(60)
    good = spoken(labels)
    bad = good.copy()
    bad[3, 4] = np.nan
    for soft, told in (
        (SoftLabels(targets=good[:50], alpha=0.5), r"\(50, 10\).*needed.*\(60, 10\)"),
        (SoftLabels(targets=good[:, :9], alpha=0.5), r"\(60, 9\)"),
        (SoftLabels(targets=good.astype(np.float16), alpha=0.5), "float16"),
        (SoftLabels(targets=bad, alpha=0.5), "1 of them not finite"),
        (SoftLabels(targets=good, alpha=1.5), "alpha 1.5"),
        (SoftLabels(targets=good, alpha=0.5, temperature=0.0), "temperature 0.0"),
    ):
        with pytest.raises(MetricError, match=told):
            trainer().train_many([rows], [0], soft=[soft])
    with pytest.raises(MetricError, match="2 arms, 1 arrays of labels"):
        trainer().train_many([rows, rows], [0, 1], labels=[labels])


def test_learning_rates_are_those_of_each_training() -> None:
    images = trainer()
    rows = np.arange(60)
    one, other = images.train_many([rows, rows], [0, 0], rates=[0.6, 1e-9])
    assert (one == images.train(rows, seed=0)).all()
    assert (one != other).any()


def test_every_second_pass_shows_the_mirror_image() -> None:
    images = trainer(ImageRecipe(steps=4, batch_rows=30, width=4, shift=0, cutout=0))
    (lane,) = images._lanes
    lane.load(np.arange(60), fashion()[1], seed=0)
    course = lane._course
    rows, mirrored = course["rows"].flatten().numpy(), course["mirrored"].flatten().numpy()
    first, second = (dict(zip(rows[at], mirrored[at], strict=True)) for at in (slice(60), slice(60, 120)))
    assert all(first[row] != second[row] for row in range(60))
    seen = lane._augmented(course["rows"][0], torch.zeros(1, dtype=torch.int64))
    flat = images._normalised(images._images[course["rows"][0]])
    for place in range(30):
        expected = flat[place].flip(2) if mirrored[place] else flat[place]
        assert torch.equal(seen[place], expected)


def test_what_cannot_be_learnt_from_is_refused() -> None:
    with pytest.raises(MetricError, match="1 arms and 2 seeds"):
        trainer().train_many([np.arange(8)], [0, 1])
    with pytest.raises(MetricError, match="of 1 classes"):
        trainer().train(np.flatnonzero(fashion()[1] == 0), seed=0)
    tiny = np.zeros((2, 8, 8, 1), np.uint8)
    with pytest.raises(MetricError, match="at least 16"):
        ImageTrainer(tiny, np.zeros(2, np.int64), tiny, classes=2, recipe=SMALL)


def test_a_training_that_diverges_is_an_error_and_no_prediction() -> None:
    rows = np.arange(60)
    with pytest.raises(MetricError, match="not finite for 60 of 60 images"):
        trainer().train_many([rows, rows], [0, 0], rates=[0.6, 1e30])
    with pytest.raises(MetricError, match="diverged; lower the learning rate"):
        trainer(replace(SMALL, learning_rate=1e30)).train(rows, seed=0)


def test_pictures_that_cannot_be_stacked_are_named() -> None:
    rows = pq.read_table(DATA / "fashion_mnist_60.parquet")["image"].to_pylist()
    with pytest.raises(ItemError) as caught:
        decode_images([rows[0], rows[1][:40]])
    assert caught.value.index == 1
    with pytest.raises(MetricError, match="no images"):
        decode_images([])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_lanes_that_overlap_on_a_gpu_learn_as_one_does() -> None:
    images, labels = fashion()
    recipe = ImageRecipe(steps=60, batch_rows=30, width=16, shift=1, cutout=0, average=0.8)
    found = ImageTrainer(images, labels, images, classes=10, recipe=recipe, device="cuda", lanes=2).train_many(
        [np.arange(60)] * 3, [0, 1, 2]
    )
    assert ((found == labels).mean(axis=1) > 0.8).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_arms_of_any_alpha_share_a_recorded_graph_on_a_gpu() -> None:
    images, labels = fashion()
    recipe = ImageRecipe(steps=60, batch_rows=30, width=16, shift=1, cutout=0, average=0.8)
    trained = ImageTrainer(images, labels, images, classes=10, recipe=recipe, device="cuda", lanes=2)
    halves, rows = (labels >= 5).astype(np.int64), np.arange(60)
    soft = [SoftLabels(targets=spoken(halves), alpha=alpha, temperature=2.0) for alpha in (1.0, 0.0)]
    plain, taught, deaf, again = trained.train_many([rows] * 4, [0] * 4, soft=[None, *soft, None])
    assert (taught == halves).mean() > 0.8
    for each in (plain, deaf, again):
        assert (each == labels).mean() > 0.8
