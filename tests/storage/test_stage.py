"""Stage directories: what is whole is there, what is there is whole, and nothing is made twice."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from datapipe.errors import IntegrityError, OutputError
from datapipe.storage.digest import file_sha256
from datapipe.storage.stage import StageIdentity, StageStore

if TYPE_CHECKING:
    from pathlib import Path

TABLE = pa.table(
    {"row_id": pa.array([b"0" * 16, b"1" * 16], pa.binary(16)), "score": pa.array([0.5, 1.5], pa.float32())}
)


def identity(**changes: object) -> StageIdentity:
    values = {"name": "score", "version": 1, "config": {"k": 3}, "inputs": ("ab",), "platform": {"device": "cpu"}}
    return StageIdentity(**{**values, **changes})  # type: ignore[arg-type]


def test_a_shard_comes_with_its_digest_and_the_manifest_comes_last(tmp_path: Path) -> None:
    stage = StageStore(tmp_path).open(identity())
    info = stage.write_table("00000.parquet", TABLE, facts={"nan": 0})
    assert info.rows == 2
    assert info.sha256 == file_sha256(stage.path / "00000.parquet")
    assert stage.manifest() is None
    manifest = stage.finish(["00000.parquet"], facts={"seen": 2})
    assert stage.manifest() == manifest
    assert manifest.rows == 2
    assert manifest.facts == {"seen": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"version": 2},
        {"config": {"k": 4}},
        {"inputs": ("cd",)},
        {"models": ("m",)},
        {"platform": {"device": "cuda"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_the_identity_names_another_directory(change: dict[str, object]) -> None:
    assert identity(**change).key != identity().key


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    first = StageStore(tmp_path / "a").open(identity()).write_table("x.parquet", TABLE)
    second = StageStore(tmp_path / "b").open(identity()).write_table("x.parquet", TABLE)
    assert first == second


def test_a_failing_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    stage = StageStore(tmp_path).open(identity())
    with pytest.raises(ZeroDivisionError), stage.writer("x.parquet", TABLE.schema) as writer:
        writer.write(TABLE)
        raise ZeroDivisionError
    assert list(stage.path.iterdir()) == []
    assert stage.done("x.parquet") is None


def test_a_shard_without_its_sidecar_or_with_another_size_is_made_again(tmp_path: Path) -> None:
    stage = StageStore(tmp_path).open(identity())
    stage.write_table("x.parquet", TABLE)
    (stage.path / "x.parquet").write_bytes(b"short")
    assert stage.done("x.parquet") is None
    stage.write_table("x.parquet", TABLE)
    (stage.path / "x.parquet.json").unlink()
    assert stage.done("x.parquet") is None


def test_opening_clears_what_a_killed_process_left(tmp_path: Path) -> None:
    stage = StageStore(tmp_path).open(identity())
    stage.write_table("x.parquet", TABLE)
    (stage.path / ".y.parquet.123.abcd.partial").write_bytes(b"half")
    reopened = StageStore(tmp_path).open(identity())
    assert sorted(path.name for path in reopened.path.iterdir()) == ["x.parquet", "x.parquet.json"]


def test_finishing_over_a_missing_shard_is_refused(tmp_path: Path) -> None:
    stage = StageStore(tmp_path).open(identity())
    with pytest.raises(IntegrityError, match=r"x\.parquet is missing or incomplete"):
        stage.finish(["x.parquet"])


def test_a_foreign_manifest_is_refused(tmp_path: Path) -> None:
    stage = StageStore(tmp_path).open(identity())
    stage.finish([])
    body = json.loads((stage.path / "manifest.json").read_bytes())
    body["identity"]["version"] = 99
    (stage.path / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(IntegrityError, match="belongs to another stage configuration"):
        StageStore(tmp_path).open(identity())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"shards": 3}'])
def test_a_damaged_manifest_says_which_file(tmp_path: Path, content: bytes) -> None:
    stage = StageStore(tmp_path).open(identity())
    (stage.path / "manifest.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"manifest\.json is not a stage manifest"):
        stage.manifest()


def test_a_full_disk_is_told_with_the_file_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = StageStore(tmp_path).open(identity())

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datapipe.storage.atomic.os.fsync", full)
    with pytest.raises(OutputError, match=r"x\.parquet: no space is left on the device; free some space"):
        stage.write_table("x.parquet", TABLE)
    assert list(stage.path.iterdir()) == []


def test_a_run_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="not a folder"):
        StageStore(tmp_path / "run").open(identity())


def test_a_shard_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    stage = StageStore(tmp_path).open(identity())
    stage.write_table("x.parquet", TABLE)
    stage.write_bytes("y", b"1")
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in stage.path.iterdir()}
    stage.write_table("x.parquet", TABLE)
    stage.write_bytes("y", b"1")
    with stage.writer("x.parquet", TABLE.schema) as writer:
        writer.write(TABLE)
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in stage.path.iterdir()} == before
