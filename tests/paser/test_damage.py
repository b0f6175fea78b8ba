"""Damaged models load as any, and lose what they should."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from datapipe.errors import ConfigError, ModelError
from datapipe.paser.damage import drop_blocks, narrow, round_weights
from datapipe.workers import CausalItem, LocalWorker, ModelSpec
from datapipe.workers.folder import ModelFolder
from datapipe.workers.tasks.causal import PlainTokenizer
from tests.workers.tiny import text_folder

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["The garden needs water in the evening.", "Name three tools of a carpenter, and what they are for."]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    text_folder(folder, "llama", mapping="MODEL_FOR_CAUSAL_LM_MAPPING", num_hidden_layers=5, intermediate_size=64)
    return folder


def scores(folder: Path) -> np.ndarray:
    with LocalWorker([ModelSpec("m", str(folder), task="causal")], device="cpu") as worker:
        found = worker.run("causal", [CausalItem(text) for text in TEXTS], model="m")
    return np.concatenate([each.log_probabilities for each in found])


def test_the_blocks_that_change_least_go_and_the_rest_keep_their_order(model: Path, tmp_path: Path) -> None:
    done = drop_blocks(model, tmp_path / "less", keep=3, texts=TEXTS)
    assert len(done.influence) == 5
    assert sorted(done.removed) == sorted(np.argsort(done.influence)[:2].tolist())
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "less" / "model.safetensors")
    staying = [at for at in range(5) if at not in done.removed]
    for new, old in enumerate(staying):
        name = "self_attn.q_proj.weight"
        assert torch.equal(after[f"model.layers.{new}.{name}"], before[f"model.layers.{old}.{name}"])
    assert np.isfinite(scores(tmp_path / "less")).all()
    assert done.left < done.parameters


def test_block_influence_is_one_less_the_cosine_of_what_goes_in_and_comes_out(model: Path, tmp_path: Path) -> None:
    done = drop_blocks(model, tmp_path / "less", keep=4, texts=TEXTS[:1])
    plain = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.from_numpy(PlainTokenizer(ModelFolder("m", model)).plain(TEXTS[:1], first=0)[0].astype(np.int64))
    with torch.inference_mode():
        states = plain(input_ids=ids[None], output_hidden_states=True).hidden_states
    for at in range(4):  # the last state of transformers has been through the norm
        cosine = torch.nn.functional.cosine_similarity(states[at], states[at + 1], dim=-1).mean()
        assert done.influence[at] == pytest.approx(1 - float(cosine), abs=1e-5)


def test_neurons_that_do_least_go_from_every_block(model: Path, tmp_path: Path) -> None:
    done = narrow(model, tmp_path / "thin", keep=0.75, texts=TEXTS)
    after = load_file(tmp_path / "thin" / "model.safetensors")
    assert after["model.layers.4.mlp.down_proj.weight"].shape[1] == 48
    assert after["model.layers.4.mlp.gate_proj.weight"].shape[0] == 48
    assert np.isfinite(scores(tmp_path / "thin")).all()
    assert done.left < done.parameters


def test_a_neuron_that_does_nothing_is_the_first_to_go_and_nobody_misses_it(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = load_file(model / "model.safetensors")
    for at in range(5):
        tensors[f"model.layers.{at}.mlp.down_proj.weight"][:, ::4] = 0.0
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    before = scores(model)
    narrow(model, tmp_path / "thin", keep=0.75, texts=TEXTS)
    np.testing.assert_allclose(scores(tmp_path / "thin"), before, atol=1e-4)


def test_fewer_bits_do_more_harm(model: Path, tmp_path: Path) -> None:
    before = scores(model)
    harm = []
    for bits in (8, 4, 2):
        done = round_weights(model, tmp_path / f"{bits}", bits=bits, group=32)
        harm.append(float(np.abs(scores(tmp_path / f"{bits}") - before).mean()))
        assert done.left == done.parameters
    assert harm[0] < harm[1] < harm[2]
    weights = load_file(tmp_path / "2" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert len(weights[0].unique()) <= 4


def test_what_cannot_be_damaged_is_refused_in_words(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1 \.\.\. 4; got 5"):
        drop_blocks(model, tmp_path / "out", keep=5, texts=TEXTS)
    with pytest.raises(ConfigError, match=r"0 < keep < 1; got 1\.0"):
        narrow(model, tmp_path / "out", keep=1.0, texts=TEXTS)
    with pytest.raises(ConfigError, match=r"bits must be 1 \.\.\. 8"):
        round_weights(model, tmp_path / "out", bits=9)
    with pytest.raises(ConfigError, match="no text was given"):
        narrow(model, tmp_path / "out", keep=0.5, texts=[])
    with pytest.raises(ConfigError, match="exists"):
        round_weights(model, model, bits=4)
    with pytest.raises(ModelError, match="groups of 40 do not divide"):
        round_weights(model, tmp_path / "out", bits=4, group=40)
