"""The `generate` task against transformers' own `generate`, one prompt at a time, on small random models."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from datapipe.errors import ConfigError, ItemError, ModelError, WorkerError
from datapipe.workers.folder import ModelFolder
from datapipe.workers.spec import DEFAULT_EMBEDDER, ModelSpec
from datapipe.workers.tasks.generate import Generated, GenerateItem, GenerateTask
from datapipe.workers.wire import from_arrow, to_arrow
from datapipe.workers.worker import LocalWorker
from tests.workers.tiny import text_folder

if TYPE_CHECKING:
    from pathlib import Path

MAPPING = "MODEL_FOR_CAUSAL_LM_MAPPING"
PROMPTS = ["a secateur cuts", "roses", "how deep does one plant a tulip in heavy soil, and when", "one two three four"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}answer :{% endif %}"
)


def make(folder: Path, kind: str = "llama", **settings: Any) -> Any:
    return text_folder(folder, kind, mapping=MAPPING, **settings)


def open_task(folder: Path, **spec: Any) -> GenerateTask:
    stated = ModelSpec("m", str(folder), task="causal", **spec)
    return GenerateTask.open(ModelFolder("m", folder), spec=stated, device=torch.device("cpu"), dtype=torch.float32)


def answer(task: GenerateTask, *items: GenerateItem) -> list[Generated]:
    prepared = task.prepare_many(items)
    return [task.finish(raw, each) for raw, each in zip(task.forward(prepared), prepared, strict=True)]


def asked(**settings: Any) -> list[GenerateItem]:
    return [GenerateItem(prompt, max_new_tokens=12, **settings) for prompt in PROMPTS]


def theirs(model: Any, ids: list[int], *, new: int, stops: tuple[int, ...]) -> list[int]:
    given = torch.tensor([ids])
    found = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=list(stops) or None,
        pad_token_id=0,
    )
    new_ids: list[int] = found[0, len(ids) :].tolist()
    return new_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("generate")
    make(made)
    return made


@pytest.fixture(scope="module")
def task(folder: Path) -> GenerateTask:
    return open_task(folder)


def test_a_prompt_is_answered(task: GenerateTask) -> None:
    (found,) = answer(task, GenerateItem("a secateur cuts", max_new_tokens=5))
    assert found.token_ids.dtype == np.int32
    assert 1 <= len(found.token_ids) <= 5
    assert found.prompt_tokens == 6
    assert not found.cut
    assert found.text


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "llama", "opt"])
def test_a_batch_is_answered_as_transformers_answers_its_prompts(tmp_path: Path, kind: str) -> None:
    model = make(tmp_path, kind)
    task = open_task(tmp_path)
    prepared = task.prepare_many(asked())
    for each, found in zip(prepared, task.forward(prepared), strict=True):
        assert found.tolist() == theirs(model, each.ids.tolist(), new=12, stops=task.stops)


def test_an_answer_ends_with_the_first_stop_token_and_rows_that_end_leave_the_batch(folder: Path) -> None:
    task = open_task(folder)
    items = [replace(item, max_new_tokens=25) for item in asked()]
    free = [each.token_ids.tolist() for each in answer(task, *items)]
    task.stops = tuple(sorted({free[0][3], free[1][9], free[2][0]}))
    for whole, found in zip(free, answer(task, *items), strict=True):
        ends = [at for at, token in enumerate(whole) if token in task.stops]
        assert found.token_ids.tolist() == whole[: ends[0] + 1 if ends else None]
        assert found.ended == bool(ends)
        if ends:
            assert found.text == task._base.tokenizer.text(np.array(whole[: ends[0]], np.int32))


def test_stop_tokens_come_from_every_file_that_names_them(tmp_path: Path) -> None:
    make(tmp_path, eos_token_id=7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 9]}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "[SEP]"}}))
    assert open_task(tmp_path).stops == (5, 7, 9, 102)


def test_every_item_has_its_own_limit(task: GenerateTask) -> None:
    items = [GenerateItem(prompt, max_new_tokens=limit) for prompt, limit in zip(PROMPTS, (1, 3, 9, 17), strict=True)]
    together = answer(task, *items)
    assert [len(each.token_ids) for each in together] == [1, 3, 9, 17]
    for item, found in zip(items, together, strict=True):
        assert answer(task, item)[0].token_ids.tolist() == found.token_ids.tolist()


def test_a_prompt_that_leaves_little_room_gets_a_short_answer_and_one_that_leaves_none_an_empty_one(
    task: GenerateTask,
) -> None:
    short, none = answer(task, GenerateItem("rose " * 36), GenerateItem("rose " * 60))
    assert (len(short.token_ids), short.cut, short.ended) == (3, True, False)
    assert (none.text, len(none.token_ids), none.cut, none.prompt_tokens) == ("", 0, True, 61)
    assert answer(task, GenerateItem("rose " * 60))[0].text == ""


def test_a_chat_template_forms_the_prompt(folder: Path, tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "[CLS]", "chat_template": TEMPLATE}))
    task = open_task(tmp_path)
    chatted = task.prepare(GenerateItem("cut roses", system="be brief"))
    written = "[CLS]system : be brief user : cut roses answer :"
    assert chatted.ids.tolist() == task._base.tokenizer.plain([written], first=0)[0].tolist()
    raw = task.prepare(GenerateItem("cut roses", raw=True))
    assert raw.ids.tolist() == open_task(folder).prepare(GenerateItem("cut roses")).ids.tolist()
    assert raw.ids[0] == 101


def test_a_template_in_its_own_file_comes_first(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 'one' }}"}))
    before = open_task(tmp_path).chat.digest
    (tmp_path / "chat_template.jinja").write_text("{{ 'two' }}")
    chat = open_task(tmp_path).chat
    assert chat.render("", "x") == "two"
    assert chat.digest != before


def test_without_a_template_the_system_text_stands_before_the_prompt(task: GenerateTask) -> None:
    assert task.chat.render("be brief", "cut") == "be brief\n\ncut"
    assert task.chat.render("", "cut") == "cut"


def test_a_template_that_refuses_is_named(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system message') }}")
    with pytest.raises(ModelError, match=r"model m: its chat template does not take a system and a user message .*no"):
        open_task(tmp_path).prepare(GenerateItem("cut", system="be brief"))


def test_a_template_reaches_no_file_and_no_python(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ModelError, match="does not take a user message"):
        open_task(tmp_path).prepare(GenerateItem("cut"))


def test_draws_follow_the_seed_whatever_else_is_in_the_batch(task: GenerateTask) -> None:
    items = [replace(item, temperature=1.0, seed=seed) for seed, item in enumerate(asked())]
    together = [each.token_ids.tolist() for each in answer(task, *items)]
    assert together == [answer(task, item)[0].token_ids.tolist() for item in items]
    other = [each.token_ids.tolist() for each in answer(task, *[replace(item, seed=99) for item in items])]
    assert other != together


def test_a_narrow_top_p_takes_the_most_probable_token(task: GenerateTask) -> None:
    greedy = [each.token_ids.tolist() for each in answer(task, *asked())]
    narrow = answer(task, *asked(temperature=1.0, top_p=1e-6))
    assert [each.token_ids.tolist() for each in narrow] == greedy
    mixed = answer(task, asked()[0], replace(asked()[1], temperature=1.5))
    assert mixed[0].token_ids.tolist() == greedy[0]


def test_first_tokens_are_drawn_as_often_as_they_are_probable(task: GenerateTask) -> None:
    items = [GenerateItem(PROMPTS[0], max_new_tokens=1, temperature=0.1, seed=seed) for seed in range(300)]
    drawn = np.bincount([int(each.token_ids[0]) for each in answer(task, *items)], minlength=30_522) / len(items)
    ids = task.prepare(items[0]).ids
    states = task._base.model.hidden([ids])
    told = (task._base.model.logits(states[-1:])[0] / 0.1).softmax(0).numpy()
    likely = told > 0.05
    assert likely.any()
    np.testing.assert_allclose(drawn[likely], told[likely], rtol=0, atol=4 * (0.25 / len(items)) ** 0.5)


def test_a_worker_that_serves_the_model_for_scores_also_answers(folder: Path, task: GenerateTask) -> None:
    with LocalWorker([ModelSpec("m", str(folder), task="causal", dtype="float32")], device="cpu") as worker:
        found = worker.run("generate", asked(), model="m")
        assert worker.run("generate", [], model="m") == []
    assert [each.token_ids.tolist() for each in found] == [each.token_ids.tolist() for each in answer(task, *asked())]


def test_items_and_answers_travel_as_arrow(task: GenerateTask) -> None:
    items = asked(temperature=0.5, top_p=0.75, seed=3)
    assert from_arrow(to_arrow(items, task.item_schema()), task.item_schema(), GenerateItem) == items
    found = answer(task, *items)
    back = from_arrow(to_arrow(found, task.result_schema()), task.result_schema(), Generated)
    assert [each.token_ids.tolist() for each in back] == [each.token_ids.tolist() for each in found]
    assert [each.text for each in back] == [each.text for each in found]


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ("no item", "item 1 must be a GenerateItem of texts. Got str"),
        (GenerateItem(3), "item 1 must be a GenerateItem of texts. Got int"),  # type: ignore[arg-type]
        (GenerateItem("x", system="s", raw=True), "item 1 is raw, so it can have no system text"),
        (GenerateItem("x", max_new_tokens=0), "max_new_tokens of item 1 must be at least 1. Got 0"),
        (GenerateItem("x", temperature=float("nan")), "temperature of item 1 must be 0 or more. Got nan"),
        (GenerateItem("x", top_p=0.0), "top_p of item 1 must be above 0 and at most 1. Got 0.0"),
        (GenerateItem("x", seed=-1), "seed of item 1 must be in"),
    ],
)
def test_an_unusable_item_is_refused_by_its_index(task: GenerateTask, item: Any, text: str) -> None:
    with pytest.raises(ItemError) as caught:
        task.prepare_many([GenerateItem("x"), item])
    assert text in str(caught.value)
    assert caught.value.index == 1


def test_an_item_without_tokens_is_refused(tmp_path: Path) -> None:
    make(tmp_path, bare=True)
    with pytest.raises(ItemError, match="item 0 has no tokens to answer"):
        open_task(tmp_path).prepare(GenerateItem(" "))


def test_logits_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    make(tmp_path)
    with LocalWorker([ModelSpec("m", str(tmp_path), task="causal", dtype="float32")], device="cpu") as worker:
        weights: Any = worker.load("m", task="generate").task
        weights._base.model._body.layers[0].mlp.up_proj.weight.fill_(float("nan"))
        with pytest.raises(WorkerError, match="logits of item 0 of the batch are not finite"):
            worker.run("generate", asked()[:1], model="m")


def test_a_model_of_another_kind_is_refused() -> None:
    with LocalWorker(device="cpu") as worker, pytest.raises(ConfigError, match="is for the task 'embed', not"):
        worker.run("generate", [GenerateItem("x")], model=DEFAULT_EMBEDDER.name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_accelerator_answers_as_the_processor_does(folder: Path, temperature: float) -> None:
    found = []
    for device in ("cpu", "cuda"):
        with LocalWorker([ModelSpec("m", str(folder), task="causal", dtype="float32")], device=device) as worker:
            answers = worker.run("generate", 8 * asked(temperature=temperature), model="m")
            found.append([each.token_ids[:4].tolist() for each in answers])
    same = [one == other for one, other in zip(*found, strict=True)]
    assert sum(same) >= 0.9 * len(same)
