"""Our own layout: an encoder in full, or differences to the embedded one, with two heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from datapipe.errors import ConfigError, DigestError, ModelError
from datapipe.weights import embedded_folder
from datapipe.workers.folder import ModelFolder
from provence.families import conduct_of
from provence.families.delta import encode_delta, pack_tensors, unpack_tensors
from provence.families.native import NativeConfig, write_native
from tests.provence.families.checkpoints import (
    LENGTHS,
    TINY,
    TOKENIZER,
    batch_of,
    change,
    close,
    edit,
    load,
    reference_states,
    run,
    spread,
)

if TYPE_CHECKING:
    from pathlib import Path

EMBEDDED = "embedded:all-MiniLM-L6-v2"


def heads_of(dim: int, *, rows: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "keep.weight": torch.randn(rows, dim) * 0.3,
        "keep.bias": torch.randn(rows),
        "score.weight": torch.randn(1, dim) * 0.3,
        "score.bias": torch.randn(1),
    }


def base_folder() -> ModelFolder:
    return ModelFolder("base", embedded_folder("all-MiniLM-L6-v2"))


@pytest.fixture
def alone(tmp_path: Path) -> tuple[Path, Any]:
    """A pruner with a small encoder of its own, and that encoder as a transformers model."""
    config = transformers.BertConfig(**TINY, max_position_embeddings=64)
    encoder = spread(transformers.BertModel(config, add_pooling_layer=False))
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    native = NativeConfig(encoder=config.to_dict(), max_length=48, threshold=0.4, details={"trained_on": ["squad"]})
    write_native(tmp_path / "m", config=native, tensors=tensors | heads_of(32, rows=2), tokenizer=TOKENIZER)
    return tmp_path / "m", encoder


def test_an_encoder_in_full_with_two_heads_equals_transformers(alone: tuple[Path, Any]) -> None:
    folder, encoder = alone
    found = run(folder)
    states, starts = reference_states(encoder, batch_of(LENGTHS, vocabulary=300))
    heads = heads_of(32, rows=2)
    keep = torch.softmax(states @ heads["keep.weight"].T + heads["keep.bias"], dim=1)[:, 1]
    close(found.keep, keep)
    close(found.scores, states[starts] @ heads["score.weight"][0] + heads["score.bias"])


def test_a_folder_says_how_it_wants_to_be_used(alone: tuple[Path, Any]) -> None:
    conduct = conduct_of(ModelFolder("m", alone[0]))
    assert (conduct.family, conduct.rule, conduct.threshold, conduct.max_length) == ("native", "mean", 0.4, 48)
    assert (conduct.plain_question, conduct.spaced) == (False, True)


def test_the_window_asked_for_is_never_longer_than_the_positions(alone: tuple[Path, Any]) -> None:
    def length(asked: int | None) -> int:
        return load(alone[0], max_length=asked).conduct.max_length

    assert [length(asked) for asked in (None, 20, 60, 500)] == [48, 20, 60, 64]
    with pytest.raises(ConfigError, match=r"max_length must be at least 1\. Got 0"):
        length(0)


@pytest.mark.parametrize(("bits", "near"), [(4, 0.02), pytest.param(8, 0.002, marks=pytest.mark.slow)])
def test_packed_differences_are_added_to_the_embedded_base(tmp_path: Path, bits: Any, near: float) -> None:
    base = base_folder()
    tensors, generator = base.tensors(), torch.Generator().manual_seed(2)
    tuned = dict(tensors)
    for name in (f"encoder.layer.5.attention.{part}" for part in ("self.value.weight", "output.dense.bias")):
        tuned[name] = tensors[name] + torch.randn(tensors[name].shape, generator=generator) * 0.02
    stored = {f"delta.{name}": tensor for name, tensor in encode_delta(tensors, tuned, bits=bits).items()}
    native = NativeConfig(base=EMBEDDED, base_digest=base.digest, delta="int4" if bits == 4 else "int8")
    write_native(tmp_path / "m", config=native, tensors=stored | heads_of(384), tokenizer=TOKENIZER)

    model: Any = transformers.BertModel(transformers.BertConfig(**base.config()), add_pooling_layer=False).eval()
    model.load_state_dict(tuned)
    states, starts = reference_states(model, batch_of(LENGTHS))
    found, heads = run(tmp_path / "m"), heads_of(384)
    keep = torch.sigmoid(states @ heads["keep.weight"][0] + heads["keep.bias"])
    torch.testing.assert_close(found.keep, keep, rtol=0, atol=near)
    scores = states[starts] @ heads["score.weight"][0] + heads["score.bias"]
    torch.testing.assert_close(found.scores, scores, rtol=0, atol=near * 4)
    model.load_state_dict(tensors)
    untuned = reference_states(model, batch_of(LENGTHS))[0] @ heads["keep.weight"][0] + heads["keep.bias"]
    assert (found.keep - torch.sigmoid(untuned)).abs().max() > 10 * near


def test_without_differences_the_encoder_is_the_base(tmp_path: Path) -> None:
    base = base_folder()
    native = NativeConfig(base=EMBEDDED, base_digest=base.digest)
    write_native(tmp_path / "m", config=native, tensors=heads_of(384), tokenizer=TOKENIZER)
    assert run(tmp_path / "m").scores.shape == (len(LENGTHS),)
    change(tmp_path / "m", {"delta.embeddings.LayerNorm.bias": torch.zeros(384)})
    with pytest.raises(ModelError, match=r"holds tensors that its encoder lacks: delta\.embeddings\.LayerNorm\.bias"):
        run(tmp_path / "m")


@pytest.mark.parametrize("packed", [False, True])
def test_any_encoder_that_transformers_knows_may_stand_alone_packed_or_not(tmp_path: Path, *, packed: bool) -> None:
    config = transformers.MPNetConfig(**TINY, max_position_embeddings=66)
    encoder = spread(transformers.MPNetModel(config, add_pooling_layer=False))
    stored = encoder.state_dict()
    if packed:
        stored = pack_tensors(stored, bits=8)
        encoder.load_state_dict(unpack_tensors(stored))
    tensors = {f"encoder.{name}": tensor for name, tensor in stored.items()} | heads_of(32)
    write_native(tmp_path / "m", config=NativeConfig(encoder=config.to_dict()), tensors=tensors, tokenizer=TOKENIZER)
    states, starts = reference_states(encoder, batch_of(LENGTHS, vocabulary=300))
    found, heads = run(tmp_path / "m"), heads_of(32)
    close(found.keep, torch.sigmoid(states @ heads["keep.weight"][0] + heads["keep.bias"]))
    close(found.scores, states[starts] @ heads["score.weight"][0] + heads["score.bias"])


def test_differences_to_another_base_are_refused(tmp_path: Path) -> None:
    native = NativeConfig(base=EMBEDDED, base_digest="0" * 64)
    write_native(tmp_path / "m", config=native, tensors=heads_of(384), tokenizer=TOKENIZER)
    with pytest.raises(DigestError, match="but the spec states 000000"):
        run(tmp_path / "m")


def test_differences_without_a_tensor_in_the_base_are_refused(tmp_path: Path) -> None:
    native = NativeConfig(base=EMBEDDED, base_digest=base_folder().digest, delta="int4")
    stray = {"delta.encoder.layer.6.output.dense.bias": torch.zeros(384)}
    write_native(tmp_path / "m", config=native, tensors=heads_of(384) | stray, tokenizer=TOKENIZER)
    with pytest.raises(ModelError, match=r"tensor encoder\.layer\.6\.output\.dense\.bias is stored, but the base has"):
        run(tmp_path / "m")


def test_scores_do_not_depend_on_the_other_windows(alone: tuple[Path, Any]) -> None:
    model = load(alone[0])
    batch = batch_of(LENGTHS, vocabulary=300)
    together = model.heads(batch)
    apart = [model.heads([window]) for window in batch]
    torch.testing.assert_close(together.keep, torch.cat([each.keep for each in apart]), rtol=0, atol=1e-6)
    torch.testing.assert_close(together.scores, torch.cat([each.scores for each in apart]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("keep.weight", r"tensors are missing from .*: keep\.weight"),
        ("score.bias", r"tensors are missing from .*: score\.bias"),
        ("encoder.encoder.layer.1.output.dense.bias", r"missing from .*: encoder\.layer\.1\.output\.dense\.bias"),
    ],
)
def test_a_missing_tensor_is_refused_by_its_name(alone: tuple[Path, Any], name: str, message: str) -> None:
    change(alone[0], {name: None})
    with pytest.raises(ModelError, match=message):
        run(alone[0])


@pytest.mark.parametrize("shape", [(), (1,), (3, 32), (2, 16)])
def test_a_keep_head_of_another_shape_is_refused(alone: tuple[Path, Any], shape: tuple[int, ...]) -> None:
    change(alone[0], {"keep.weight": torch.zeros(shape), "keep.bias": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"tensor keep\.weight has shape .*, but config\.json means \(1, 32\)"):
        run(alone[0])


@pytest.mark.parametrize("name", ["keep.scale_of_old", "encoder.lm_head.bias", "delta.x", "stray"])
def test_an_unexpected_tensor_is_refused_by_its_name(alone: tuple[Path, Any], name: str) -> None:
    change(alone[0], {name: torch.zeros(3)})
    with pytest.raises(ModelError, match=rf"holds tensors that its encoder lacks: {name.removeprefix('encoder.')}"):
        run(alone[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "does not state format 1, the only one that this version reads"),
        ({"threshold": 1.5}, r"needs a threshold of 0 to 1\. Got 1\.5"),
        ({"threshold": "high"}, r"needs a threshold of 0 to 1\. Got 'high'"),
        ({"rule": "vote"}, r"must have the rule mean or share\. Got 'vote'"),
        ({"max_length": 3}, r"needs a max_length of at least 8\. Got 3"),
        ({"encoder": None}, "needs either a base or an encoder, and not both"),
        ({"encoder": None, "base": "owner/name"}, r"must name a base inside the package.* Got 'owner/name'"),
        ({"encoder": None, "base": EMBEDDED}, "must state the base_digest of its base"),
        ({"encoder": {"hidden_size": 3}}, "has an encoder that is no config with a model_type"),
        ({"delta": "int4"}, "has a delta of 'int4'; it must be int4 or int8 and needs a base"),
    ],
)
def test_a_config_that_cannot_be_is_refused(alone: tuple[Path, Any], changes: dict[str, Any], message: str) -> None:
    edit(alone[0], **changes)
    with pytest.raises(ModelError, match=message):
        run(alone[0])


def test_details_are_kept_and_may_not_hide_a_setting(alone: tuple[Path, Any]) -> None:
    assert NativeConfig.of(ModelFolder("m", alone[0])).details == {"trained_on": ["squad"]}
    with pytest.raises(ConfigError, match="details under names that mean something else: threshold"):
        NativeConfig(encoder={"model_type": "bert"}, details={"threshold": 0.3})


def test_writing_refuses_what_has_no_place(tmp_path: Path) -> None:
    native = NativeConfig(encoder={"model_type": "bert"})
    with pytest.raises(ModelError, match=r"tensor delta\.x has no place in a native pruner: names begin with encoder"):
        write_native(tmp_path, config=native, tensors={"delta.x": torch.zeros(1)}, tokenizer=TOKENIZER)
    with pytest.raises(ModelError, match=r"needs the tensors keep\.bias, score\.bias"):
        heads = {"keep.weight": torch.zeros(1, 2), "score.weight": torch.zeros(1, 2)}
        write_native(tmp_path, config=native, tensors=heads, tokenizer=TOKENIZER)
    assert not (tmp_path / "config.json").exists()
