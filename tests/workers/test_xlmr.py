"""RoBERTa, CamemBERT and XLM-R against transformers' own: BERTs whose positions are counted from the padding token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers, lists
from safetensors.torch import load_file, save_file

from datapipe.errors import ModelError
from datapipe.workers.encoders import open_encoder
from datapipe.workers.encoders.attention import Room, lay_out
from datapipe.workers.encoders.bert import BertEncoder
from datapipe.workers.encoders.foreign import ForeignEncoder
from datapipe.workers.folder import ModelFolder
from tests.workers.random_models import batch_of, random_model, reference

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.workers.encoders import Encoder

KINDS = ("roberta", "camembert", "xlm-roberta")
LENGTHS = [7, 7, 2, 31, 1, 40]


def load(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Encoder:
    return open_encoder(ModelFolder("m", folder), device=torch.device(device), dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_kin_of_bert_equal_transformers_on_texts_of_mixed_lengths(tmp_path: Path, kind: str) -> None:
    folder = random_model(tmp_path / kind, kind, max_position_embeddings=42, type_vocab_size=1)
    encoder, batch = load(folder), batch_of(LENGTHS)
    assert isinstance(encoder, BertEncoder)
    assert (encoder.dim, encoder.positions, encoder.vocabulary) == (64, 40, 30_522)
    torch.testing.assert_close(encoder.hidden(batch), reference(folder, batch), rtol=0, atol=1e-4)
    torch.testing.assert_close(encoder.hidden(batch), reference(folder, batch, one_by_one=False), rtol=0, atol=1e-4)


def test_positions_start_after_any_padding_token(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m", "xlm-roberta", max_position_embeddings=42, pad_token_id=5)
    encoder, batch = load(folder), batch_of(LENGTHS[:4])
    assert encoder.positions == 36
    torch.testing.assert_close(encoder.hidden(batch), reference(folder, batch), rtol=0, atol=1e-4)


def test_a_padding_token_inside_a_text_takes_no_position(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m", "roberta", max_position_embeddings=42)
    batch = batch_of([9, 5, 12])
    batch[1][:] = [1, 2000, 1, 1, 2001]
    batch[2][3] = 1
    torch.testing.assert_close(load(folder).hidden(batch), reference(folder, batch), rtol=0, atol=1e-4)


@given(lists(lists(integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=9))
def test_rows_of_the_position_table_count_what_is_no_padding(texts: list[list[int]]) -> None:
    batch = [np.array(text, dtype=np.int32) for text in texts]
    room = Room(sum(map(len, texts)), len(texts))
    rows = lay_out(batch, room, padding=1)[2 * room.sections()[0] :][: room.tokens]
    expected = [
        0 if token == 1 else sum(t != 1 for t in text[: k + 1]) for text in texts for k, token in enumerate(text)
    ]
    assert rows.tolist() == expected


def test_names_may_begin_with_roberta_and_a_head_is_refused(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m", "xlm-roberta", max_position_embeddings=42)
    plain, tensors = load(folder).hidden(batch_of([4])), load_file(folder / "model.safetensors")
    save_file({f"roberta.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert torch.equal(load(folder).hidden(batch_of([4])), plain)
    save_file(tensors | {"lm_head.bias": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"holds tensors that its encoder lacks: lm_head\.bias"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pad_token_id": 41}, "pad_token_id 41 is none of 30522 tokens, or leaves none of 42 positions"),
        ({"pad_token_id": -1}, "pad_token_id -1 is none of 30522 tokens"),
        ({"hidden_size": "wide"}, r"config\.json of a XLM-R needs"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = random_model(tmp_path / "m", "xlm-roberta", max_position_embeddings=42)
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_another_activation_is_left_to_transformers(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m", "roberta", max_position_embeddings=42, hidden_act="relu")
    encoder, batch = load(folder), batch_of(LENGTHS)
    assert isinstance(encoder, ForeignEncoder)
    torch.testing.assert_close(encoder.hidden(batch), reference(folder, batch), rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("lengths", [[200, 64, 9, 3], [90, 30, 30, 2, 1]])
def test_cuda_equals_the_cpu(tmp_path: Path, lengths: list[int]) -> None:
    folder, batch = random_model(tmp_path / "m", "xlm-roberta", max_position_embeddings=258), batch_of(lengths)
    exact = load(folder).hidden(batch)
    torch.testing.assert_close(load(folder, device="cuda").hidden(batch).cpu(), exact, rtol=0, atol=1e-3)
    half = load(folder, device="cuda", dtype=torch.bfloat16).hidden(batch).cpu()
    assert torch.nn.functional.cosine_similarity(exact, half).min() > 0.999
