"""Forward passes against transformers' own, and folders that do not fit."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis.strategies import integers, lists
from safetensors.torch import load_file, save_file

from datapipe.errors import ModelError
from datapipe.weights import embedded_folder
from datapipe.workers.encoders import open_encoder
from datapipe.workers.encoders.attention import Spans, attend_grouped, attend_padded
from datapipe.workers.encoders.bert import BertEncoder
from datapipe.workers.encoders.foreign import ForeignEncoder
from datapipe.workers.folder import ModelFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from datapipe.storage.arrays import Int32
    from datapipe.workers.encoders import Encoder

CPU = torch.device("cpu")
LENGTHS = [7, 7, 2, 31, 1, 31, 40]


def batch_of(lengths: list[int], *, seed: int = 0) -> list[Int32]:
    generator = np.random.default_rng(seed)
    return [generator.integers(1000, 30_000, length, dtype=np.int32) for length in lengths]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Encoder:
    return open_encoder(ModelFolder("m", folder), device=CPU, dtype=dtype)


def one_by_one(model: Any, batch: list[Int32]) -> torch.Tensor:
    with torch.inference_mode():
        states = [model(input_ids=torch.from_numpy(ids).long()[None]).last_hidden_state[0] for ids in batch]
    return torch.cat(states)


def reference(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModel.from_config(config).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model


def test_bert_equals_transformers_on_texts_of_mixed_lengths(tiny_bert: Callable[..., Path]) -> None:
    folder = tiny_bert()
    encoder, batch = load(folder), batch_of(LENGTHS)
    assert isinstance(encoder, BertEncoder)
    assert (encoder.dim, encoder.positions, encoder.vocabulary) == (32, 40, 30_522)
    torch.testing.assert_close(encoder.hidden(batch), one_by_one(reference(folder), batch), rtol=0, atol=1e-5)


@given(lengths=lists(integers(1, 40), min_size=1, max_size=12))
def test_what_else_is_in_a_batch_moves_a_text_by_rounding_only(lengths: list[int]) -> None:
    width, heads = 24, 4
    generator = torch.Generator().manual_seed(len(lengths))
    spans = Spans.of([np.zeros(length, np.int32) for length in lengths], CPU)
    qkv = torch.randn((sum(lengths), 3 * width), generator=generator)
    grouped = attend_grouped(qkv, spans, heads=heads, out=torch.empty(sum(lengths), width))
    torch.testing.assert_close(grouped, attend_padded(qkv, spans, heads=heads), rtol=0, atol=1e-5)
    alone = [
        attend_grouped(
            part, Spans.of([np.zeros(len(part), np.int32)], CPU), heads=heads, out=torch.empty(len(part), width)
        )
        for part in qkv.split(lengths)
    ]
    torch.testing.assert_close(grouped, torch.cat(alone), rtol=0, atol=1e-5)


def test_buffers_kept_from_a_larger_batch_do_not_show(tiny_bert: Callable[..., Path]) -> None:
    encoder = load(tiny_bert())
    small = batch_of([3, 5])
    before = encoder.hidden(small).clone()
    encoder.hidden(batch_of(LENGTHS, seed=1))
    assert torch.equal(encoder.hidden(small), before)


def test_bert_in_bfloat16_points_the_same_way(tiny_bert: Callable[..., Path]) -> None:
    folder = tiny_bert()
    batch = batch_of(LENGTHS)
    exact, rounded = load(folder).hidden(batch), load(folder, torch.bfloat16).hidden(batch)
    assert torch.nn.functional.cosine_similarity(exact, rounded.float()).min() > 0.999


def test_names_may_begin_with_bert(tiny_bert: Callable[..., Path]) -> None:
    folder, same = tiny_bert(), tiny_bert("prefixed")
    tensors = load_file(folder / "model.safetensors")
    save_file({f"bert.{name}": tensor for name, tensor in tensors.items()}, same / "model.safetensors")
    assert torch.equal(load(folder).hidden(batch_of([4])), load(same).hidden(batch_of([4])))


def test_a_pooler_may_be_there_and_is_not_read(tiny_bert: Callable[..., Path]) -> None:
    folder = tiny_bert()
    tensors = load_file(folder / "model.safetensors") | {"pooler.dense.weight": torch.zeros(1)}
    save_file(tensors, folder / "model.safetensors")
    assert load(folder).hidden(batch_of([4])).shape == (4, 32)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_checkpoint_that_does_not_fit_is_refused_by_the_names_of_its_tensors(
    tiny_bert: Callable[..., Path], tiny_foreign: Callable[[str], Path], kind: str
) -> None:
    folder = tiny_bert() if kind == "bert" else tiny_foreign(kind)
    whole = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(whole) if name.endswith("weight") and whole[name].ndim == 2)
    save_file({n: t for n, t in whole.items() if n != name}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"model m: tensors are missing from {folder}: {name}"):
        load(folder)
    save_file(whole | {"classifier.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"holds tensors that its encoder lacks: classifier\.weight"):
        load(folder)
    save_file(whole | {name: torch.zeros(3, 5)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"tensor {name} has shape \(3, 5\), but config\.json means"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 32 is no multiple of 5 heads"),
        ({"hidden_size": "wide"}, r"config\.json of a BERT needs"),
    ],
)
def test_a_bert_config_that_cannot_be_is_refused(
    tiny_bert: Callable[..., Path], config: dict[str, Any], message: str
) -> None:
    folder = tiny_bert()
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet"])
def test_other_architectures_equal_transformers(tiny_foreign: Callable[[str], Path], kind: str) -> None:
    folder = tiny_foreign(kind)
    encoder, batch = load(folder), batch_of([7, 7, 2, 31, 5])
    assert isinstance(encoder, ForeignEncoder)
    assert encoder.positions == 40
    torch.testing.assert_close(encoder.hidden(batch), one_by_one(reference(folder), batch), rtol=0, atol=1e-5)


def test_loading_leaves_the_random_numbers_of_the_caller_alone(tiny_foreign: Callable[[str], Path]) -> None:
    folder = tiny_foreign("distilbert")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load(folder)
    assert torch.equal(torch.rand(4), expected)


def test_an_architecture_that_transformers_does_not_know_is_refused(tiny_bert: Callable[..., Path]) -> None:
    folder = tiny_bert(config={"model_type": "bert-of-a-stranger"})
    with pytest.raises(ModelError, match="transformers knows no model_type 'bert-of-a-stranger'"):
        load(folder)


def test_code_in_a_folder_never_runs(tiny_bert: Callable[..., Path], tiny_foreign: Callable[[str], Path]) -> None:
    for folder in (tiny_bert(), tiny_foreign("distilbert")):
        canary = folder / "it_ran"
        for name in ("modeling_stranger", "configuration_stranger", "tokenization_stranger"):
            (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
        settings = json.loads((folder / "config.json").read_text())
        settings["auto_map"] = {
            "AutoConfig": "configuration_stranger.Config",
            "AutoModel": "modeling_stranger.Model",
            "AutoTokenizer": ["tokenization_stranger.Model", None],
        }
        (folder / "config.json").write_text(json.dumps(settings))
        (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": settings["auto_map"]}))
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "stranger/model"}))
        assert load(folder).hidden(batch_of([4])).shape == (4, 32)
        assert not canary.exists()
    assert not [name for name in sys.modules if "stranger" in name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_points_the_same_way_as_the_cpu(dtype: torch.dtype) -> None:
    folder = ModelFolder("m", embedded_folder("all-MiniLM-L6-v2"))
    batch = batch_of([200, 64, 64, 9, 3])
    exact = open_encoder(folder, device=CPU, dtype=torch.float32).hidden(batch)
    there = open_encoder(folder, device=torch.device("cuda"), dtype=dtype).hidden(batch).float().cpu()
    assert torch.nn.functional.cosine_similarity(exact, there).min() > (0.999 if dtype == torch.bfloat16 else 0.99999)
