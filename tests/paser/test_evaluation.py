"""What is measured of a healed model agrees with the worker that serves it, and with a hand-made count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from datapipe.errors import ConfigError, MetricError, ModelError
from datapipe.paser.evaluation import Live, answer_states, choice_accuracy, choices_of, held_out
from datapipe.paser.lessons import Lessons, lessons_of
from datapipe.paser.recovery import RecoveryRecipe, open_trainable
from datapipe.workers import CausalItem, LocalWorker, ModelSpec
from datapipe.workers.encoders.causal import CausalModel
from datapipe.workers.folder import ModelFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CPU = torch.device("cpu")
PROMPTS = ["Name a tool.", "How many legs has a spider, and how many has an ant?", "Say yes.", "What is blue?"]
ANSWERS = ["A plane.", "Eight and six, if both are healthy.", "Yes.", "The sky on a day without clouds."]
QUESTIONS: list[dict[str, Any]] = [
    {"task": "a", "passage": "", "question": "Which is a tool?", "choices": ["a saw", "rain"], "label": 0},
    {"task": "a", "passage": "Ants have six legs.", "question": "Legs?", "choices": ["6", "8", "ten"], "label": 0},
    {"task": "b", "passage": "", "question": "Is it?", "choices": ["yes", "no"], "label": 1},
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small wait for a second thread longer than it helps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(folder: Path) -> Lessons:
    return lessons_of(PROMPTS, ANSWERS, folder=ModelFolder("m", folder), max_length=64, ended=False)


def opened(folder: Path) -> CausalModel:
    return CausalModel(ModelFolder("m", folder), device=CPU, dtype=torch.float32)


def live(folder: Path) -> Live:
    return Live(open_trainable(ModelFolder("m", folder), RecoveryRecipe(), device=CPU))


def test_a_model_in_memory_says_what_the_same_folder_says(tiny_pruned: Path) -> None:
    lessons = rows(tiny_pruned)
    one, other = (answer_states(each, lessons, device=CPU) for each in (live(tiny_pruned), opened(tiny_pruned)))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(live(tiny_pruned).logits(one), opened(tiny_pruned).logits(one), atol=1e-4, rtol=1e-4)


def test_held_out_losses_are_those_that_the_worker_gives(tiny_original: Path, tiny_pruned: Path) -> None:
    lessons, original = rows(tiny_pruned), opened(tiny_original)
    states = answer_states(original, lessons, device=CPU)
    groups = ["one", "two", "one", "two"]
    found = held_out(original, states, live(tiny_pruned), lessons, groups, device=CPU)
    with LocalWorker([ModelSpec("m", str(tiny_pruned), task="causal", dtype="float32")], device="cpu") as worker:
        items = [CausalItem(answer, prompt) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
        said = [-each.log_probabilities for each in worker.run("causal", items, model="m")]
    expected = [np.concatenate([said[0], said[2]]).mean(), np.concatenate([said[1], said[3]]).mean()]
    assert found.by_group["one"]["nll"] == pytest.approx(expected[0], abs=1e-4)
    assert found.by_group["two"]["nll"] == pytest.approx(expected[1], abs=1e-4)
    assert found.nll == pytest.approx(np.mean(expected), abs=1e-4)
    assert found.jsd > 0


def test_the_original_is_at_no_distance_from_itself(tiny_original: Path) -> None:
    lessons, original = rows(tiny_original), opened(tiny_original)
    states = answer_states(original, lessons, device=CPU)
    found = held_out(original, states, opened(tiny_original), lessons, ["x"] * 4, device=CPU)
    assert found.jsd < 1e-6
    assert found.nll == pytest.approx(found.nll_original, abs=1e-6)


def test_the_option_of_the_greatest_probability_a_byte_is_the_answer(tiny_pruned: Path) -> None:
    choices = choices_of(QUESTIONS, folder=ModelFolder("m", tiny_pruned), max_length=64)
    found = choice_accuracy(live(tiny_pruned), choices, device=CPU)
    right = []
    with LocalWorker([ModelSpec("m", str(tiny_pruned), task="causal", dtype="float32")], device="cpu") as worker:
        for each in QUESTIONS:
            asked = "\n\n".join(filter(None, [each["passage"], f"Question: {each['question']}\nAnswer:"]))
            items = [CausalItem(f" {option}", asked) for option in each["choices"]]
            said = [said.log_probabilities.sum() for said in worker.run("causal", items, model="m")]
            scores = [score / len(option) for score, option in zip(said, each["choices"], strict=True)]
            right.append(int(np.argmax(scores)) == each["label"])
    assert found == {"a": (right[0] + right[1]) / 2, "b": float(right[2])}


def test_what_cannot_be_scored_is_refused_in_words(tiny_original: Path, tiny_pruned: Path) -> None:
    folder, lessons, original = ModelFolder("m", tiny_pruned), rows(tiny_pruned), opened(tiny_original)
    with pytest.raises(ConfigError, match="question 0 has 2 choices, and its label is 2"):
        choices_of([QUESTIONS[0] | {"label": 2}], folder=folder, max_length=64)
    with pytest.raises(ConfigError, match="there are no questions"):
        choices_of([], folder=folder, max_length=64)
    states = answer_states(original, lessons, device=CPU)
    with pytest.raises(ConfigError, match="4 rows, but groups of 1"):
        held_out(original, states, live(tiny_pruned), lessons, ["x"], device=CPU)
    model = open_trainable(folder, RecoveryRecipe(), device=CPU)
    model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(MetricError, match="not a finite number"):
        choice_accuracy(Live(model), choices_of(QUESTIONS, folder=folder, max_length=64), device=CPU)


def test_a_head_that_is_more_than_a_product_is_refused(tiny_pruned: Path) -> None:
    model = open_trainable(ModelFolder("m", tiny_pruned), RecoveryRecipe(), device=CPU)
    whole = model.lm_head.forward
    model.lm_head.forward = lambda states: whole(states).tanh()
    with pytest.raises(ModelError, match="more than a product"):
        Live(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_what_the_host_measures(tiny_original: Path, tiny_pruned: Path) -> None:
    folder, lessons, gpu = ModelFolder("m", tiny_pruned), rows(tiny_pruned), torch.device("cuda")
    original = CausalModel(ModelFolder("m", tiny_original), device=gpu, dtype=torch.bfloat16)
    model = Live(open_trainable(folder, RecoveryRecipe(), device=gpu))
    states = answer_states(original, lessons, device=gpu)
    found = held_out(original, states, model, lessons, ["x"] * 4, device=gpu)
    host = opened(tiny_original)
    expected = held_out(
        host, answer_states(host, lessons, device=CPU), live(tiny_pruned), lessons, ["x"] * 4, device=CPU
    )
    assert found.nll == pytest.approx(expected.nll, abs=0.05)
    assert found.jsd == pytest.approx(expected.jsd, abs=0.02)
    choices = choices_of(QUESTIONS, folder=folder, max_length=64)
    assert choice_accuracy(model, choices, device=gpu).keys() == {"a", "b"}
