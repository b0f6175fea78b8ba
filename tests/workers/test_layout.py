"""What a sentence-transformers folder states is computed, or refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers, lists, sampled_from

from datapipe.errors import ModelError, UnsafeModelError
from datapipe.weights import embedded_folder
from datapipe.workers.encoders.layout import SentenceLayout
from datapipe.workers.encoders.pooling import POOLING_MODES, PoolingMode, pool
from datapipe.workers.folder import ModelFolder

if TYPE_CHECKING:
    from pathlib import Path

MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
NORMALIZE = {"path": "2_Normalize", "type": "sentence_transformers.base.modules.normalize.Normalize"}


def written(folder: Path, files: dict[str, Any]) -> ModelFolder:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return ModelFolder("m", folder)


def test_the_embedded_model_pools_means_of_unit_length_over_256_tokens() -> None:
    folder = ModelFolder("m", embedded_folder("all-MiniLM-L6-v2"))
    assert SentenceLayout.of(folder) == SentenceLayout(folder, pooling="mean", normalised=True, max_length=256)


def test_a_bare_encoder_pools_means_of_unit_length(tmp_path: Path) -> None:
    folder = written(tmp_path, {"tokenizer_config.json": {"model_max_length": 77}})
    assert SentenceLayout.of(folder) == SentenceLayout(folder, max_length=77)


def test_a_tokenizer_without_a_limit_sets_none(tmp_path: Path) -> None:
    folder = written(tmp_path, {"tokenizer_config.json": {"model_max_length": 1e30}})
    assert SentenceLayout.of(folder).max_length is None


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "lasttoken"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max"),
    ],
)
def test_pooling_is_read_in_its_old_and_its_new_form(tmp_path: Path, pooling: dict[str, Any], mode: Any) -> None:
    folder = written(tmp_path, {"modules.json": MODULES, "1_Pooling/config.json": pooling})
    assert SentenceLayout.of(folder) == SentenceLayout(folder, pooling=mode, normalised=False)


def test_the_encoder_may_lie_in_a_folder_of_its_own_and_texts_may_be_dressed(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        {
            "modules.json": [MODULES[0] | {"path": "0_Transformer"}, MODULES[1], NORMALIZE],
            "1_Pooling/config.json": {"pooling_mode": "mean"},
            "0_Transformer/sentence_bert_config.json": {"max_seq_length": 9, "do_lower_case": True},
            "config_sentence_transformers.json": {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
        },
    )
    expected = SentenceLayout(ModelFolder("m", tmp_path / "0_Transformer"), max_length=9, lower=True, prefix="q: ")
    assert SentenceLayout.of(folder) == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules.json": {"a": 1}}, r"modules\.json is not a list of modules with type and path"),
        (
            {"modules.json": [*MODULES, {"path": "", "type": "x.Dense"}]},
            "names the module Dense, which is not supported",
        ),
        ({"modules.json": MODULES[:1]}, r"modules\.json names no Pooling"),
        ({"1_Pooling/config.json": {"pooling_mode": "weightedmean"}}, "pooling weightedmean is not supported"),
        ({"1_Pooling/config.json": {"pooling_mode": ["cls", "mean"]}}, r"pooling cls \+ mean is not supported"),
        ({"1_Pooling/config.json": {}}, "pooling none is not supported"),
        ({"config_sentence_transformers.json": {"default_prompt_name": "gone"}}, "default prompt 'gone' is not among"),
        (
            {
                "config_sentence_transformers.json": {"default_prompt_name": "q", "prompts": {"q": "q: "}},
                "1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": False},
            },
            r"pooling without the prompt \(include_prompt: false\) is not supported",
        ),
    ],
)
def test_what_we_do_not_compute_is_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    folder = written(tmp_path, {"modules.json": MODULES, "1_Pooling/config.json": {"pooling_mode": "mean"}} | files)
    with pytest.raises(ModelError, match=message):
        SentenceLayout.of(folder)


def test_a_module_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, {"modules.json": [MODULES[0], MODULES[1] | {"path": "../elsewhere"}]})
    with pytest.raises(UnsafeModelError, match=r"names a file outside its folder: '\.\./elsewhere'"):
        SentenceLayout.of(folder)


def pooled_by_hand(states: torch.Tensor, mode: PoolingMode) -> torch.Tensor:
    if mode == "cls":
        return states[0]
    if mode == "lasttoken":
        return states[-1]
    if mode == "max":
        return states.max(dim=0).values
    return states.sum(dim=0) / (len(states) if mode == "mean" else len(states) ** 0.5)


@given(lengths=lists(integers(1, 9), min_size=1, max_size=9), mode=sampled_from(POOLING_MODES))
def test_pooling_equals_the_formula_text_by_text(lengths: list[int], mode: PoolingMode) -> None:
    hidden = torch.randn((sum(lengths), 5), generator=torch.Generator().manual_seed(sum(lengths)))
    expected = torch.stack([pooled_by_hand(states, mode) for states in hidden.split(lengths)])
    found = pool(hidden, lengths, mode=mode, normalised=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    unit = pool(hidden, lengths, mode=mode, normalised=True)
    torch.testing.assert_close(unit, expected / expected.norm(dim=1, keepdim=True), rtol=0, atol=1e-6)
