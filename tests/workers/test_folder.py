"""Finding and reading model folders: nothing runs, nothing is fetched, everything odd is refused by name."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
from fnmatch import fnmatch
from typing import TYPE_CHECKING, NoReturn

import pytest
import torch
from safetensors.torch import save_file

from datapipe.errors import DigestError, ModelError, ModelNotFoundError, UnsafeModelError
from datapipe.weights import embedded_names
from datapipe.workers.folder import ModelFolder, resolve
from datapipe.workers.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_default_embedder_is_embedded() -> None:
    assert "all-MiniLM-L6-v2" in embedded_names()


def test_an_unknown_embedded_name_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model 'other' is embedded; there are: .*all-MiniLM-L6-v2"):
        resolve(ModelSpec("m", "embedded:other"))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=f"there is no folder {tmp_path / 'gone'}, and it is no hub id"):
        resolve(ModelSpec("m", str(tmp_path / "gone")))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelNotFoundError, match="is a file, not a folder"):
        resolve(ModelSpec("m", str(tmp_path / "file")))


@pytest.mark.usefixtures("no_network")
def test_a_hub_id_that_is_not_cached_says_how_to_fetch_it_and_touches_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="run: hf download owner/name --revision v1"):
        resolve(ModelSpec("m", "owner/name", revision="v1"))


@pytest.mark.usefixtures("no_network")
def test_a_cached_hub_id_is_found_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = "0123456789012345678901234567890123456789"
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, snapshot / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert resolve(ModelSpec("m", "owner/name")).root == snapshot


def test_licence_and_card_are_fetched_with_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    fetched: list[str] = []

    def fetch(_: str, *, allow_patterns: list[str], **__: object) -> str:
        published = ["LICENSE", "LICENSE.md", "NOTICE", "README.md", "model.safetensors", "pytorch_model.bin", "run.py"]
        fetched[:] = [name for name in published if any(fnmatch(name, pattern) for pattern in allow_patterns)]
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve(ModelSpec("m", "owner/name")).root == tmp_path
    assert fetched == ["LICENSE", "LICENSE.md", "NOTICE", "README.md", "model.safetensors"]


def test_a_revision_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a revision is for hub ids, but .* is a folder"):
        resolve(ModelSpec("m", str(tmp_path), revision="main"))


def test_a_folder_without_weights_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"model m: no \*\.safetensors in {tmp_path}"):
        ModelFolder("m", tmp_path).weight_files()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_weights_as_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"never read")
    with pytest.raises(UnsafeModelError, match=rf"{name} can run code when it is read.*save_pretrained\(NEW_FOLDER\)"):
        ModelFolder("m", tmp_path).weight_files()


def test_pickles_beside_safetensors_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert ModelFolder("m", tmp_path).tensors()["a"].tolist() == [1, 1]


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "two.safetensors")
    save_file({"a": torch.full((1,), 7.0)}, tmp_path / "another-format.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    tensors = ModelFolder("m", tmp_path).tensors()
    assert {name: tensor.item() for name, tensor in tensors.items()} == {"a": 0, "b": 1}


def test_an_index_that_names_a_missing_shard_says_which(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(ModelNotFoundError, match=r"names gone\.safetensors, which is not in"):
        ModelFolder("m", tmp_path).weight_files()


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/../../b"])
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UnsafeModelError, match="names a file outside its folder"):
        ModelFolder("m", tmp_path).weight_files()


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(ModelError, match=r"tensor a stands in two\.safetensors and in another file"):
        ModelFolder("m", tmp_path).tensors()


def test_a_damaged_safetensors_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match=r"model\.safetensors is not a readable safetensors file"):
        ModelFolder("m", tmp_path).tensors()


@pytest.mark.parametrize("content", ["{", "\udcff".encode(errors="surrogateescape").decode("latin-1"), "[" * 100_000])
def test_damaged_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        ModelFolder("m", tmp_path).config()


@pytest.mark.parametrize("content", ["[]", "{}", '{"model_type": 3}'])
def test_a_config_without_an_architecture_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json states no model_type"):
        ModelFolder("m", tmp_path).config()


def test_code_that_a_config_names_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"model_type": "bert", "auto_map": {"AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING, logger="datapipe"):
        assert ModelFolder("m", tmp_path).config() == {"model_type": "bert"}
    assert "names code of its own (auto_map), which is ignored" in caplog.text


def test_int8_tensors_are_multiplied_by_the_factor_of_their_row(tmp_path: Path) -> None:
    levels, factors = torch.tensor([[1, -2], [127, 0]], dtype=torch.int8), torch.tensor([0.5, 2.0])
    save_file({"w": levels, "w.scale": factors, "b": torch.ones(1)}, tmp_path / "model.safetensors")
    tensors = ModelFolder("m", tmp_path).tensors()
    assert sorted(tensors) == ["b", "w"]
    assert tensors["w"].tolist() == [[0.5, -1.0], [254.0, 0.0]]


def test_the_digest_is_what_its_docstring_says(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("not part of it")
    lines = [
        f"{name}\0{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}\n"
        for name in ("config.json", "model.safetensors")
    ]
    assert ModelFolder("m", tmp_path).digest == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_every_file_that_changes_vectors_changes_the_digest(tiny_bert: Callable[..., Path]) -> None:
    folder = tiny_bert()
    seen = {ModelFolder("m", folder).digest}
    (folder / "1_Pooling").mkdir()
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json", "config.json"):
        (folder / name).write_text('{"changed": true}')
        seen.add(ModelFolder("m", folder).digest)
    (folder / "README.md").write_text("changed")
    assert len(seen) == 6
    assert ModelFolder("m", folder).digest in seen


def test_another_digest_than_the_spec_states_is_refused(tiny_bert: Callable[..., Path]) -> None:
    folder = ModelFolder("m", tiny_bert())
    folder.check(None)
    folder.check(folder.digest)
    with pytest.raises(DigestError, match=f"have digest {folder.digest}, but the spec states {'0' * 64}"):
        folder.check("0" * 64)
