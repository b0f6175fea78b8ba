"""The loop on a tiny network and a real set: it learns, resumes to the bit, and writes what can be loaded."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from datapipe.errors import ConfigError, IntegrityError, ModelError
from datapipe.weights import embedded_folder
from datapipe.workers.folder import ModelFolder
from provence.evaluation.protocol import passages_of_set
from provence.families.delta import decode_delta
from provence.pruner import Pruner
from provence.training.config import DistilConfig, ModelConfig, OptimiserConfig, TrainingConfig, WindowConfig
from provence.training.distil import RoundedDelta, mean_of, taught
from provence.training.network import HEADS, open_network
from provence.training.pipeline import write_student
from provence.training.sampler import training_windows
from provence.training.scorer import NetworkScorer
from provence.training.store import Store
from provence.training.templates import open_tokenizer
from provence.training.train import Loop, predict
from tests.provence.training.tiny import CPU, bank, examples, network, template, tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from provence.training.network import PrunerNetwork

SHORT = WindowConfig(max_tokens=96, max_sentence=60, max_question=30, passage_tokens=60)
OPTIMISER = OptimiserConfig(steps=12, batch_tokens=256, learning_rate=2e-3, head_rate=1e-2, average=0.5, seed=3)


@cache
def store(seed: int = 0) -> Store:
    windows = training_windows(bank(), SHORT, seed=seed)
    chosen = np.arange(0, len(windows), 40)
    few = [(int(windows.at[i]), int(windows.at[i + 1])) for i in chosen]
    part = type(windows)(
        question=windows.question[chosen],
        title=windows.title[chosen],
        sentence=np.concatenate([windows.sentence[a:b] for a, b in few]),
        label=np.concatenate([windows.label[a:b] for a, b in few]),
        at=np.concatenate([[0], np.cumsum([b - a for a, b in few])]).astype(np.int64),
    )
    return Store.of(bank(), part, template(), device=CPU)


def loop(made: PrunerNetwork, folder: Path | None = None, optimiser: OptimiserConfig = OPTIMISER) -> Loop:
    checkpoint = None if folder is None else folder / "run.checkpoint"
    log = None if folder is None else folder / "run.jsonl"
    return Loop(made, optimiser, lambda number: store(number % 3), log=log, checkpoint=checkpoint, checkpoint_every=5)


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_broken_off(tmp_path: Path) -> None:
    whole, broken, resumed = network(), network(), network(seed=9)
    loop(whole).run()
    loop(broken, tmp_path).run(until=7)
    loop(resumed, tmp_path).run()
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name
    assert not torch.equal(whole.tensors()["keep.weight"], network().tensors()["keep.weight"])


def test_training_lowers_the_loss_and_says_so_while_it_runs(tmp_path: Path) -> None:
    made = network(dropout=0.0)
    optimiser = OptimiserConfig(steps=50, batch_tokens=256, learning_rate=5e-3, head_rate=2e-2, seed=3)
    one = store()
    run = Loop(made, optimiser, lambda _: one, log=tmp_path / "run.jsonl")
    run.validate, run.validate_every = lambda _: {"macro": 0.5}, 50
    run.run()
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    losses = [line["keep_loss"] for line in lines if "keep_loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert lines[-1] == {"step": 50, "epoch": lines[-1]["epoch"], "seconds": lines[-1]["seconds"], "macro": 0.5}


def test_frozen_tensors_stay_and_the_others_move() -> None:
    made = network()
    before = made.tensors()
    loop(made, optimiser=OptimiserConfig(steps=3, batch_tokens=256, frozen=("embeddings.",))).run()
    moved = {name for name, tensor in made.tensors().items() if not torch.equal(tensor, before[name])}
    assert not {name for name in moved if name.startswith("embeddings.")}
    assert "encoder.layer.1.output.dense.weight" in moved


def test_a_checkpoint_of_another_config_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    loop(network(), tmp_path).run(until=5)
    with pytest.raises(ConfigError, match=r"run\.checkpoint belongs to a run with another config"):
        loop(network(), tmp_path, OptimiserConfig(steps=12, batch_tokens=256, seed=4)).run()
    other = loop(network(), tmp_path)
    other.identity = "other sources"
    with pytest.raises(ConfigError, match=r"run\.checkpoint belongs to a run with another config"):
        other.run()
    (tmp_path / "run.checkpoint").write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match=r"run\.checkpoint is no checkpoint"):
        loop(network(), tmp_path).run()


def test_a_run_that_diverges_stops_and_says_where() -> None:
    made = network()
    with torch.no_grad():
        made.weights["keep/bias"].fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"training diverged at update 1: .* lower the learning rate"):
        loop(made).run()


def test_the_student_learns_the_mean_of_its_teachers_mixed_with_the_labels() -> None:
    windows = training_windows(bank(), SHORT, seed=1)
    plain = Store.of(bank(), windows, template(), device=CPU)
    said = [predict(network(seed=seed), plain) for seed in (5, 6)]
    learnt = taught(bank(), windows, template(), mean_of(said), soft=0.75, device=CPU)
    keep = (said[0].keep + said[1].keep) / 2
    assert torch.allclose(learnt.target, 0.75 * keep + 0.25 * plain.target)
    assert torch.allclose(learnt.score, (said[0].score + said[1].score) / 2)
    assert learnt.soft_score


def test_scores_of_a_network_do_not_depend_on_the_other_passages() -> None:
    made = network()
    scorer = NetworkScorer("tiny", made, tokenizer(), template(), CPU, SHORT)
    passages = passages_of_set(examples()[:6])
    together, apart = scorer.score(passages), [scorer.score([passage])[0] for passage in passages]
    for one, other, passage in zip(together, apart, passages, strict=True):
        assert len(one.probabilities) == len(passage.starts)
        assert np.allclose(one.probabilities, other.probabilities, atol=1e-5)
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_the_forward_pass_of_the_last_updates_sees_the_weights_that_are_stored(tmp_path: Path) -> None:
    folder = ModelFolder("base", embedded_folder("all-MiniLM-L6-v2"))
    made = open_network(folder, seed=0)
    rounded = RoundedDelta.of(made, bits=4, group=64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in made.named_weights():
            if name.startswith("encoder.layer.0."):
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    seen = rounded(made)
    config = TrainingConfig(name="tiny", student=ModelConfig(source="embedded:all-MiniLM-L6-v2"), sources=())
    write_student(made, config, tmp_path / "model")
    stored = ModelFolder("tiny", tmp_path / "model").tensors()
    whole = decode_delta(folder.tensors(), {n.removeprefix("delta."): t for n, t in stored.items() if n[:5] == "delta"})
    assert set(HEADS) <= stored.keys()
    for name, used in seen.items():
        assert torch.allclose(used.detach(), whole[name], atol=1e-5), name
    weight = made.weights["encoder/layer/0/output/dense/weight"]
    torch.autograd.backward(rounded(made)["encoder.layer.0.output.dense.weight"].sum())
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_a_delta_needs_an_embedded_base(tmp_path: Path) -> None:
    base = embedded_folder("all-MiniLM-L6-v2")
    config = TrainingConfig(
        name="tiny", student=ModelConfig(source=str(base)), sources=(), distil=DistilConfig(pairs=10)
    )
    with pytest.raises(ConfigError, match="bits = 4 needs a student that is embedded"):
        write_student(open_network(ModelFolder("base", base)), config, tmp_path)


def test_a_deeper_student_is_stored_as_differences_to_the_layers_it_started_from(tmp_path: Path) -> None:
    folder = ModelFolder("base", embedded_folder("all-MiniLM-L6-v2"))
    layers = (0, 1, 2, 3, 4, 4, 5)
    made = open_network(folder, layers=layers, seed=0)
    with torch.no_grad():
        made.weights["encoder/layer/5/output/dense/bias"].add_(1.0)
        made.weights["score/weight"].copy_(torch.linspace(-1, 1, 384).unsqueeze(0))
    student = ModelConfig(source="embedded:all-MiniLM-L6-v2", layers=layers)
    config = TrainingConfig(name="deep", student=student, sources=(), group=128)
    write_student(made, config, tmp_path / "model")
    with Pruner.load(tmp_path / "model", dtype="float32") as pruner:
        pruned = pruner.prune("Who wrote it?", ["Mary wrote it. It rained."])
    words = open_tokenizer(folder).encode("who wrote it?", "mary wrote it. it rained.", add_special_tokens=True)
    with torch.inference_mode():
        expected = made(torch.tensor([words.ids]), torch.tensor([len(words.ids)]))
    assert len({name.split(".")[2] for name in made.tensors() if name.startswith("encoder.layer")}) == len(layers)
    assert pruned[0].relevance_score == pytest.approx(float(expected.score), abs=1e-3)


def test_a_layer_that_the_base_does_not_have_is_refused_by_name() -> None:
    folder = ModelFolder("base", embedded_folder("all-MiniLM-L6-v2"))
    with pytest.raises(ModelError, match="layer 1 starts from layer 6, but the base has layers 0 to 5"):
        open_network(folder, layers=(0, 6))
