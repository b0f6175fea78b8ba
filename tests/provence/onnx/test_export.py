"""What an export holds beside the graph."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from datapipe.errors import OutputError
from provence.onnx import export_onnx

if TYPE_CHECKING:
    from pathlib import Path


def test_an_export_carries_the_licence_and_the_card_of_its_model(pruner_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(pruner_folder, source)
    (source / "LICENSE").write_text("Free to use.")
    (source / "README.md").write_text("# A pruner")
    export_onnx(source, tmp_path / "with")
    assert (tmp_path / "with" / "LICENSE").read_text() == "Free to use."
    assert (tmp_path / "with" / "README.md").read_text() == "# A pruner"
    export_onnx(pruner_folder, tmp_path / "without")
    assert {path.name for path in (tmp_path / "without").iterdir()} == {"model.onnx", "config.json", "tokenizer.json"}


def test_an_export_to_a_file_is_refused(pruner_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file: File exists"):
        export_onnx(pruner_folder, tmp_path / "file")


def test_an_earlier_export_is_replaced_whole(pruner_folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(pruner_folder, source)
    (source / "LICENSE").write_text("Free to use.")
    export_onnx(source, out)
    (out / "calibration.json").write_text("{}")
    export_onnx(pruner_folder, out)
    assert {path.name for path in out.iterdir()} == {"model.onnx", "config.json", "tokenizer.json"}


def test_a_folder_that_is_in_use_is_refused_and_left_as_it_is(pruner_folder: Path, tmp_path: Path) -> None:
    used, mixed = tmp_path / "used", tmp_path / "mixed"
    used.mkdir()
    (used / "README.md").write_text("mine")
    export_onnx(pruner_folder, mixed)
    (mixed / "notes.txt").write_text("mine")
    for out, name in [(used, "README.md"), (mixed, "notes.txt")]:
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(OutputError, match=rf"is not empty, and {name} in it is of no earlier export; name another"):
            export_onnx(pruner_folder, out)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(OutputError, match="is the folder of the model that is exported; name another"):
        export_onnx(pruner_folder, pruner_folder)
