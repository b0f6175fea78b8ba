"""The kept rows come back with their own columns, in the order of their ids, whatever the cut of the source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import ColumnError, SourceError, StageError
from datapipe.storage import export as module
from datapipe.storage.export import export, kept_schema
from datapipe.storage.ingest import IngestSpec, ingest
from datapipe.storage.refused import place_keys
from datapipe.storage.sort import ExternalSorter
from datapipe.storage.source import open_source
from datapipe.storage.stage import StageDir, StageIdentity, StageStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROWS = pa.table(
    {
        "text": [f"row {i}" for i in range(200)],
        "score": [i / 7 if i % 3 else None for i in range(200)],
        "tags": [[f"t{i % 5}"] * (i % 3) for i in range(200)],
        "about": [{"n": i, "s": None} for i in range(200)],
    },
    schema=pa.schema(
        [
            ("text", pa.string()),
            ("score", pa.float32()),
            ("tags", pa.list_(pa.string())),
            ("about", pa.struct([("n", pa.int16()), ("s", pa.string())])),
        ]
    ),
)
KEPT = "kept.parquet"


class Run:
    """A source that was ingested into a folder of its own."""

    def __init__(self, source: Any, folder: Path, *, shard_rows: int = 60) -> None:
        self.folder = folder
        self.source = open_source(source)
        self.out: StageDir = StageStore(folder / "stages").open(StageIdentity(name="any", version=1, config={}))
        spec = IngestSpec(text_column="text", shard_rows=shard_rows)
        self.shards = ingest(self.source, self.out, spec=spec, scratch=folder / "scratch")["shards"]

    def places(self) -> Iterator[pa.Table]:
        return (pq.read_table(self.out.path / f"places-{i:05d}.parquet") for i in range(self.shards))

    def export(self, chosen: Callable[[bytes], bool], **changes: Any) -> pa.Table:
        kept = (
            pa.table({"row_id": part["row_id"], "kept": [chosen(row_id) for row_id in part["row_id"].to_pylist()]})
            for part in self.places()
        )
        arguments = {
            "places": self.places(),
            "kept": kept,
            "out": self.out,
            "scratch": self.folder / "scratch",
            **changes,
        }
        self.info = export(arguments.pop("source", self.source), **arguments)
        return pq.read_table(self.out.path / KEPT)


def written(table: pa.Table, folder: Path, files: int = 1) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-table.num_rows // files)
    paths = [folder / f"{i}.parquet" for i in range(files)]
    for i, path in enumerate(paths):
        pq.write_table(table.slice(i * size, size), path)
    return paths


def even(row_id: bytes) -> bool:
    return row_id[15] % 2 == 0


def test_kept_rows_have_their_own_columns_and_stand_in_the_order_of_their_ids(tmp_path: Path) -> None:
    run = Run(written(ROWS, tmp_path / "in"), tmp_path)
    found = run.export(even)
    ids = found["row_id"].to_pylist()
    assert found.column_names == ["row_id", "text", "score", "tags", "about"]
    assert found.schema.field("about").type == ROWS.schema.field("about").type
    assert ids == sorted(row_id for part in run.places() for row_id in part["row_id"].to_pylist() if even(row_id))
    assert 0 < len(ids) < 200
    places = {each["row_id"]: each["row"] for part in run.places() for each in part.to_pylist()}
    expected = ROWS.take([places[row_id] - 1 for row_id in ids])
    assert found.drop_columns("row_id").equals(expected)
    assert run.info.rows == len(ids)
    assert not (tmp_path / "scratch" / "rows").exists()


@pytest.mark.parametrize("files", [1, 7])
def test_the_bytes_do_not_depend_on_cut_order_or_memory(
    tmp_path: Path, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(written(ROWS, tmp_path / "in"), tmp_path / "one").export(even)
    monkeypatch.setattr(module, "_PLACES_MEMORY", 400)
    monkeypatch.setattr(module, "ExternalSorter", lambda path, **_: ExternalSorter(path, memory_bytes=3_000))
    shuffled = ROWS.take(np.random.default_rng(files).permutation(200))
    Run(written(shuffled, tmp_path / "shuffled", files), tmp_path / "two", shard_rows=17).export(even)
    first, second = (next((tmp_path / name).rglob(KEPT)).read_bytes() for name in ("one", "two"))
    assert first == second


@pytest.mark.parametrize(("choice", "rows"), [(lambda _: True, 200), (lambda _: False, 0)], ids=["all", "none"])
def test_all_or_none_may_be_kept(tmp_path: Path, choice: Callable[[bytes], bool], rows: int) -> None:
    found = Run(written(ROWS, tmp_path / "in", 3), tmp_path).export(choice)
    assert found.num_rows == rows
    assert found.column_names[0] == "row_id"


def test_identical_rows_are_kept_one_by_one(tmp_path: Path) -> None:
    run = Run(pl.DataFrame({"text": ["same"] * 6}), tmp_path)
    some = sorted(row_id for part in run.places() for row_id in part["row_id"].to_pylist())[:4]
    found = run.export(lambda row_id: row_id in some)
    assert found.to_pylist() == [{"row_id": row_id, "text": "same"} for row_id in some]


def test_refused_rows_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\nbroken\n{"text": ""}\n{"text": "b"}\n')
    found = Run(path, tmp_path).export(lambda _: True)
    assert sorted(found["text"].to_pylist()) == ["a", "b"]


def test_large_rows_come_in_smaller_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GROUP_BYTES", 2_000)
    frame = pl.DataFrame({"text": [f"{i:03d}" * 30 for i in range(100)]})
    run = Run(frame, tmp_path)
    run.export(lambda _: True)
    metadata = pq.read_metadata(run.out.path / KEPT)
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [16] * 6 + [4]  # 106 bytes a row with its id: 16 rows are 1,696 bytes, 32 were too many


def test_a_file_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    run = Run(written(ROWS, tmp_path / "in"), tmp_path)
    run.export(even)
    before = run.info
    run.export(even, source=None, places=[], kept=[])
    assert run.info == before


def test_row_ids_of_an_earlier_run_are_replaced(tmp_path: Path) -> None:
    earlier = pa.table({"row_id": pa.array([b"0" * 16, b"1" * 16], pa.binary(16)), "text": ["a", "b"]})
    run = Run(written(earlier, tmp_path / "in"), tmp_path)
    found = run.export(lambda _: True)
    assert found.column_names == ["row_id", "text"]
    assert found["row_id"].to_pylist() == [row_id for part in run.places() for row_id in part["row_id"].to_pylist()]
    assert not {b"0" * 16, b"1" * 16} & set(found["row_id"].to_pylist())


def test_columns_that_the_file_cannot_hold_are_refused() -> None:
    with pytest.raises(ColumnError, match="column 'row_id' of the source is string; rename it"):
        kept_schema(pa.schema([("row_id", pa.string())]))
    with pytest.raises(ColumnError, match=r"column 'nothing' is struct<>, which Parquet cannot hold; cast it"):
        kept_schema(pa.schema([("text", pa.string()), ("nothing", pa.struct([]))]))


def test_rows_that_have_left_the_source_are_counted(tmp_path: Path) -> None:
    run = Run(written(ROWS, tmp_path / "in"), tmp_path)
    shorter = open_source(written(ROWS.slice(0, 150), tmp_path / "shorter"))
    with pytest.raises(SourceError, match="50 of 200 kept rows are no longer in the source: it has changed since"):
        run.export(lambda _: True, source=shorter)
    assert not (run.out.path / KEPT).exists()


def test_tables_that_are_not_aligned_are_refused(tmp_path: Path) -> None:
    run = Run(written(ROWS, tmp_path / "in"), tmp_path)
    kept = [pa.table({"row_id": part["row_id"][::-1], "kept": [True] * part.num_rows}) for part in run.places()]
    with pytest.raises(StageError, match="places and kept are not aligned"):
        run.export(even, kept=kept)


@given(places=st.lists(st.tuples(st.integers(0, 2**24 - 1), st.integers(0, 2**40 - 1)), max_size=9))
def test_places_sort_by_file_and_row(places: list[tuple[int, int]]) -> None:
    files, rows = np.array(places, np.int64).reshape(-1, 2).T
    keys = place_keys(files.astype(np.int32), rows).tolist()
    assert [places[i] for i in sorted(range(len(places)), key=lambda i: keys[i])] == sorted(places)
    assert len(set(keys)) == len(set(places))
