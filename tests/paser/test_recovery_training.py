"""The loop that heals: its loss is that of the rows one by one, it is seeded, and it stops at what is no number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers

from datapipe.errors import ConfigError, MetricError, ModelError
from datapipe.paser.lessons import Lessons, lessons_of
from datapipe.paser.recovery import open_trainable
from datapipe.paser.recovery_training import RecoveryRecipe, learnt_weights, rate_at, train, with_updates
from datapipe.workers.encoders.library import config_of, filled
from datapipe.workers.folder import ModelFolder
from tests.workers.tiny import text_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CPU = torch.device("cpu")
PROMPTS = ["Name a tool of a carpenter.", "What colour is the sky?", "How many legs has a spider?", "Say yes."]
ANSWERS = ["A plane, with which wood is made smooth.", "Blue.", "Eight.", "Yes, with pleasure, as often as you like."]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small wait for a second thread longer than it helps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    root: Path = tmp_path_factory.mktemp("model")
    text_folder(root, "llama", mapping="MODEL_FOR_CAUSAL_LM_MAPPING")
    return ModelFolder("llama", root)


def lessons(folder: ModelFolder) -> Lessons:
    return lessons_of(PROMPTS, ANSWERS, folder=folder, max_length=40)


def opened(folder: ModelFolder, recipe: RecoveryRecipe | None = None) -> Any:
    model = filled(transformers.LlamaForCausalLM, config_of(folder), folder, dtype=torch.float32)
    return with_updates(model, recipe or RecoveryRecipe(), device=CPU)


def recipe(**changed: Any) -> RecoveryRecipe:
    return RecoveryRecipe(**{"tokens": 400, "batch_tokens": 60, "max_length": 40, "learning_rate": 5e-3} | changed)


def test_the_loss_of_packed_rows_is_that_of_the_rows_one_by_one(folder: ModelFolder) -> None:
    rows, model = lessons(folder), opened(folder)
    total = 0.0
    with torch.inference_mode():
        for number in range(len(rows)):
            ids = torch.from_numpy(rows.row(number).astype(np.int64))[None]
            asked = ids.clone()
            asked[0, : int(rows.prompts[number])] = -100
            total += float(model(input_ids=ids, labels=asked).loss) * int(rows.answers[number])
    whole = recipe(tokens=int(rows.lengths.sum()), batch_tokens=200)
    course = train(model, rows, whole, device=CPU)
    assert course.steps == 1
    assert course.losses[0] == pytest.approx(total / rows.answers.sum(), abs=1e-4)
    assert course.answer_tokens == rows.answers.sum()


def test_small_parts_of_a_step_add_up_to_the_step(folder: ModelFolder) -> None:
    courses = [train(opened(folder), lessons(folder), recipe(micro_tokens=size), device=CPU) for size in (8, 4096)]
    np.testing.assert_allclose(courses[0].losses, courses[1].losses, rtol=2e-3)


@pytest.mark.parametrize("lora", [None, 4])
def test_what_is_learnt_lowers_the_loss_and_the_same_seed_learns_the_same(
    folder: ModelFolder, lora: int | None
) -> None:
    told = recipe(tokens=600, lora=lora, learning_rate=2e-2)
    found = [train(opened(folder, told), lessons(folder), told, device=CPU) for _ in range(2)]
    assert found[0].losses == found[1].losses
    assert np.mean(found[0].losses[-3:]) < found[0].losses[0] - 0.2
    assert found[0].tokens >= 600
    assert found[0].epochs == pytest.approx(600 / lessons(folder).lengths.sum(), rel=0.1)


@pytest.mark.parametrize("lora", [None, 4])
def test_the_weights_that_are_written_do_what_the_trained_model_does(folder: ModelFolder, lora: int | None) -> None:
    told = recipe(lora=lora)
    model, stored = opened(folder, told), folder.tensors()
    train(model, lessons(folder), told, device=CPU)
    found = learnt_weights(model, stored)
    assert found.keys() == stored.keys()
    assert any(not torch.equal(found[name], stored[name]) for name in stored)
    plain = transformers.LlamaForCausalLM(config_of(folder)).eval()
    plain.load_state_dict(found, strict=False)
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        torch.testing.assert_close(plain(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_weights_are_written_in_the_precision_they_were_stored_in(folder: ModelFolder) -> None:
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in folder.tensors().items()}
    found = learnt_weights(opened(folder), stored)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    with pytest.raises(ModelError, match="was learnt, but the model's folder holds no tensor of that name"):
        learnt_weights(opened(folder), {"other": torch.zeros(1)})


def test_a_model_that_is_no_number_is_told_by_its_step(folder: ModelFolder) -> None:
    model = opened(folder)
    with torch.no_grad():
        next(model.parameters())[:] = float("nan")
    with pytest.raises(MetricError, match="step 1 has loss nan"):
        train(model, lessons(folder), recipe(), device=CPU)


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(step, 100, warmup=0.1) for step in range(100)]
    assert rates.index(max(rates)) == 10
    assert max(rates) == 1.0
    assert rates[0] > 0
    assert rates[-1] < 1e-3
    assert rate_at(0, 1, warmup=0.0) == 1.0


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("tokens", 0, "tokens must be 1 or more"),
        ("lora", 0, "lora must be 1 or more"),
        ("batch_tokens", 8, "batch_tokens must be 40 or more"),
        ("epochs", 0.0, "epochs must be above 0"),
        ("learning_rate", -1.0, "learning_rate must be above 0"),
        ("warmup", 1.5, "warmup is a part of the steps"),
    ],
)
def test_a_recipe_out_of_range_is_refused_in_words(folder: ModelFolder, field: str, value: float, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        train(opened(folder), lessons(folder), recipe(**{field: value}), device=CPU)


def test_the_body_is_as_it_was_after_a_training(folder: ModelFolder) -> None:
    model = opened(folder)
    train(model, lessons(folder), recipe(), device=CPU)
    assert model(input_ids=torch.arange(5, 12)[None]).logits.shape[:2] == (1, 7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("lora", [None, 4])
def test_a_gpu_learns_what_the_host_learns(folder: ModelFolder, lora: int | None) -> None:
    told, gpu = recipe(tokens=600, lora=lora, learning_rate=2e-2), torch.device("cuda")
    host = train(opened(folder, told), lessons(folder), told, device=CPU)
    model = with_updates(open_trainable(folder, told, device=gpu), told, device=gpu)
    found = train(model, lessons(folder), told, device=gpu)
    # Updates of low rank start from other draws on the device.
    np.testing.assert_allclose(found.losses[:2], host.losses[:2], rtol=0.02)
    assert np.mean(found.losses[-3:]) < found.losses[0] - 0.2
    written = learnt_weights(model, folder.tensors())
    assert all(tensor.device == CPU for tensor in written.values())
