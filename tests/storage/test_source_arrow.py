"""Arrow IPC: files and streams of any writer, compressed batches, and messages that lie."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from datapipe.errors import LimitError, SourceError
from datapipe.storage.source import Limits, open_source
from tests.storage.sources import refused_by, rows_of, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TABLE = pa.table(
    {
        "text": pa.array(["a", None, "ccc"]),
        "view": pa.array(["short", "much longer than twelve bytes", None], pa.string_view()),
        "coded": pa.array(["x", "y", None]).dictionary_encode(),
        "tags": pa.array([["p"], [], None], pa.large_list(pa.large_string())),
        "pair": pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)),
        "blob": pa.array([b"1", b"", None], pa.binary_view()),
    }
)


def write_ipc(path: Path, batches: Sequence[pa.RecordBatch], *, stream: bool = False, codec: str | None = None) -> Path:
    options = pa.ipc.IpcWriteOptions(compression=codec)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return path


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
def test_files_and_streams_of_arrow_are_read(tmp_path: Path, codec: str | None, *, stream: bool) -> None:
    batches = [*TABLE.to_batches(), *TABLE.slice(0, 0).to_batches(), *TABLE.slice(1).to_batches()]
    source = open_source(write_ipc(tmp_path / "rows.arrow", batches, stream=stream, codec=codec))
    assert source.rows == 5
    assert source.schema.types == [
        pa.string(),
        pa.string(),
        pa.string(),
        pa.list_(pa.string()),
        pa.list_(pa.float32(), 2),
        pa.binary(),
    ]
    assert rows_of(source) == [*TABLE.to_pylist(), *TABLE.slice(1).to_pylist()]
    assert rows_of(source, ["view"]) == [
        *TABLE.select(["view"]).to_pylist(),
        *TABLE.select(["view"]).slice(1).to_pylist(),
    ]


@pytest.mark.parametrize("codec", ["uncompressed", "lz4", "zstd"])
def test_files_of_polars_are_read(tmp_path: Path, codec: Any) -> None:
    frame = pl.DataFrame(
        {
            "text": ["a", None, "long enough to lie outside its view"],
            "kind": pl.Series(["x", "y", "x"], dtype=pl.Categorical),
            "tags": [["p", None], [], None],
            "kinds": pl.Series([["x"], None, ["y", "x"]], dtype=pl.List(pl.Categorical)),
            "coded": pl.Series([{"k": "x"}, None, {"k": None}], dtype=pl.Struct({"k": pl.Enum(["x"])})),
            "pairs": pl.Series([["x", "y"], None, ["y", None]], dtype=pl.Array(pl.Categorical, 2)),
            "point": [{"x": 1, "y": "z"}, None, {"x": 2, "y": None}],
        }
    )
    frame.write_ipc(tmp_path / "rows.feather", compression=codec)
    source = open_source(tmp_path / "rows.feather")
    assert rows_of(source) == frame.to_dicts()
    assert rows_of(open_source(source.files[0].uri, limits=Limits(max_cell_bytes=30))) == frame.to_dicts()[:2]
    assert rows_of(open_source(frame)) == frame.to_dicts()


def test_a_dictionary_in_arrow_is_weighed_before_it_is_unpacked(tmp_path: Path) -> None:
    coded = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int8)), pa.array(["x" * 10_000]))
    path = write_ipc(tmp_path / "bomb.arrow", pa.table({"text": coded}).to_batches())
    with pytest.raises(LimitError, match=r"bomb\.arrow: its [\d,]+ bytes decode to more than"):
        list(open_source(path, limits=Limits(decoded_floor=1 << 20)).batches())
    loose = open_source(path)
    assert max(batch.table.nbytes for batch in loose.batches()) <= 16 << 20


@pytest.mark.parametrize("stream", [False, True])
def test_a_compressed_batch_is_refused_by_what_it_says_it_unpacks_to(tmp_path: Path, *, stream: bool) -> None:
    batches = pa.table({"text": ["x" * 4_000_000]}).to_batches()
    path = write_ipc(tmp_path / "rows.arrow", batches, stream=stream, codec="zstd")
    assert path.stat().st_size < 3000
    with pytest.raises(LimitError, match=r"rows\.arrow: its [\d,]+ bytes decode to more than"):
        open_source(path, limits=Limits(decoded_floor=1000))
    with pytest.raises(LimitError, match=r"uncompressed bytes in one row group, more than max_row_group_bytes=100,000"):
        open_source(path, limits=Limits(max_row_group_bytes=100_000))
    with pytest.raises(LimitError, match=r"1 rows in one row group, more than max_row_group_rows=0"):
        open_source(path, limits=Limits(max_row_group_rows=0))
    assert [record.reason for record in refused_by(open_source(path, limits=Limits(max_cell_bytes=1000)))] == [
        "too_large"
    ]


def test_offsets_that_point_outside_their_buffer_refuse_the_file(tmp_path: Path) -> None:
    path = write_ipc(tmp_path / "rows.arrow", pa.table({"text": ["abc", "de"]}).to_batches())
    offsets = struct.pack("<iii", 0, 3, 5)
    data = path.read_bytes()
    assert data.count(offsets) == 1
    write(path, data.replace(offsets, struct.pack("<iii", 0, 3, 1 << 30)))
    with pytest.raises(SourceError, match=r"rows\.arrow is damaged: .*offset"):
        list(open_source(path).batches())


def test_text_that_is_not_utf8_refuses_its_row(tmp_path: Path) -> None:
    for kind in (pa.string(), pa.string_view(), pa.large_string()):
        raw = pa.array([b"fine", b"caf\xe9", None], pa.binary_view() if kind == pa.string_view() else None)
        column = (raw if kind != pa.large_string() else raw.cast(pa.large_binary())).view(kind)
        path = write_ipc(tmp_path / "rows.arrow", pa.table({"text": column, "n": [0, 1, 2]}).to_batches())
        source = open_source(path)
        assert [row["n"] for row in rows_of(source)] == [0, 2]
        (refused,) = refused_by(source)
        assert (refused.row, refused.content) == (2, b"caf\xe9")
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array([b"a", b"\xff"]).view(pa.string()))
    path = write_ipc(tmp_path / "coded.arrow", pa.table({"text": coded}).to_batches())
    assert [record.row for record in refused_by(open_source(path))] == [2]


def test_types_that_rows_cannot_hold_on_to_are_refused(tmp_path: Path) -> None:
    runs = pa.RunEndEncodedArray.from_arrays([3], ["x"])
    path = write_ipc(tmp_path / "runs.arrow", pa.table({"a": runs}).to_batches())
    with pytest.raises(
        SourceError, match=r"runs\.arrow: column 'a' is of type run_end_encoded.*, which cannot be read"
    ):
        open_source(path)


def test_what_is_no_arrow_is_said_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"old\.feather is Feather version 1"):
        open_source(write(tmp_path / "old.feather", b"FEA1" + b"\0" * 100))
    with pytest.raises(SourceError, match=r"text\.arrow cannot be read; it is truncated, damaged or gone"):
        open_source(write(tmp_path / "text.arrow", b"this is no Arrow at all, but text of some length"))
    with pytest.raises(SourceError, match=r"tail\.arrow cannot be read; .*: it does not end in a footer"):
        open_source(write(tmp_path / "tail.arrow", b"ARROW1" + b"\0" * 100))


def test_damaged_messages_never_crash_the_survey(tmp_path: Path) -> None:
    whole = write_ipc(tmp_path / "rows.arrow", TABLE.to_batches(), codec="lz4").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 4):
            data[place] = int(rng.integers(0, 256))
        path = write(tmp_path / "damaged.arrow", bytes(data))
        with suppress(SourceError, LimitError):
            rows_of(open_source(path))
