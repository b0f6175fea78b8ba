"""ModernBERT against transformers' own, above all where the window of its local layers is shorter than the text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis.strategies import integers, lists
from safetensors.torch import load_file, save_file

from datapipe.errors import ModelError
from datapipe.workers.encoders import open_encoder
from datapipe.workers.encoders.attention import Spans, attend_grouped, attend_padded
from datapipe.workers.encoders.foreign import ForeignEncoder
from datapipe.workers.encoders.modernbert import ModernBertEncoder, ModernBertShape
from datapipe.workers.folder import ModelFolder
from tests.workers.random_models import batch_of, random_model, reference

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.workers.encoders import Encoder

CPU = torch.device("cpu")
LENGTHS = [40, 7, 7, 2, 31, 1, 5, 6]
SHAPE = {"num_hidden_layers": 4, "max_position_embeddings": 700, "local_attention": 8}


def load(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Encoder:
    return open_encoder(ModelFolder("m", folder), device=torch.device(device), dtype=dtype)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load(random_model(tmp_path_factory.mktemp("modernbert") / "m", "modernbert", **SHAPE))


def test_modernbert_equals_transformers_on_texts_longer_than_its_window(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m", "modernbert", **SHAPE)
    encoder, batch = load(folder), batch_of(LENGTHS)
    assert isinstance(encoder, ModernBertEncoder)
    assert (encoder.dim, encoder.positions, encoder.vocabulary) == (64, 700, 30_522)
    torch.testing.assert_close(encoder.hidden(batch), reference(folder, batch), rtol=0, atol=1e-4)
    torch.testing.assert_close(encoder.hidden(batch), reference(folder, batch, one_by_one=False), rtol=0, atol=1e-4)


def test_a_long_text_is_computed_in_parts_and_equals_transformers(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m", "modernbert", **SHAPE)
    batch = batch_of([700, 257, 256])
    torch.testing.assert_close(load(folder).hidden(batch), reference(folder, batch), rtol=0, atol=1e-4)


def test_states_before_the_last_norm_equal_transformers_and_finish_applies_it(tmp_path: Path) -> None:
    folder, batch = random_model(tmp_path / "m", "modernbert", **SHAPE), batch_of(LENGTHS)
    opened = ModelFolder("m", folder)
    shape = ModernBertShape.of(opened)
    assert shape is not None
    raw = ModernBertEncoder(opened, shape, device=CPU, dtype=torch.float32, final_norm=False)
    model: Any = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder)).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.final_norm = torch.nn.Identity()
    with torch.inference_mode():
        expected = torch.cat([model(input_ids=torch.from_numpy(ids).long()[None])[0][0] for ids in batch])
    states = raw.hidden(batch)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(raw.finish(states), load(folder).hidden(batch), rtol=0, atol=1e-5)
    torch.testing.assert_close(raw.finish(states[[3, 0]]), raw.finish(states)[[3, 0]], rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"local_attention": 5},
        {"local_attention": 1},
        {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0, "local_rope_theta": 20.0},
        {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]},
        {"rope_parameters": {"full_attention": {"rope_theta": 300.0}, "sliding_attention": {"rope_theta": 30.0}}},
        {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "norm_eps": 1e-3},
    ],
)
def test_every_setting_of_the_config_has_its_effect(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = random_model(tmp_path / "m", "modernbert", **SHAPE | settings)
    plain = random_model(tmp_path / "plain", "modernbert", **SHAPE)
    batch = batch_of(LENGTHS)
    hidden = load(folder).hidden(batch)
    torch.testing.assert_close(hidden, reference(folder, batch), rtol=0, atol=1e-4)
    assert not torch.allclose(hidden, load(plain).hidden(batch), atol=1e-3)


def test_a_config_of_the_first_releases_means_the_same(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m", "modernbert", **SHAPE | {"global_attn_every_n_layers": 3})
    hidden = load(folder).hidden(batch_of(LENGTHS))
    settings = json.loads((folder / "config.json").read_text())
    del settings["layer_types"], settings["rope_parameters"]
    settings |= {"global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
    (folder / "config.json").write_text(json.dumps(settings))
    assert torch.equal(load(folder).hidden(batch_of(LENGTHS)), hidden)


@given(lengths=lists(integers(1, 40), min_size=1, max_size=12), window=integers(0, 45))
def test_a_window_hides_what_is_further_away_and_nothing_else(lengths: list[int], window: int) -> None:
    width, heads, tokens = 24, 4, sum(lengths)
    spans = Spans.of(batch_of(lengths), CPU)
    qkv = torch.randn((tokens, 3 * width), generator=torch.Generator().manual_seed(window))
    query, key, value = qkv.view(tokens, 3, heads, width // heads).double().permute(1, 2, 0, 3)
    text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    near = (torch.arange(tokens)[:, None] - torch.arange(tokens)).abs() <= window
    scores = (query @ key.transpose(1, 2)) * (width // heads) ** -0.5
    scores = scores.masked_fill(~(near & (text[:, None] == text)), -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(0, 1).reshape(tokens, width).float()
    out = torch.empty(tokens, width)
    grouped = attend_grouped(qkv, spans, heads=heads, out=out, window=window)
    torch.testing.assert_close(grouped, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(attend_padded(qkv, spans, heads=heads, window=window), expected, rtol=0, atol=1e-5)


@given(lengths=lists(integers(1, 40), min_size=1, max_size=6))
def test_what_else_is_in_a_batch_moves_a_text_by_rounding_only(encoder: Encoder, lengths: list[int]) -> None:
    batch = batch_of(lengths)
    for text, states in zip(batch, encoder.hidden(batch).split(lengths), strict=True):
        torch.testing.assert_close(encoder.hidden([text]), states, rtol=0, atol=1e-4)


def test_bfloat16_points_the_same_way(tmp_path: Path) -> None:
    folder, batch = random_model(tmp_path / "m", "modernbert", **SHAPE), batch_of(LENGTHS)
    exact, rounded = load(folder).hidden(batch), load(folder, dtype=torch.bfloat16).hidden(batch)
    cosines = torch.nn.functional.cosine_similarity(exact, rounded.float())
    assert cosines.mean() > 0.999
    assert cosines.min() > 0.99


def test_names_may_begin_with_model(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m", "modernbert", **SHAPE)
    plain, tensors = load(folder).hidden(batch_of([4])), load_file(folder / "model.safetensors")
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert torch.equal(load(folder).hidden(batch_of([4])), plain)


def test_a_checkpoint_that_does_not_fit_is_refused_by_the_names_of_its_tensors(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m", "modernbert", **SHAPE)
    whole = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in whole.items() if name != "layers.1.attn.Wo.weight"}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"tensors are missing from {folder}: layers\.1\.attn\.Wo\.weight"):
        load(folder)
    save_file(whole | {"layers.0.attn_norm.weight": torch.ones(64)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"holds tensors that its encoder lacks: layers\.0\.attn_norm\.weight"):
        load(folder)
    save_file(whole | {"final_norm.weight": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"tensor final_norm\.weight has shape \(3,\), but config\.json means \(64,\)"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 64 is no multiple of 5 heads of even width"),
        ({"num_attention_heads": 64}, "hidden_size 64 is no multiple of 64 heads of even width"),
        ({"vocab_size": "many"}, r"config\.json of a ModernBERT needs"),
        ({"layer_types": ["full_attention"]}, "needs layer_types of 4 times sliding_attention or full_attention"),
        ({"rope_parameters": [1]}, r"config\.json of a ModernBERT needs"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = random_model(tmp_path / "m", "modernbert", **SHAPE)
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_activation": "relu"},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 2.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
            }
        },
    ],
)
def test_what_we_do_not_compute_is_left_to_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = random_model(tmp_path / "m", "modernbert", **SHAPE | settings)
    encoder, batch = load(folder), batch_of(LENGTHS)
    assert isinstance(encoder, ForeignEncoder)
    torch.testing.assert_close(encoder.hidden(batch), reference(folder, batch), rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("lengths", [[200, 64, 9, 3], [90, 30, 30, 2, 1]])
def test_cuda_equals_the_cpu(tmp_path: Path, lengths: list[int]) -> None:
    folder, batch = random_model(tmp_path / "m", "modernbert", **SHAPE), batch_of(lengths)
    exact = load(folder).hidden(batch)
    torch.testing.assert_close(load(folder, device="cuda").hidden(batch).cpu(), exact, rtol=0, atol=1e-3)
    half = load(folder, device="cuda", dtype=torch.bfloat16).hidden(batch).cpu()
    cosines = torch.nn.functional.cosine_similarity(exact, half)
    assert cosines.mean() > 0.999
    assert cosines.min() > 0.99
