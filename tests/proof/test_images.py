"""The image network starts as what it should be, and its trainings depend on what they are told alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datapipe.errors import ItemError, MetricError
from datapipe.proof.images import ImageRecipe, ImageTrainer
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
