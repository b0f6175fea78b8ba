"""DeBERTa-v2 and -v3 against transformers' own: every kind of relative position, at every distance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, lists
from safetensors.torch import load_file, save_file

from datapipe.errors import ModelError
from datapipe.workers.encoders import open_encoder
from datapipe.workers.encoders.attention import Room, Spans, lay_out
from datapipe.workers.encoders.deberta import DebertaEncoder, DebertaShape
from datapipe.workers.encoders.foreign import ForeignEncoder
from datapipe.workers.encoders.graphs import replaying
from datapipe.workers.encoders.relative import Distances, Relative, attend_relative
from datapipe.workers.encoders.steps import FusedSteps
from datapipe.workers.encoders.transfer import to_device
from datapipe.workers.folder import ModelFolder
from tests.workers.random_models import SMALL, batch_of, random_model, reference

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.workers.encoders import Encoder

CPU = torch.device("cpu")
LENGTHS = [300, 40, 7, 7, 2, 31, 1, 130]
V3: dict[str, Any] = {
    "relative_attention": True,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_position_embeddings": 300,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "type_vocab_size": 0,
    "pad_token_id": 0,
}
SETTINGS: list[dict[str, Any]] = [
    {"position_buckets": 8, "max_relative_positions": 20},
    {"position_buckets": 32},
    {"position_buckets": -1},
    {"position_buckets": -1, "max_relative_positions": 16},
    {"share_att_key": False},
    {"share_att_key": False, "pos_att_type": "p2c"},
    {"pos_att_type": "c2p"},
    {"pos_att_type": ["p2c"]},
    {"pos_att_type": None},
    {"norm_rel_ebd": "none"},
    {"position_biased_input": True},
    {"type_vocab_size": 2},
    {"type_vocab_size": 2, "position_biased_input": True},
    {"layer_norm_eps": 1e-2},
]
FAST = (0, 3, 5)
"""Places of the settings that every run tries: buckets, exact distances, tables of their own with one term."""


def load(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Encoder:
    return open_encoder(ModelFolder("m", folder), device=torch.device(device), dtype=dtype)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("deberta") / "m", "deberta-v2", **V3)


@pytest.fixture(scope="module")
def encoder(plain: Path) -> Encoder:
    return load(plain)


def test_deberta_v3_equals_transformers_on_texts_of_mixed_lengths(plain: Path, encoder: Encoder) -> None:
    batch = batch_of(LENGTHS)
    assert isinstance(encoder, DebertaEncoder)
    assert (encoder.dim, encoder.positions, encoder.vocabulary) == (64, 300, 30_522)
    hidden = encoder.hidden(batch)
    torch.testing.assert_close(hidden, reference(plain, batch), rtol=0, atol=2e-5)
    torch.testing.assert_close(hidden, reference(plain, batch, one_by_one=False), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "setting",
    [pytest.param(each, marks=[] if n in FAST else pytest.mark.slow) for n, each in enumerate(SETTINGS)],
    ids=str,
)
def test_every_setting_of_the_config_has_its_effect(tmp_path: Path, encoder: Encoder, setting: dict[str, Any]) -> None:
    folder, batch = random_model(tmp_path / "m", "deberta-v2", **V3 | setting), batch_of(LENGTHS)
    ours = load(folder)
    assert isinstance(ours, DebertaEncoder)
    hidden = ours.hidden(batch)
    torch.testing.assert_close(hidden, reference(folder, batch), rtol=0, atol=2e-5)
    assert not torch.allclose(hidden, encoder.hidden(batch), atol=1e-3)


def test_texts_longer_than_the_last_range_of_distances_equal_transformers(tmp_path: Path) -> None:
    setting = V3 | {"max_position_embeddings": 700, "max_relative_positions": 100, "position_buckets": 32}
    folder, batch = random_model(tmp_path / "m", "deberta-v2", **setting), batch_of([700, 300, 300])
    torch.testing.assert_close(load(folder).hidden(batch), reference(folder, batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("buckets", "furthest"), [(256, 512), (8, 20), (2, 4), (0, 512), (0, 16)])
def test_every_distance_has_the_row_that_transformers_gives_it(buckets: int, furthest: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

    for length in (1, 30, 700):
        side, texts, place = buckets or furthest, torch.empty(length, 1), torch.arange(length)
        theirs = build_relative_position(texts, texts, buckets, furthest if buckets else -1)[0]
        rows = (theirs + side).clamp(0, 2 * side - 1)
        for positions in (10, 700):
            distances = Distances.of(buckets=buckets, furthest=furthest, positions=positions, device=CPU)
            assert torch.equal(distances.between(length)[place[:, None] - place + length - 1].long(), rows)


@pytest.mark.parametrize("spaced", [1, 2, 8, 16])
def test_columns_of_a_product_hold_the_row_of_every_pair_where_the_kernel_reads_it(spaced: int) -> None:
    distances = Distances.of(buckets=32, furthest=60, positions=90, device=CPU)
    for longest in (1, 2, 16, 17, 33, 90):
        columns = distances.columns(longest, spaced=spaced)
        assert columns.width % 16 == columns.middle % 16 == 0
        place, rows = torch.arange(longest), distances.between(longest)
        queries, keys = place[:, None], place
        expected = rows[queries - keys + longest - 1]
        rest = spaced - 1 - place % spaced
        at = columns.middle + keys - queries + queries % spaced
        assert 0 <= int(at.min()) <= int(at.max()) < columns.width
        assert torch.equal(distances.picked(columns, turned=True)[rest[:, None] + at], expected)
        at = columns.middle + queries - keys + keys % spaced
        assert 0 <= int(at.min()) <= int(at.max()) < columns.width
        assert torch.equal(distances.picked(columns, turned=False)[rest + at], expected)


@settings(max_examples=6)
@given(lengths=lists(integers(1, 40), min_size=1, max_size=6))
def test_what_else_is_in_a_batch_moves_a_text_by_rounding_only(encoder: Encoder, lengths: list[int]) -> None:
    batch = batch_of(lengths)
    for text, states in zip(batch, encoder.hidden(batch).split(lengths), strict=True):
        torch.testing.assert_close(encoder.hidden([text]), states, rtol=0, atol=1e-4)


def layer(lengths: list[int], *, heads: int, head: int, terms: str, device: torch.device) -> tuple[Any, ...]:
    """Random queries, keys and values of some texts, and what distances add."""
    generator = torch.Generator().manual_seed(sum(lengths))
    distances = Distances.of(buckets=16, furthest=50, positions=max(lengths), device=device)
    tables = torch.randn((2, heads, 32, head), generator=generator).to(device) * 0.1
    keys, queries = (table if name in terms else None for name, table in zip(("c2p", "p2c"), tables, strict=True))
    qkv = torch.randn((sum(lengths), 3 * heads * head), generator=generator).to(device)
    return qkv, Relative(distances, keys, queries, scale=(3 * head) ** -0.5)


def rounded_to(relative: Relative, dtype: torch.dtype) -> Relative:
    """The same in another precision."""
    keys, queries = (None if table is None else table.to(dtype) for table in (relative.keys, relative.queries))
    return Relative(relative.distances, keys, queries, relative.scale)


def by_definition(qkv: torch.Tensor, lengths: list[int], relative: Relative, *, heads: int) -> torch.Tensor:
    """The equation, a pair of tokens at a time, in float64."""
    parts = []
    for text in qkv.double().split(lengths):
        query, key, value = text.view(len(text), 3, heads, -1).permute(1, 2, 0, 3)
        place = torch.arange(len(text), device=qkv.device)
        rows = relative.distances.between(len(text))[place[:, None] - place + len(text) - 1].long()
        scores = query @ key.transpose(1, 2) * relative.scale
        if relative.keys is not None:
            scores += torch.einsum("hid,hijd->hij", query, relative.keys.double()[:, rows])
        if relative.queries is not None:
            scores += torch.einsum("hjd,hijd->hij", key, relative.queries.double()[:, rows])
        parts.append((scores.softmax(-1) @ value).transpose(0, 1).reshape(len(text), -1))
    return torch.cat(parts)


@pytest.mark.parametrize("terms", ["c2p p2c", "c2p", "p2c", ""])
def test_attention_is_what_its_equation_says(monkeypatch: pytest.MonkeyPatch, terms: str) -> None:
    lengths = [70, 70, 5, 5, 5, 1, 33]
    qkv, relative = layer(lengths, heads=3, head=8, terms=terms, device=CPU)
    expected = by_definition(qkv, lengths, relative, heads=3).float()
    for cells in (1, 2_000, 1 << 22):  # a head of a text at a time, some texts at a time, all at once
        monkeypatch.setattr("datapipe.workers.encoders.relative._CELLS", cells)
        mixed = attend_relative(qkv, Spans.of(batch_of(lengths), CPU), relative, heads=3)
        torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-5)


def test_bfloat16_points_the_same_way(plain: Path, encoder: Encoder) -> None:
    batch = batch_of(LENGTHS)
    rounded = load(plain, dtype=torch.bfloat16).hidden(batch)
    cosines = torch.nn.functional.cosine_similarity(encoder.hidden(batch), rounded.float())
    assert cosines.mean() > 0.999
    assert cosines.min() > 0.99


def test_names_may_begin_with_deberta_and_unused_positions_may_be_there(plain: Path, tmp_path: Path) -> None:
    tensors = load_file(plain / "model.safetensors")
    tensors |= {"embeddings.position_embeddings.weight": torch.zeros(3)}
    (tmp_path / "config.json").write_text((plain / "config.json").read_text())
    save_file({f"deberta.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path).hidden(batch_of([4])), load(plain).hidden(batch_of([4])))


def test_a_checkpoint_that_does_not_fit_is_refused_by_the_names_of_its_tensors(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m", "deberta-v2", **V3)
    whole, table = load_file(folder / "model.safetensors"), "encoder.rel_embeddings.weight"
    save_file({name: tensor for name, tensor in whole.items() if name != table}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"tensors are missing from {folder}: encoder\.rel_embeddings\.weight"):
        load(folder)
    save_file(whole | {"encoder.conv.conv.weight": torch.ones(64)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"holds tensors that its encoder lacks: encoder\.conv\.conv\.weight"):
        load(folder)
    save_file(whole | {table: whole[table][1:].contiguous()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"has shape \(511, 64\), but config\.json means \(512, 64\)"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 64 is no multiple of 5 heads"),
        ({"num_attention_heads": 0}, "hidden_size 64 is no multiple of 0 heads"),
        ({"max_position_embeddings": 0}, "max_position_embeddings 0 leaves no position"),
        ({"vocab_size": "many"}, r"config\.json of a DeBERTa-v2 needs"),
        ({"pos_att_type": 3}, r"config\.json of a DeBERTa-v2 needs"),
    ],
)
def test_a_config_that_cannot_be_is_refused(plain: Path, tmp_path: Path, config: dict[str, Any], message: str) -> None:
    setting = json.loads((plain / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(setting))
    with pytest.raises(ModelError, match=message):
        DebertaShape.of(ModelFolder("m", tmp_path))


@pytest.mark.parametrize(
    "setting",
    [
        {"hidden_act": "relu"},
        {"conv_kernel_size": 3},
        {"embedding_size": 32},
        {"attention_head_size": 8},
        {"relative_attention": False},
        {"position_buckets": 7},
        {"position_buckets": 256, "max_relative_positions": 129},
    ],
    ids=str,
)
def test_what_we_do_not_compute_is_left_to_transformers(tmp_path: Path, setting: dict[str, Any]) -> None:
    if "attention_head_size" in setting:  # transformers' own class cannot run it
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2", **V3, **SMALL, **setting}))
        assert DebertaShape.of(ModelFolder("m", tmp_path)) is None
        return
    folder, batch = random_model(tmp_path / "m", "deberta-v2", **V3 | setting), batch_of([9, 4])
    encoder = load(folder)
    assert isinstance(encoder, ForeignEncoder)
    torch.testing.assert_close(encoder.hidden(batch), reference(folder, batch), rtol=0, atol=1e-4)


on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
BATCHES = [[300, 129, 40, 7, 7, 1], [64] * 9, [1], [20, 50, 3, 3, 90, 2]]


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize(("dtype", "heads", "head"), [(torch.bfloat16, 4, 16), (torch.float16, 12, 64)])
@pytest.mark.parametrize("terms", ["c2p p2c", "c2p", "p2c", ""])
def test_the_kernel_equals_float64(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, heads: int, head: int, terms: str
) -> None:
    from datapipe.workers.encoders import relative_kernel

    cuda, step = torch.device("cuda"), torch.finfo(dtype).eps
    for lengths in BATCHES:
        qkv, exact_relative = layer(lengths, heads=heads, head=head, terms=terms, device=cuda)
        relative, rounded = rounded_to(exact_relative, dtype), qkv.to(dtype)
        exact = by_definition(rounded, lengths, relative, heads=heads)
        spans = Spans.of(batch_of(lengths), cuda)
        for memory, many in ((1, 1), (1 << 29, 1), (1 << 29, 1 << 20)):  # a head at a time, all at once, in one part
            monkeypatch.setattr(relative_kernel, "_PRODUCT_BYTES", memory)
            monkeypatch.setattr(relative_kernel, "_MANY", many)
            ours = FusedSteps().attend_relative(rounded, spans, relative, heads=heads, out=None)
            torch.testing.assert_close(ours.double(), exact, rtol=4 * step, atol=4 * step)


@pytest.mark.gpu
@on_cuda
def test_tokens_that_belong_to_no_text_touch_none() -> None:
    lengths, room, cuda = [5, 9], Room(128, 8), torch.device("cuda")
    qkv, relative = layer(lengths, heads=2, head=64, terms="c2p p2c", device=cuda)
    half = rounded_to(relative, torch.bfloat16)
    exact = by_definition(qkv.bfloat16(), lengths, half, heads=2)
    over = torch.full((128, 3 * 128), float("nan"), device=cuda, dtype=torch.bfloat16)
    over[:14] = qkv
    spans = Spans.over(to_device(lay_out(batch_of(lengths), room), cuda), room, [], longest=128)
    ours = FusedSteps().attend_relative(over, spans, half, heads=2, out=None)
    torch.testing.assert_close(ours[:14].double(), exact, rtol=0.02, atol=0.02)


@pytest.mark.gpu
@on_cuda
def test_cuda_equals_the_cpu(plain: Path, encoder: Encoder) -> None:
    for lengths in BATCHES:
        batch = batch_of(lengths)
        exact = encoder.hidden(batch)
        torch.testing.assert_close(load(plain, device="cuda").hidden(batch).cpu(), exact, rtol=0, atol=1e-4)
        half = load(plain, device="cuda", dtype=torch.bfloat16)
        assert half.kernels == "triton"
        cosines = torch.nn.functional.cosine_similarity(exact, half.hidden(batch).cpu())
        assert cosines.mean() > 0.999
        assert cosines.min() > 0.99


@pytest.mark.gpu
@on_cuda
def test_replays_equal_eager_passes(plain: Path) -> None:
    half = load(plain, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    batches = [batch_of(lengths, seed=n) for n, lengths in enumerate([[9], [3, 3], [200, 40, 7], [90] * 8, [9]] * 2)]
    states = {}
    for enabled in (True, False):
        with torch.cuda.stream(torch.cuda.Stream()), replaying(enabled=enabled):
            states[enabled] = torch.cat([half.hidden(batch) for batch in batches]).cpu()
    assert torch.nn.functional.cosine_similarity(states[True], states[False]).min() > 0.99
    assert isinstance(half, DebertaEncoder)
    assert half._replays._possible
