"""A reader of a run folder sees the old result or the new one, never a mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from datapipe.errors import LockedError
from datapipe.storage import publish as module
from datapipe.storage.lock import exclusive
from datapipe.storage.publish import publish

if TYPE_CHECKING:
    from pathlib import Path


def read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_symlink() and path.is_file()}


def test_files_and_content_appear_under_the_names_a_user_sees(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("kept")
    publish(tmp_path / "run", {"kept.parquet": tmp_path / "made", "manifest.json": b"{}"}, key="one")
    assert read(tmp_path / "run") == {"kept.parquet": "kept", "manifest.json": "{}"}


def test_a_second_result_replaces_the_first_and_leaves_no_stale_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    publish(run, {"kept": b"1", "rejected": b"1"}, key="one")
    publish(run, {"kept": b"2"}, key="two")
    assert read(run) == {"kept": "2"}
    assert not (run / "rejected").is_symlink()
    assert [path.name for path in (run / "results").iterdir()] == ["two"]


def test_publishing_the_same_result_again_touches_nothing(tmp_path: Path) -> None:
    publish(tmp_path, {"kept": b"1"}, key="one")
    before = (tmp_path / "kept").stat()
    publish(tmp_path, {"kept": b"1"}, key="one")
    after = (tmp_path / "kept").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_process_killed_before_the_swap_leaves_the_old_result_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, {"kept": b"1", "selection": b"1"}, key="one")

    def killed(link: Path, target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_point", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, {"kept": b"2", "selection": b"2"}, key="two")
    assert read(tmp_path) == {"kept": "1", "selection": "1"}
    monkeypatch.undo()
    publish(tmp_path, {"kept": b"2", "selection": b"2"}, key="two")
    assert read(tmp_path) == {"kept": "2", "selection": "2"}


def test_what_a_process_left_that_was_killed_in_the_middle_is_taken_away(tmp_path: Path) -> None:
    run = tmp_path / "run"
    publish(run, {"manifest.json": b"{}"}, key="one")
    whole = sorted(path.relative_to(run) for path in run.rglob("*"))
    (run / "results" / "one" / ".manifest.json.7.ab.partial").write_bytes(b"{")
    (run / ".current.7.partial").symlink_to("results/two")
    (run / ".proof.json.7.ab.partial").write_bytes(b"another writer's own")
    publish(run, {"manifest.json": b"{}"}, key="one")
    (run / ".proof.json.7.ab.partial").unlink()
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == whole


def test_a_second_writer_is_kept_out_and_told_why(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(LockedError, match="is being written by another run"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass
