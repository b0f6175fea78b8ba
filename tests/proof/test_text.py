"""Fine-tuned transformers: several trained as one are those trained alone, and a seed repeats itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from datapipe.errors import MetricError, ModelError, ModelNotFoundError
from datapipe.proof.networks import open_networks
from datapipe.proof.text import TextRecipe, TextTrainer
from tests.workers.tiny import text_folder

DATA = Path(__file__).resolve().parents[2] / "data"
RECIPE = TextRecipe(steps=20, batch_rows=8, learning_rate=3e-3, head_rate=3e-2)


def _texts(classes: int) -> tuple[list[str], np.ndarray]:
    rows = pq.read_table(DATA / "banking77.parquet", columns=["text", "label"])
    rows = rows.filter(pc.field("label") < classes)
    rows = rows.take(np.random.default_rng(0).permutation(rows.num_rows)[:80])
    return rows["text"].to_pylist(), rows["label"].to_numpy().astype(np.int64)


@pytest.fixture(scope="module", params=["bert", "roberta"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp(str(request.param))
    text_folder(folder, str(request.param), mapping="MODEL_MAPPING")
    return str(folder)


def test_networks_trained_as_one_predict_what_each_predicts_alone(model: str) -> None:
    texts, labels = _texts(3)
    arms, seeds = [np.arange(60), np.arange(0, 60, 2), np.arange(60)], [0, 1, 2]
    alone = TextTrainer(texts[:60], texts[60:], model=model, recipe=RECIPE, together=1)
    as_one = TextTrainer(texts[:60], texts[60:], model=model, recipe=RECIPE, together=3)
    found = alone.train_many(labels[:60], arms, seeds, classes=3)
    assert found.shape == (3, 20)
    assert (as_one.train_many(labels[:60], arms, seeds, classes=3) == found).all()
    assert len({tuple(each) for each in found}) > 1
    one_thread = TextTrainer(texts[:60], texts[60:], model=model, recipe=RECIPE, together=1, threads=1)
    assert (one_thread.train_many(labels[:60], arms, seeds, classes=3) == found).all()


def test_stacked_networks_have_the_logits_and_gradients_of_single_ones(model: str) -> None:
    trainer = TextTrainer(["one text", "another, longer text"], ["a test"], model=model, recipe=RECIPE)
    encoder = trainer._start
    ids = torch.randint(5, 900, (2, 3, 8), generator=torch.Generator().manual_seed(0))
    there = torch.arange(8) < torch.tensor([[8, 5, 3], [2, 8, 8]]).unsqueeze(-1)
    stacked = open_networks(encoder, [3, 4], classes=5)
    said = stacked.logits(ids, there)
    torch.autograd.backward(said.square().sum())
    for at, seed in enumerate([3, 4]):
        single = open_networks(encoder, [seed], classes=5)
        own = single.logits(ids[at : at + 1], there[at : at + 1])
        torch.autograd.backward(own.square().sum())
        torch.testing.assert_close(said[at], own[0], rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(stacked.groups(0.0), single.groups(0.0), strict=True):
            last = zip(ours["params"], theirs["params"], strict=True)
            for many, one in last:
                alone = one.grad if one.grad.ndim == many.grad.ndim - 1 else one.grad[0]
                torch.testing.assert_close(many.grad[at], alone, rtol=1e-3, atol=1e-3)


def test_what_padding_holds_changes_nothing(model: str) -> None:
    trainer = TextTrainer(["a text"], ["a test"], model=model, recipe=RECIPE)
    network = open_networks(trainer._start, [0], classes=2)
    there = (torch.arange(6) < 4).expand(1, 1, 6)
    ids = torch.tensor([[[101, 7592, 2088, 102, 0, 0]]])
    other = torch.tensor([[[101, 7592, 2088, 102, 9, 17]]])
    said = [network.logits(each, there) for each in (ids, other)]
    torch.testing.assert_close(said[0], said[1], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_learnt_is_refused(tmp_path: Path) -> None:
    text_folder(tmp_path, "bert", mapping="MODEL_MAPPING")
    texts, labels = _texts(2)
    wild = replace(RECIPE, learning_rate=1e30)
    trainer = TextTrainer(texts, texts[:4], model=str(tmp_path), recipe=wild)
    with pytest.raises(MetricError, match=r"seeds \[7\] left the finite numbers; lower the learning rate, now 1e\+30"):
        trainer.train_many(labels, [np.arange(40)], [7], classes=2)
    with pytest.raises(MetricError, match="of 1 classes"):
        trainer.train_many(np.zeros_like(labels), [np.arange(40)], [0], classes=2)
    with pytest.raises(ModelNotFoundError):
        TextTrainer(texts, texts, model=str(tmp_path / "none"), recipe=RECIPE)
    other = tmp_path / "other"
    other.mkdir()
    text_folder(other, "modernbert", mapping="MODEL_MAPPING")
    with pytest.raises(ModelError, match="networks of model_type modernbert are not trained as one"):
        TextTrainer(texts, texts, model=str(other), recipe=RECIPE, together=2)


@pytest.mark.slow
def test_the_embedded_model_learns_a_few_intents_in_a_few_steps() -> None:
    texts, labels = _texts(3)
    trainer = TextTrainer(texts[:60], texts[60:], recipe=TextRecipe(steps=10, batch_rows=16))
    found = trainer.train_many(labels[:60], [np.arange(60)], [0], classes=3)
    assert (found[0] == labels[60:]).mean() > 0.8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_networks_trained_as_one_on_a_gpu_learn_as_one_alone_does() -> None:
    texts, labels = _texts(3)
    for together in (1, 3):
        recipe = TextRecipe(steps=30, batch_rows=16)
        trainer = TextTrainer(texts[:60], texts[60:], recipe=recipe, device="cuda", together=together)
        found = trainer.train_many(labels[:60], [np.arange(60)] * 3, [0, 1, 2], classes=3)
        assert ((found == labels[60:]).mean(1) > 0.8).all()
