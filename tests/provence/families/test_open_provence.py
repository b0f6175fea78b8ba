"""OpenProvence and zilliz' highlighters against transformers' plain modules, whatever a version calls hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from datapipe.errors import ModelError
from datapipe.workers.folder import ModelFolder
from provence.families import conduct_of
from tests.provence.families.checkpoints import batch_of, change, close, edit, load, open_provence, run, zilliz

if TYPE_CHECKING:
    from pathlib import Path

    from tests.provence.families.checkpoints import Checkpoint

MIXED = [40, 7, 7, 2, 31, 1, 5]
KEEP = "pruning_head.classifier"


def check(checkpoint: Checkpoint) -> None:
    batch = batch_of(MIXED, vocabulary=300)
    found = load(checkpoint.folder).heads(batch)
    keep, scores = checkpoint.expected(batch)
    close(found.keep, keep)
    close(found.scores, scores)
    assert 0 < float(found.scores.min()) <= float(found.scores.max()) < 1


@pytest.mark.parametrize(
    "base",
    [
        {"classifier_pooling": "cls"},
        {"classifier_pooling": "mean"},
        {"classifier_pooling": "cls", "norm_bias": True, "classifier_bias": True, "classifier_activation": "silu"},
        {"classifier_pooling": "mean", "norm_bias": True, "mlp_bias": True, "attention_bias": True},
    ],
)
def test_a_modernbert_equals_transformers_with_the_pruning_head_before_the_final_norm(
    tmp_path: Path, base: dict[str, Any]
) -> None:
    check(open_provence(tmp_path / "m", **base))


def test_an_xlmr_equals_transformers(tmp_path: Path) -> None:
    check(zilliz(tmp_path / "m"))


def test_of_several_labels_the_first_is_the_score(tmp_path: Path) -> None:
    check(open_provence(tmp_path / "m", labels=3))


def test_files_without_prefixes_are_read(tmp_path: Path) -> None:
    checkpoint = zilliz(tmp_path / "m")
    path = checkpoint.folder / "model.safetensors"
    save_file({name.removeprefix("ranking_model."): tensor for name, tensor in load_file(path).items()}, path)
    check(checkpoint)


def test_a_folder_is_recognised_by_its_pruning_head_too(tmp_path: Path) -> None:
    checkpoint = open_provence(tmp_path / "m")
    edit(checkpoint.folder, model_type="modernbert")
    check(checkpoint)


@pytest.mark.parametrize("make", [open_provence, zilliz])
def test_scores_do_not_depend_on_the_other_windows(tmp_path: Path, make: Any) -> None:
    model, batch = load(make(tmp_path / "m").folder), batch_of(MIXED, vocabulary=300)
    together, apart = model.heads(batch), [model.heads([window]) for window in batch]
    torch.testing.assert_close(together.keep, torch.cat([each.keep for each in apart]), rtol=0, atol=1e-5)
    torch.testing.assert_close(together.scores, torch.cat([each.scores for each in apart]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "threshold"),
    [
        ({}, 0.1),
        ({"default_threadshold": 0.3, "default_threshold": 0.7}, 0.3),
        ({"default_threadshold": None, "default_threshold": 0.7}, 0.7),
        ({"default_threadshold": 0}, 0.0),
    ],
)
def test_the_default_threshold_is_the_configs(tmp_path: Path, changes: dict[str, Any], threshold: float) -> None:
    folder = open_provence(tmp_path / "m").folder
    edit(folder, **changes)
    conduct = conduct_of(ModelFolder("m", folder))
    assert (conduct.family, conduct.rule, conduct.threshold) == ("open_provence", "mean", threshold)
    assert (conduct.plain_question, conduct.trailing, conduct.max_length) == (False, True, 64)


def test_a_window_is_never_longer_than_the_positions(tmp_path: Path) -> None:
    folder = zilliz(tmp_path / "m").folder
    assert (conduct_of(ModelFolder("m", folder)).max_length, load(folder).conduct.max_length) == (8192, 64)
    edit(folder, max_length=...)
    assert conduct_of(ModelFolder("m", folder)).max_length == 512


def test_weights_of_a_pooling_that_nothing_depends_on_are_passed_over_where_the_config_names_them(
    tmp_path: Path,
) -> None:
    checkpoint = open_provence(tmp_path / "m")
    change(checkpoint.folder, {"pruning_head.pooling_weights.weight": torch.zeros(1, 32)})
    with pytest.raises(ModelError, match=r"tensors that its encoder lacks: pruning_head\.pooling_weights\.weight"):
        run(checkpoint.folder)
    edit(checkpoint.folder, pruning_config={"use_weighted_pooling": True})
    check(checkpoint)


@pytest.mark.parametrize(
    "name", ["ranking_model.classifier.weight", "ranking_model.head.norm.weight", f"{KEEP}.bias", f"{KEEP}.weight"]
)
def test_a_missing_tensor_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    folder = open_provence(tmp_path / "m").folder
    change(folder, {name: None})
    with pytest.raises(ModelError, match=rf"tensors are missing from .*: {name.removeprefix('ranking_model.')}"):
        run(folder)


@pytest.mark.parametrize("name", ["final_norm.weight", "layers.1.attn.Wo.weight"])
def test_a_missing_tensor_of_the_encoder_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    folder = open_provence(tmp_path / "m").folder
    change(folder, {f"ranking_model.model.{name}": None})
    with pytest.raises(ModelError, match=rf"tensors are missing from .*: {name}"):
        run(folder)


@pytest.mark.parametrize("name", ["ranking_model.lm_head.bias", "pruning_head.extra", "stray", "ranking_model.model.x"])
def test_an_unexpected_tensor_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    folder = open_provence(tmp_path / "m").folder
    change(folder, {name: torch.zeros(3)})
    short = name.removeprefix("ranking_model.").removeprefix("model.")
    with pytest.raises(ModelError, match=f"holds tensors that its encoder lacks: {short}"):
        run(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_config": None}, "has no base_model_config with a model_type"),
        ({"base_model_config": {"model_type": "t5"}}, "its ranking model is a 't5', which is not supported; supported"),
        ({"default_threadshold": 3}, r"needs a default threshold of 0 to 1\. Got 3"),
        ({"max_length": 0}, r"needs a positive max_length\. Got 0"),
        ({"num_labels": -1}, r"needs a positive num_labels\. Got -1"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = open_provence(tmp_path / "m").folder
    edit(folder, **changes)
    with pytest.raises(ModelError, match=message):
        run(folder)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("classifier_pooling", "max", r"classifier_pooling must be cls or mean\. Got 'max'"),
        ("classifier_activation", "gelu_new", "classifier_activation 'gelu_new' of its ranking model is not supported"),
        ("hidden_activation", "silu", "is a ModernBERT of a kind not supported"),
    ],
)
def test_a_ranking_model_of_another_kind_is_refused(tmp_path: Path, setting: str, value: str, message: str) -> None:
    folder = open_provence(tmp_path / "m").folder
    base = (ModelFolder("m", folder).json("config.json") or {})["base_model_config"]
    edit(folder, base_model_config=base | {setting: value})
    with pytest.raises(ModelError, match=message):
        run(folder)
