"""naver's Provence and XProvence against transformers' plain modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from datapipe.errors import ModelError
from datapipe.workers.folder import ModelFolder
from provence.families import conduct_of
from tests.provence.families.checkpoints import batch_of, change, close, edit, load, provence, run, xprovence

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.provence.families.checkpoints import Checkpoint

MAKERS = pytest.mark.parametrize("make", [provence, xprovence])
MIXED = [40, 7, 7, 2, 31, 1, 5]

Make = Any


@MAKERS
def test_both_heads_equal_transformers_on_windows_of_mixed_lengths(tmp_path: Path, make: Make) -> None:
    checkpoint: Checkpoint = make(tmp_path / "m")
    batch = batch_of(MIXED, vocabulary=300)
    found = load(checkpoint.folder).heads(batch)
    keep, scores = checkpoint.expected(batch)
    close(found.keep, keep)
    close(found.scores, scores)
    assert found.keep.dtype == found.scores.dtype == torch.float32


@MAKERS
def test_scores_do_not_depend_on_the_other_windows(tmp_path: Path, make: Make) -> None:
    model, batch = load(make(tmp_path / "m").folder), batch_of(MIXED, vocabulary=300)
    together, apart = model.heads(batch), [model.heads([window]) for window in batch]
    torch.testing.assert_close(together.keep, torch.cat([each.keep for each in apart]), rtol=0, atol=1e-5)
    torch.testing.assert_close(together.scores, torch.cat([each.scores for each in apart]), rtol=0, atol=1e-5)


def test_a_provence_is_recognised_by_config_and_by_tensors(tmp_path: Path) -> None:
    folder = provence(tmp_path / "m").folder
    conduct = conduct_of(ModelFolder("m", folder))
    assert (conduct.family, conduct.rule, conduct.threshold) == ("provence", "share", 0.1)
    assert (conduct.plain_question, conduct.spaced, conduct.max_length) == (True, True, 64)
    edit(folder, model_type="deberta-v2")
    assert conduct_of(ModelFolder("m", folder)) == conduct


def test_an_xprovence_is_recognised_by_config_and_by_tensors(tmp_path: Path) -> None:
    folder = xprovence(tmp_path / "m").folder
    conduct = conduct_of(ModelFolder("m", folder))
    assert (conduct.family, conduct.rule, conduct.threshold) == ("xprovence", "share", 0.3)
    assert (conduct.plain_question, conduct.spaced, conduct.max_length) == (False, True, 64)
    edit(folder, model_type="xlm-roberta")
    assert conduct_of(ModelFolder("m", folder)) == conduct
    assert load(folder).conduct == conduct


def test_the_names_of_a_provence_are_those_of_the_published_file(tmp_path: Path) -> None:
    names = set(load_file(provence(tmp_path / "m").folder / "model.safetensors"))
    layer = {
        f"deberta.encoder.layer.{index}.{part}.{kind}"
        for index in range(2)
        for part in (
            *(f"attention.self.{name}_proj" for name in ("query", "key", "value")),
            *("attention.output.dense", "attention.output.LayerNorm"),
            *("intermediate.dense", "output.dense", "output.LayerNorm"),
        )
        for kind in ("weight", "bias")
    }
    heads = {
        f"{name}.{kind}" for name in ("pooler.dense", "classifier", "token_classifier") for kind in ("weight", "bias")
    }
    around = {f"deberta.{at}.LayerNorm.{kind}" for at in ("embeddings", "encoder") for kind in ("weight", "bias")}
    tables = {"deberta.embeddings.word_embeddings.weight", "deberta.encoder.rel_embeddings.weight"}
    assert names == layer | heads | around | tables


@MAKERS
@pytest.mark.parametrize("name", ["classifier.bias", "token_classifier.weight", "pooler.dense.weight"])
def test_a_missing_tensor_of_a_head_is_refused_by_its_name(tmp_path: Path, make: Make, name: str) -> None:
    folder = make(tmp_path / "m").folder
    full = f"roberta.{name}" if make is xprovence and name.startswith("pooler") else name
    change(folder, {full: None})
    with pytest.raises(ModelError, match=rf"tensors are missing from .*: {full}"):
        run(folder)


@MAKERS
def test_a_missing_tensor_of_the_encoder_is_refused_by_its_name(tmp_path: Path, make: Make) -> None:
    folder, name = make(tmp_path / "m").folder, "encoder.layer.1.output.dense.weight"
    change(folder, {f"{'deberta' if make is provence else 'roberta'}.{name}": None})
    with pytest.raises(ModelError, match=rf"tensors are missing from .*: {name}"):
        run(folder)


@MAKERS
@pytest.mark.parametrize("name", ["lm_head.bias", "token_classifier.scale"])
def test_an_unexpected_tensor_is_refused_by_its_name(tmp_path: Path, make: Make, name: str) -> None:
    folder = make(tmp_path / "m").folder
    change(folder, {name: torch.zeros(3)})
    with pytest.raises(ModelError, match=f"holds tensors that its encoder lacks: {name}"):
        run(folder)


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = provence(tmp_path / "m").folder
    change(folder, {"token_classifier.weight": torch.zeros(3, 32)})
    with pytest.raises(
        ModelError, match=r"token_classifier\.weight has shape \(3, 32\), but config\.json means \(2, 32\)"
    ):
        run(folder)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (provence, {"max_position_embeddings": ...}, "config.json of a provence needs 'max_position_embeddings'"),
        (provence, {"pooler_hidden_act": "gelu_new"}, "pooler_hidden_act 'gelu_new' in config.json is not supported"),
        (xprovence, {"pad_token_id": "none"}, "config.json of a xprovence needs invalid literal"),
    ],
)
def test_a_config_that_cannot_be_is_refused(
    tmp_path: Path, make: Callable[[Path], Checkpoint], changes: dict[str, Any], message: str
) -> None:
    folder = make(tmp_path / "m").folder
    edit(folder, **changes)
    with pytest.raises(ModelError, match=message):
        run(folder)
