"""Which family a folder is of, and that nothing of it runs, whatever it names."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from datapipe.errors import ModelError, ModelNotFoundError, UnsafeModelError
from datapipe.workers.folder import ModelFolder
from provence.families import conduct_of, open_model
from tests.provence.families.checkpoints import (
    TINY,
    batch_of,
    edit,
    load,
    open_provence,
    provence,
    run,
    spread,
    write,
    xprovence,
    zilliz,
)

if TYPE_CHECKING:
    from pathlib import Path

MAKERS = pytest.mark.parametrize("make", [provence, xprovence, open_provence, zilliz])


@MAKERS
def test_code_that_a_folder_brings_does_not_run(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, trace = make(tmp_path / "m").folder, tmp_path / "ran"
    code = f"open({str(trace)!r}, 'w').close()\n"
    for name in ("modeling_provence.py", "configuration_provence.py", "__init__.py"):
        (folder / name).write_text(code)
    classes = {"AutoModel": "modeling_provence.Provence", "AutoConfig": "configuration_provence.Config"}
    edit(folder, auto_map=classes)
    settings = json.loads((folder / "config.json").read_text())
    if "base_model_config" in settings:
        edit(folder, base_model_config=settings["base_model_config"] | {"auto_map": classes})
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    assert run(folder).scores.isfinite().all()
    assert not trace.exists()
    assert not {"modeling_provence", "configuration_provence"} & sys.modules.keys()


@MAKERS
def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, make: Any) -> None:
    folder = make(tmp_path / "m").folder
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a readable safetensors file"):
        run(folder)
    edit(folder, model_type="unknown")  # then names of tensors decide, read from the damaged file too
    with pytest.raises(ModelError, match=r"model\.safetensors is not a readable safetensors file"):
        conduct_of(ModelFolder("m", folder))


@MAKERS
def test_weights_as_pickles_only_are_refused(tmp_path: Path, make: Any) -> None:
    folder = make(tmp_path / "m").folder
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeModelError, match=r"pytorch_model\.bin can run code when it is read"):
        run(folder)


def test_a_folder_without_weights_or_config_is_refused(tmp_path: Path) -> None:
    folder = provence(tmp_path / "m").folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"no \*\.safetensors in"):
        run(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        run(folder)


def test_a_model_of_no_family_is_refused_with_what_was_tried(tmp_path: Path) -> None:
    config = transformers.BertConfig(**TINY)
    model = spread(transformers.BertModel(config, add_pooling_layer=False))
    folder = write(tmp_path / "m", config.to_dict(), model.state_dict())
    with pytest.raises(ModelError) as caught:
        load(folder)
    message = str(caught.value)
    assert "its model_type is 'bert' and its tensors begin with embeddings, encoder." in message
    assert "Tried: native (model_type secateur_pruner); provence (model_type Provence" in message
    assert "open_provence (model_type open_provence, or tensors pruning_head.*)" in message


def test_conduct_is_known_without_reading_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: ModelFolder) -> None:
        raise AssertionError("tensors were read")

    folders = [make(tmp_path / make.__name__).folder for make in (provence, xprovence, open_provence)]
    monkeypatch.setattr(ModelFolder, "tensors", refuse)
    families = [conduct_of(ModelFolder("m", folder)).family for folder in folders]
    assert families == ["provence", "xprovence", "open_provence"]


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    plain = ModelFolder.tensors

    def counted(folder: ModelFolder) -> dict[str, torch.Tensor]:
        reads.append(folder.name)
        return plain(folder)

    monkeypatch.setattr(ModelFolder, "tensors", counted)
    for make in (provence, xprovence, open_provence, zilliz):
        load(make(tmp_path / make.__name__).folder)
    assert len(reads) == 4


def test_importing_the_readers_pulls_neither_torch_nor_transformers() -> None:
    lines = ["import sys, provence.families", "import provence.families.native, provence.families.provence"]
    lines += ["import provence.families.open_provence, provence.families.delta"]
    lines += ["assert not {'torch', 'transformers', 'safetensors'} & sys.modules.keys()"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@MAKERS
def test_cuda_equals_the_cpu(tmp_path: Path, make: Any) -> None:
    folder, batch = make(tmp_path / "m").folder, batch_of([40, 7, 7, 2, 31, 1, 5], vocabulary=300)
    exact = load(folder).heads(batch)
    for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        model = open_model(ModelFolder("m", folder), device=torch.device("cuda"), dtype=dtype)
        found = model.heads(batch)
        assert (found.keep.dtype, found.keep.device.type) == (torch.float32, "cuda")
        torch.testing.assert_close(found.keep.cpu(), exact.keep, rtol=0, atol=near)
        torch.testing.assert_close(found.scores.cpu(), exact.scores, rtol=0.05, atol=near)
