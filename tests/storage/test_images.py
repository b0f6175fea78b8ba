"""Images in cells and beside the source: what a canonical row holds of them, and which are refused unread."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datapipe.errors import ColumnError
from datapipe.storage.images import ImageFiles, ImagesByPlace, UnreadableImageError, content_key
from datapipe.storage.ingest import IngestSpec, ingest
from datapipe.storage.rowid import ID_TYPE
from datapipe.storage.source import open_source
from datapipe.storage.stage import StageDir, StageIdentity, StageStore
from tests.conftest import DATA
from tests.pictures import shipped

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = shipped(DATA)
SPEC = IngestSpec(image_column="image")
MOST = 1 << 20


def odd(data: bytes) -> tuple[str, str] | None:
    """A check of its own: images that begin with an x are refused."""
    return ("odd", "begins with x") if data.startswith(b"x") else None


def run(source: Any, folder: Path, spec: IngestSpec = SPEC, *, threads: int = 1) -> tuple[dict[str, Any], StageDir]:
    opened = open_source(source)
    files = ImageFiles(opened, str(spec.image_column), most=MOST, check=odd, threads=threads)
    out = StageStore(folder / "stages").open(StageIdentity(name="ingest", version=1, config={}))
    return ingest(opened, out, spec=spec, scratch=folder / "scratch", images=files), out


def rows(out: StageDir, family: str = "rows") -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.path.glob(f"{family}-*.parquet"))])


def refused(out: StageDir) -> dict[int, tuple[str, str]]:
    found = pq.read_table(out.path / "rejected.parquet").to_pylist()
    return {row["row"]: (row["reason"], row["detail"]) for row in found}


def write(path: Path, images: list[Any], **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"image": images, **columns}).write_parquet(path)
    return path


def beside(folder: Path, count: int = 4) -> list[str]:
    (folder / "pictures").mkdir(parents=True)
    for i in range(count):
        (folder / "pictures" / f"{i}.png").write_bytes(IMAGES[i])
    return [f"pictures/{i}.png" for i in range(count)]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_canonical_row_holds_the_key_of_its_image_and_not_the_image(tmp_path: Path, threads: int) -> None:
    source = write(tmp_path / "a.parquet", [*IMAGES, b"xyz", None], n=list(range(62)))
    facts, out = run(source, tmp_path, threads=threads)
    assert facts["rejected"] == {"null_image": 1, "odd": 1}
    assert rows(out).schema.field("image").type == ID_TYPE
    places = rows(out, "places")["row"].to_pylist()
    assert rows(out)["image"].to_pylist() == [content_key(IMAGES[row - 1]) for row in places]
    assert refused(out) == {
        61: ("odd", "column 'image': begins with x"),
        62: ("null_image", "column 'image' is null"),
    }


def test_bytes_structs_and_paths_of_one_image_have_one_key(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    cells: dict[str, list[Any]] = {
        "bytes": IMAGES[:4],
        "structs": [{"bytes": image, "path": None} for image in IMAGES[:2]]
        + [{"bytes": None, "path": path} for path in paths[2:]],
        "paths": list(paths),
    }
    keys = {}
    for name, images in cells.items():
        _, out = run(write(tmp_path / f"{name}.parquet", images, n=list(range(4))), tmp_path / name)
        keys[name] = sorted(rows(out)["image"].to_pylist())
    assert keys["bytes"] == keys["structs"] == keys["paths"] == sorted(map(content_key, IMAGES[:4]))


def test_a_path_is_relative_to_the_file_that_holds_it_and_must_not_lead_out(tmp_path: Path) -> None:
    inner = tmp_path / "set"
    paths = beside(inner)
    (tmp_path / "secret.png").write_bytes(IMAGES[9])
    os.mkfifo(inner / "pipe.png")
    (inner / "large.png").write_bytes(b"\0" * (MOST + 1))
    named = [
        *paths[:2],
        "./pictures/../pictures/2.png",
        str(inner / paths[3]),
        "../secret.png",
        str(tmp_path / "secret.png"),
        "https://example.org/1.png",
        "pictures/9.png",
        "pictures",
        "pipe.png",
        "large.png",
        "a\0b",
        "n" * 5000,
        "",
    ]
    facts, out = run(write(inner / "a.parquet", named), tmp_path)
    assert facts["accepted"] == 4
    found = refused(out)
    reasons = [reason for _, (reason, _) in sorted(found.items())]
    outside, missing = ["image_outside"] * 3, ["image_missing"] * 3
    assert reasons == [*outside, *missing, "too_large", "image_outside", "image_missing", "image_missing"]
    assert found[5][1].endswith(
        "the image '../secret.png' leads out of the folder of its source file; "
        "put images there and name them by relative paths"
    )
    assert "is not there, or is no file" in found[8][1]
    assert found[11][1] == f"column 'image' holds an image of {MOST + 1:,} bytes, more than max_cell_bytes={MOST:,}"


def test_paths_in_a_remote_store_are_read_beside_their_file(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    local = write(tmp_path / "a.parquet", ["pictures/0.png", "../out.png", "pictures/1.png"])
    store.pipe("/images-test/set/a.parquet", local.read_bytes())
    store.pipe("/images-test/set/pictures/0.png", IMAGES[0])
    store.pipe("/images-test/out.png", IMAGES[1])
    _, out = run("memory://images-test/set/a.parquet", tmp_path)
    assert rows(out)["image"].to_pylist() == [content_key(IMAGES[0])]
    assert [reason for reason, _ in refused(out).values()] == ["image_outside", "image_missing"]


def test_paths_of_a_frame_are_the_callers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = beside(tmp_path / "set")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    frame = pl.DataFrame({"image": [f"../set/{paths[0]}", str(tmp_path / "set" / paths[1])]})
    facts, _ = run(frame, tmp_path)
    assert facts["accepted"] == 2


def test_chosen_images_come_in_the_order_of_the_source_and_no_further_is_read(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.parquet", IMAGES[:30])
    write(tmp_path / "set" / "b.parquet", IMAGES[30:])
    _, out = run(tmp_path / "set", tmp_path)
    source = open_source(tmp_path / "set")
    places = rows(out, "places")
    wanted = places.filter((pa.compute.field("file") == 0) & (pa.compute.field("row") > 25))
    (tmp_path / "set" / "b.parquet").unlink()
    with ImagesByPlace(ImageFiles(source, "image", most=MOST), [wanted], tmp_path / "scratch") as chosen:
        found = [(record["row"], read()) for record, read in chosen]
    assert found == [(row, IMAGES[row - 1]) for row in range(26, 31)]
    with ImagesByPlace(ImageFiles(source, "image", most=MOST), [wanted.slice(0, 0)], tmp_path / "scratch") as chosen:
        assert list(chosen) == []


def test_an_image_that_went_away_is_told_when_it_is_read(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    source = open_source(write(tmp_path / "a.parquet", paths))
    (tmp_path / paths[1]).unlink()
    with pytest.raises(UnreadableImageError, match=r"the image 'pictures/1.png' is not there") as caught:
        ImageFiles(source, "image", most=MOST).read(paths[1], file=0)
    assert caught.value.reason == "image_missing"


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2], "int64"), ([[1.0], [2.0]], "list"), ([{"bytes": 1}, {"bytes": 2}], "struct")],
)
def test_a_column_of_another_type_holds_no_images(tmp_path: Path, values: list[Any], kind: str) -> None:
    pq.write_table(pa.table({"image": values}), tmp_path / "a.parquet")
    with pytest.raises(ColumnError, match=f"image column 'image' is {kind}.*it must hold image files") as caught:
        run(tmp_path / "a.parquet", tmp_path)
    assert "paths to them (string)" in str(caught.value)


def test_an_image_column_of_nulls_or_of_no_such_name_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [None, None], n=[1, 2])
    with pytest.raises(ColumnError, match="image column 'image' holds nothing but nulls"):
        run(tmp_path / "a.parquet", tmp_path)
    with pytest.raises(ColumnError, match="image column 'photo' is not in the source; its columns are image, n"):
        run(tmp_path / "a.parquet", tmp_path, IngestSpec(image_column="photo"))


def test_a_split_is_read_as_text_beside_the_other_roles(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": ["a", "b", "c"], "part": [0, 1, None]})
    out = StageStore(tmp_path / "stages").open(StageIdentity(name="ingest", version=1, config={}))
    ingest(open_source(frame), out, spec=IngestSpec(text_column="text", split_column="part"), scratch=tmp_path / "s")
    found = rows(out)
    assert dict(zip(found["text"].to_pylist(), found["split"].to_pylist(), strict=True)) == {
        "a": "0",
        "b": "1",
        "c": None,
    }
