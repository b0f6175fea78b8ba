"""Models that can be compared and models that cannot; numbers of tokens to numbers of rows; a row as text."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from datapipe.errors import ConfigError, MetricError, ModelError, ModelNotFoundError
from datapipe.paser.divergence import columns
from datapipe.paser.models import labels_of
from datapipe.paser.rendering import leading_text, prompt_and_text
from datapipe.paser.rows import ROW_NUMBERS, row_numbers
from datapipe.workers.chat import ChatFormat
from datapipe.workers.folder import ModelFolder
from datapipe.workers.tasks.causal import PlainTokenizer
from tests.paser.conftest import small_llama
from tests.paser.pools import models

if TYPE_CHECKING:
    from pathlib import Path


def test_a_pair_knows_its_length_its_digests_and_its_platform_before_anything_is_loaded(
    tiny_original: Path, tiny_pruned: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("datapipe.workers.worker.LocalWorker.load", lambda *_, **__: pytest.fail("loaded"))
    both = models(tiny_original, tiny_pruned, max_length=100)
    assert both.labels == ("pruned",)
    assert both.max_length == 100
    assert both.digest("original") == ModelFolder("o", tiny_original).digest != both.digest("pruned")
    assert both.bits["dtype"] == "float32"
    assert both.facts["pruned"]["name"] == "pruned"
    assert models(tiny_original, tiny_pruned).max_length == 256


def test_platform_facts_are_those_of_the_worker(tiny_original: Path, tiny_pruned: Path) -> None:
    with models(tiny_original, tiny_pruned) as both:
        assert both.bits == both.load("original").bits


def test_labels_are_the_names_of_folders_and_never_alike() -> None:
    assert labels_of(["/a/less", "/b/less", "own/er", "or iginal"]) == ("less", "less-2", "er", "or_iginal")
    assert labels_of(["x/original"]) == ("original-2",)
    assert labels_of(["a/m", "b/m", "c/m-2"]) == ("m", "m-2", "m-2-2")


def test_weights_that_are_not_finite_are_refused_by_their_name(
    tiny_original: Path, tiny_pruned: Path, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pruned, broken)
    weights = load_file(broken / "model.safetensors")
    weights[name][3, 4] = float("nan")
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ModelError, match=rf"model broken: tensor {name} .* NaN or infinite"):
        models(tiny_original, broken)
    with pytest.raises(ModelError, match="model original: tensor"):
        models(broken, tiny_pruned)


def test_models_with_other_tokens_are_refused_in_words(tiny_original: Path, tiny_pruned: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "swapped"
    shutil.copytree(tiny_pruned, swapped)
    tokenizer = json.loads((swapped / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["garden"], words["carpenter"] = words["carpenter"], words["garden"]
    (swapped / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"different tokenizers: token \d+ is 'garden' to the one and 'carpenter'"):
        models(tiny_original, swapped)
    del words["carpenter"]
    (swapped / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="different tokenizers: 30,522 tokens and 30,521"):
        models(tiny_original, swapped)
    wider = small_llama(tmp_path / "wider", vocab_size=30_528)
    with pytest.raises(ModelError, match="one tokenizer, but 30,522 and 30,528 logits"):
        models(tiny_original, wider)


def test_what_is_no_model_or_out_of_range_is_refused(tiny_original: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one pruned model"):
        models(tiny_original)
    with pytest.raises(ConfigError, match="max_length must be at least 2 tokens, got 1"):
        models(tiny_original, tiny_original, max_length=1)
    with pytest.raises(ModelNotFoundError, match="there is no folder"):
        models(tiny_original, tmp_path / "absent")
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_original, damaged)
    (damaged / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        models(tiny_original, damaged)


sizes = st.lists(st.integers(0, 7), max_size=12)


@given(sizes=sizes, seed=st.integers(0, 1000))
def test_numbers_of_rows_are_those_of_each_row_alone(sizes: list[int], seed: int) -> None:
    tokens = np.random.default_rng(seed).random((sum(sizes), 6), np.float32)
    found = row_numbers(tokens, np.array(sizes, np.int64))
    assert tuple(found) == ROW_NUMBERS
    for row, own in enumerate(np.split(tokens.astype(np.float64), np.cumsum(sizes)[:-1]) if sizes else []):
        if not len(own):
            assert found["jsd_sum"][row] == 0
            assert all(np.isnan(found[name][row]) for name in ROW_NUMBERS if name != "jsd_sum")
            continue
        jsd = own[:, 0]
        assert found["jsd_mean"][row] == pytest.approx(jsd.mean(), rel=1e-6)
        assert found["jsd_sum"][row] == pytest.approx(jsd.sum(), rel=1e-6)
        assert found["jsd_p95"][row] == pytest.approx(np.quantile(jsd, 0.95), rel=1e-6)
        assert found["jsd_first"][row] == pytest.approx(jsd[0], rel=1e-6)
        for place, name in enumerate(columns()[1:], 1):
            assert found[name][row] == pytest.approx(own[:, place].mean(), rel=1e-6)


def test_sizes_of_other_tokens_are_refused() -> None:
    with pytest.raises(MetricError, match="the rows have 3 tokens together, but numbers of 5 came"):
        row_numbers(np.zeros((5, 6), np.float32), np.array([1, 2]))


def test_a_row_is_its_history_then_what_is_asked_then_its_answer(tiny_original: Path) -> None:
    chat = ChatFormat(ModelFolder("m", tiny_original))
    row: dict[str, Any] = {
        "instruction": "Add.",
        "input": "1 + 2",
        "response": "3",
        "history": [{"role": "system", "content": "Be."}],
    }
    assert prompt_and_text(chat, row) == ("system : Be.\nuser : Add.\n\n1 + 2\nassistant : ", "3")
    row |= {"input": "", "history": None}
    assert prompt_and_text(chat, row) == ("user : Add.\nassistant : ", "3")


def test_a_beginning_that_template_and_tokenizer_write_stands_once(tmp_path: Path) -> None:
    folder = small_llama(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "[CLS]"}))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1]['content'] }}")
    model = ModelFolder("m", folder)
    chat, tokenizer = ChatFormat(model), PlainTokenizer(model)
    assert leading_text(chat, tokenizer) == "[CLS]"
    row = {"instruction": "Add.", "input": "", "response": "3"}
    assert prompt_and_text(chat, row, leading="[CLS]") == ("Add.", "3")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "[SEP]"}))
    assert leading_text(ChatFormat(model), tokenizer) == ""
