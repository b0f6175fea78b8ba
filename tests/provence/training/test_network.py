"""The trainable encoder computes what transformers' classes compute, whatever stands in the padding."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

from datapipe.errors import ModelError
from datapipe.weights import embedded_folder
from datapipe.workers.folder import ModelFolder
from provence.training.network import HEADS, NetworkShape, PrunerNetwork, open_network
from tests.provence.training.tiny import DIM, network

SIZES = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def reference(made: PrunerNetwork) -> torch.nn.Module:
    weights = {name: tensor for name, tensor in made.tensors().items() if name not in HEADS}
    if made.shape.kind == "bert":
        model: torch.nn.Module = BertModel(BertConfig(**SIZES, layer_norm_eps=1e-12), add_pooling_layer=False)
    else:
        sizes = {"vocab_size": 30_527, "max_position_embeddings": 514, "layer_norm_eps": 1e-12}
        model = MPNetModel(MPNetConfig(**SIZES, **sizes), add_pooling_layer=False)
    model.load_state_dict(weights)
    return model.eval()


@pytest.mark.parametrize(("kind", "padding"), [("bert", 0), ("mpnet", 1)])
def test_logits_are_those_of_transformers(kind: str, padding: int) -> None:
    made = network(kind=kind).eval()
    ids = torch.randint(1000, 30_000, (3, 150), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([150, 70, 3])
    there = torch.arange(150) < lengths[:, None]
    with torch.no_grad():
        states = reference(made)(ids.masked_fill(~there, padding), attention_mask=there.long()).last_hidden_state
        found = made(ids, lengths)
    weights = made.tensors()
    keep = states @ weights["keep.weight"][0] + weights["keep.bias"]
    score = states[:, 0] @ weights["score.weight"][0] + weights["score.bias"]
    assert torch.allclose(found.keep[there], keep[there], atol=1e-4)
    assert torch.allclose(found.score, score, atol=1e-4)


def test_padding_changes_nothing() -> None:
    made = network().eval()
    ids = torch.randint(1000, 30_000, (1, 40))
    with torch.no_grad():
        alone = made(ids[:, :20], torch.tensor([20]))
        padded = made(ids, torch.tensor([20]))
    assert torch.allclose(alone.keep[0], padded.keep[0, :20], atol=1e-5)


def test_the_embedded_encoder_opens_for_training_with_heads_from_the_seed() -> None:
    folder = ModelFolder("base", embedded_folder("all-MiniLM-L6-v2"))
    one, two = open_network(folder, seed=1).tensors(), open_network(folder, seed=1).tensors()
    assert all(torch.equal(one[name], two[name]) for name in one)
    base = folder.tensors()
    assert one.keys() - base.keys() == set(HEADS)
    assert torch.equal(one["encoder.layer.0.output.dense.weight"], base["encoder.layer.0.output.dense.weight"])


def test_another_architecture_is_refused_by_its_name() -> None:
    with pytest.raises(ModelError, match="model x: model_type modernbert cannot be trained; bert and mpnet"):
        NetworkShape.of({"model_type": "modernbert"}, name="x")
