"""Where files are found: folders, globs, lists, URIs, packed files, folders that `save_to_disk` wrote."""

from __future__ import annotations

import gzip
import json
import re
from typing import TYPE_CHECKING, Any

import fsspec
import polars as pl
import pyarrow as pa
import pytest

from datapipe.errors import LimitError, MissingExtraError, SourceError
from datapipe.storage.formats import files
from datapipe.storage.source import Limits, open_source
from tests.storage.sources import rows_of, write, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def memory() -> Iterator[Any]:
    """An fsspec filesystem that stands for a remote store."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def names(source: Any) -> list[str]:
    return [file.uri.rsplit("/", 1)[1] for file in source.files]


def test_a_folder_is_read_in_order_of_names_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", ".c.jsonl", "_d.jsonl", "sub/a.jsonl", "_tmp/e.jsonl", ".git/f.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / name, [{"name": name}])
    write(tmp_path / "README.md", "about the data")
    assert [row["name"] for row in rows_of(open_source(tmp_path))] == ["a.jsonl", "b.jsonl", "sub/a.jsonl"]
    assert [row["name"] for row in rows_of(open_source(f"{tmp_path}/*.jsonl"))] == ["a.jsonl", "b.jsonl"]
    assert len(rows_of(open_source(f"{tmp_path}/**/*.jsonl"))) == 3


def test_a_list_is_read_in_its_own_order(tmp_path: Path) -> None:
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [{"name": name}]) for name in "ba"]
    assert [row["name"] for row in rows_of(open_source(paths))] == ["b", "a"]
    with pytest.raises(SourceError, match=r"a\.jsonl is named twice; its rows would count twice"):
        open_source([*paths, paths[1]])


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "part[1].jsonl", [{"a": 1}])
    assert rows_of(open_source(tmp_path / "part[1].jsonl")) == [{"a": 1}]


def test_mixed_formats_are_refused_by_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"a": 1}])
    write(tmp_path / "b.csv", "a\n1\n")
    expected = r"a source is of one format, and this one mixes csv \(.*b\.csv\), jsonl \(.*a\.jsonl\); name one of them"
    with pytest.raises(SourceError, match=expected):
        open_source(tmp_path)


def test_what_is_not_there_or_unknown_is_said_in_plain_words(tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        (tmp_path / "gone.parquet", r"gone\.parquet does not exist"),
        (f"{tmp_path}/*.parquet", r"no file to read in .*\*\.parquet; read are \.parquet"),
        (tmp_path, r"no file to read in .*; read are \.parquet, \.pq, \.csv"),
        ("a\0b.csv", r"is no path: it holds a zero byte"),
    ]
    for source, message in cases:
        with pytest.raises(SourceError, match=message):
            open_source(source)
    write(tmp_path / "table.xlsx", "x")
    with pytest.raises(SourceError, match=r"table\.xlsx is of unknown format \.xlsx; read are"):
        open_source(tmp_path / "table.xlsx")
    with pytest.raises(SourceError, match=r"no file to read in .*; it holds table\.xlsx; read are"):
        open_source(tmp_path)
    write(tmp_path / "noname", "x")
    with pytest.raises(SourceError, match=r"noname is of unknown format \(no suffix\)"):
        open_source(tmp_path / "noname")


def test_a_partition_folder_is_refused_for_the_column_it_stands_for(tmp_path: Path) -> None:
    (tmp_path / "year=2024").mkdir()
    write_jsonl(tmp_path / "year=2024" / "a.jsonl", [{"a": 1}])
    with pytest.raises(SourceError, match=r"lies in a partition folder, whose value 'year=2024' would be lost"):
        open_source(tmp_path)
    assert rows_of(open_source(tmp_path / "year=2024")) == [{"a": 1}]


@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_packed_text_is_read_as_it_is_unpacked(tmp_path: Path, codec: str) -> None:
    def packed(text: bytes) -> bytes:
        return gzip.compress(text) if codec == "gz" else pa.compress(text, "zstd", asbytes=True)

    rows = [{"a": n, "b": f"row {n}"} for n in range(1000)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = ("a,b\n" + "".join(f"{row['a']},{row['b']}\n" for row in rows)).encode()
    assert rows_of(open_source(write(tmp_path / f"rows.jsonl.{codec}", packed(lines)))) == rows
    assert rows_of(open_source(write(tmp_path / f"rows.csv.{codec}", packed(table)))) == rows
    halves = write(tmp_path / f"halves.csv.{codec}", packed(table[:100]) + packed(table[100:]))
    assert rows_of(open_source(halves)) == rows
    cut = write(tmp_path / f"cut.jsonl.{codec}", packed(lines)[:-20])
    with pytest.raises(SourceError, match=rf"cut\.jsonl\.{codec} cannot be read; it is truncated"):
        open_source(cut)
    bomb = write(tmp_path / f"bomb.jsonl.{codec}", packed(b" " * 5_000_000 + b'{"a": 1}\n'))
    with pytest.raises(LimitError, match=rf"bomb\.jsonl\.{codec}: its [\d,]+ bytes decode to more than"):
        open_source(bomb, limits=Limits(decoded_floor=1_000_000))
    with pytest.raises(SourceError, match=rf"a\.parquet\.{codec}: \.{codec} is read around CSV and JSONL only"):
        open_source(write(tmp_path / f"a.parquet.{codec}", b"x"))


def test_a_quote_never_closed_in_a_packed_file_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datapipe.storage.formats.records.BLOCK_BYTES", 64)
    text = 'a,b\n1,x\n2,"open\n' + "".join(f"{n},y\n" for n in range(3, 100))
    path = write(tmp_path / "rows.csv.gz", gzip.compress(text.encode()))
    assert [row["a"] for row in rows_of(open_source(path, limits=Limits(max_line_bytes=100)))] == [1, *range(3, 100)]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "arrow", "arrows"])
def test_a_remote_folder_and_file_are_read_like_local_ones(memory: Any, tmp_path: Path, suffix: str) -> None:
    from tests.storage.sources import WRITERS

    for index in range(2):
        WRITERS[suffix](pl.DataFrame({"a": [index], "b": ["x"]}), tmp_path / f"{index}.{suffix}")
        memory.pipe(f"/data/{index}.{suffix}", (tmp_path / f"{index}.{suffix}").read_bytes())
    memory.pipe("/data/_SUCCESS", b"")
    memory.pipe(f"/data/_tmp/3.{suffix}", b"broken")
    expected = rows_of(open_source(tmp_path))
    folder = open_source("memory://data")
    assert names(folder) == [f"0.{suffix}", f"1.{suffix}"]
    assert rows_of(folder) == expected
    assert rows_of(open_source(f"memory://data/*.{suffix}")) == expected
    assert rows_of(open_source(f"memory://data/1.{suffix}")) == expected[1:]
    assert folder.digests() == open_source(tmp_path).digests()


def test_remote_digests_are_cached_only_where_the_store_marks_its_files(memory: Any) -> None:
    memory.pipe("/data/a.jsonl", b'{"a": 1}\n')
    source = open_source("memory://data/a.jsonl")
    known: dict[str, str] = {}
    digests = source.digests(known)
    assert all(key.startswith("memory://data/a.jsonl|9|") for key in known)
    assert source.digests(known) == digests


def test_what_a_remote_store_lacks_is_named(memory: Any) -> None:
    with pytest.raises(SourceError, match=re.escape("memory://data/gone.csv does not exist")):
        open_source("memory://data/gone.csv")
    with pytest.raises(SourceError, match=re.escape("nowhere://data/a.csv cannot be opened: ")):
        open_source("nowhere://data/a.csv")


def test_a_missing_package_is_named_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(uri: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(
        MissingExtraError, match=re.escape("reading s3://bucket/a.parquet needs s3fs, which is not")
    ) as found:
        open_source("s3://bucket/a.parquet")
    assert str(found.value).endswith("pip install s3fs")


def test_a_store_that_cannot_be_reached_is_a_source_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def info(self, path: str) -> None:
            raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(files, "remote_filesystem", lambda _uri: (Broken(), "data/a.csv"))
    with pytest.raises(SourceError, match=re.escape("s3://data/a.csv cannot be reached: no route to host")):
        open_source("s3://data/a.csv")


def save_to_disk(folder: Path, parts: list[pa.Table], **state: Any) -> Path:
    """A folder as `datasets.Dataset.save_to_disk` lays it out."""
    folder.mkdir(parents=True)
    data = [f"data-{index:05d}-of-{len(parts):05d}.arrow" for index in range(len(parts))]
    for name, part in zip(data, parts, strict=True):
        with pa.ipc.new_stream(str(folder / name), part.schema) as writer:
            writer.write_table(part)
    entry = {"_data_files": [{"filename": name} for name in data], "_fingerprint": "0"}
    write(folder / "state.json", json.dumps(entry | state))
    write(folder / "dataset_info.json", "{}")
    return folder


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    parts = [pa.table({"text": ["a", "b"], "label": [0, 1]}), pa.table({"text": ["c"], "label": [1]})]
    source = open_source(save_to_disk(tmp_path / "saved", parts))
    assert source.format == "arrow"
    assert source.rows == 3
    assert rows_of(source) == pa.concat_tables(parts).to_pylist()


def test_a_saved_dict_of_datasets_is_refused_with_its_splits(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "train", [pa.table({"a": [1]})])
    save_to_disk(tmp_path / "test", [pa.table({"a": [2]})])
    write(tmp_path / "dataset_dict.json", json.dumps({"splits": ["train", "test"]}))
    expected = f"{tmp_path} is a DatasetDict of the splits train, test; name one of them, as in {tmp_path}/train"
    with pytest.raises(SourceError, match=re.escape(expected)):
        open_source(tmp_path)
    assert rows_of(open_source(tmp_path / "test")) == [{"a": 2}]


def test_a_saved_dataset_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    part = [pa.table({"a": [1]})]
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"_data_files": [{"filename": "../secret.arrow"}]},
            r"state\.json names '\.\./secret\.arrow', which is not in",
        ),
        ({"_data_files": [7]}, r"state\.json is damaged: _data_files is no list of file names"),
        ({"_data_files": []}, r"is a saved dataset without data files"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, r"save it with flatten_indices\(\) again"),
    ]
    for index, (state, message) in enumerate(cases):
        with pytest.raises(SourceError, match=message):
            open_source(save_to_disk(tmp_path / str(index), part, **state))
    write(tmp_path / "0" / "state.json", "{")
    with pytest.raises(SourceError, match=r"state\.json cannot be read as JSON"):
        open_source(tmp_path / "0")
