"""Canonical shards are the same for any cut, order and format of the source; bad rows are refused with their reason."""

from __future__ import annotations

import json
from datetime import date
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapipe.errors import ColumnError, RowIdError, SourceError
from datapipe.storage import roles
from datapipe.storage.ingest import IngestSpec, ingest
from datapipe.storage.rowid import content_digests, ids_to_hex
from datapipe.storage.source import Limits, open_source
from datapipe.storage.stage import StageDir, StageIdentity, StageStore
from datapipe.storage.vectors import VectorInfo, decode, vector_info

TEXT = IngestSpec(text_column="text")


def stage_in(folder: Path) -> StageDir:
    return StageStore(folder / "stages").open(StageIdentity(name="ingest", version=1, config={}))


def run(source: Any, folder: Path, spec: IngestSpec = TEXT, **options: Any) -> tuple[dict[str, Any], StageDir]:
    out = stage_in(folder)
    return ingest(open_source(source, **options), out, spec=spec, scratch=folder / "scratch"), out


def shards(out: StageDir, family: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(out.path.glob(f"{family}-*.parquet"))]


def table(out: StageDir, family: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.path.glob(f"{family}-*.parquet"))])


def refused(out: StageDir) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out.path / "rejected.parquet").to_pylist()
    return found


def test_rows_get_ids_and_places_and_stand_in_the_order_of_their_ids(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": ["b", "a", "b"], "label": [1, 2, 1], "more": [0.5, None, 0.5]})
    facts, out = run(frame, tmp_path, IngestSpec(text_column="text", label_column="label", group_column="label"))
    assert facts == {
        "rows_in": 3,
        "accepted": 3,
        "rejected": {},
        "duplicates": 1,
        "shards": 1,
        "dim": None,
        "classes": 2,
        "text_bytes": 3,
    }
    rows, places = table(out, "rows"), table(out, "places")
    assert rows.column_names == ["row_id", "text", "label", "group"]
    assert places.schema.types == [pa.binary(16), pa.int32(), pa.int64()]
    assert rows["row_id"].to_pylist() == sorted(rows["row_id"].to_pylist())
    assert places["row_id"].equals(rows["row_id"])
    found = {place["row_id"]: (place["file"], place["row"]) for place in places.to_pylist()}
    digests = [bytes.fromhex(name) for name in ids_to_hex(content_digests(frame.to_arrow()))]
    assert found[digests[0]] == (0, 1)  # of identical rows the first one keeps the digest
    assert found[digests[1]] == (0, 2)
    assert sorted(found.values()) == [(0, 1), (0, 2), (0, 3)]
    assert sorted(zip(rows["text"].to_pylist(), rows["label"].to_pylist(), strict=True)) == [
        ("a", "2"),
        ("b", "1"),
        ("b", "1"),
    ]
    assert not (tmp_path / "scratch" / "rows").exists()


@settings(max_examples=10)
@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(1, 59), max_size=4), rows=st.sampled_from([20, 60]))
def test_rows_shards_do_not_depend_on_cut_or_order(seed: int, cuts: list[int], rows: int) -> None:
    values = [{"text": f"row {i}", "v": [float(i), 1.0], "label": i % 3 or None} for i in [*range(40), *range(20)]]
    schema = pa.schema([("text", pa.string()), ("v", pa.list_(pa.float32())), ("label", pa.int8())])
    spec = IngestSpec(text_column="text", vector_column="v", label_column="label", shard_rows=rows)
    shuffled = [values[i] for i in np.random.default_rng(seed).permutation(60)]
    with TemporaryDirectory() as one, TemporaryDirectory() as two:
        pq.write_table(pa.Table.from_pylist(values, schema), Path(one) / "0.parquet")
        for i, (a, b) in enumerate(pairwise([0, *sorted(set(cuts)), 60])):
            pq.write_table(pa.Table.from_pylist(shuffled[a:b], schema), Path(two) / f"{i}.parquet")
        facts, first = run(sorted(Path(one).glob("*.parquet")), Path(one), spec)
        again, second = run(sorted(Path(two).glob("*.parquet")), Path(two), spec)
        assert facts == again
        assert shards(first, "rows") == shards(second, "rows")
        assert facts["duplicates"] == 20
        assert rows * facts["shards"] >= 60


def test_parquet_csv_and_jsonl_of_the_same_rows_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(data / "banking77.parquet").select("text", "label", "label_name").head(300)
    frame.write_parquet(tmp_path / "rows.parquet", row_group_size=70)
    frame.write_csv(tmp_path / "rows.csv")
    frame.write_ndjson(tmp_path / "rows.jsonl")
    frame.with_columns(pl.col("label_name").cast(pl.Categorical)).write_ipc(tmp_path / "rows.arrow")
    spec = IngestSpec(text_column="text", label_column="label_name", shard_rows=64)
    found: list[tuple[dict[str, Any], Any]] = []
    for suffix in ("parquet", "csv", "jsonl", "arrow"):
        facts, out = run(tmp_path / f"rows.{suffix}", tmp_path / suffix, spec)
        found.append((facts, shards(out, "rows")))
    assert found[0][0]["shards"] == 8
    assert all(each == found[0] for each in found)


def test_vectors_are_unit_length_in_the_codec_and_say_so(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((50, 6))
    frame = pl.DataFrame({"v": matrix.tolist()})
    facts, out = run(frame, tmp_path, IngestSpec(vector_column="v"))
    rows = table(out, "rows")
    assert facts["dim"] == 6
    assert vector_info(rows.schema.field("vector")) == VectorInfo(dim=6, model="given", digest="", normalised=True)
    found = decode(rows["vector"])
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    order = table(out, "places")["row"].to_numpy() - 1
    assert np.abs(found - unit[order]).max() < 2**-8
    assert (found != found.round(2)).any()


def test_bad_rows_are_refused_with_place_reason_and_content(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "text": "fine", "v": [1.0, 0.0]},
        {"id": 2, "text": None, "v": [1.0, 0.0]},
        {"id": 3, "text": " \t\u00a0\u3000", "v": [1.0, 0.0]},
        {"id": 4, "text": "sixsix", "v": [1.0, 0.0]},
        {"id": 5, "text": "", "v": None},
        {"id": 6, "text": "a", "v": None},
        {"id": 7, "text": "b", "v": [1.0]},
        {"id": 8, "text": "c", "v": [float("inf"), 1.0]},
        {"id": 9, "text": "d", "v": [None, 1.0]},
        {"id": 10, "text": "e", "v": [0.0, -0.0]},
        {"id": 11, "text": "f", "v": []},
        {"id": None, "text": "g", "v": [1.0, 2.0]},
        {"id": 13, "text": "h", "v": [1.0, 2.0], "note": "x" * 41},
        {"id": 14, "text": "fünf5", "v": [2.0, 2.0]},
    ]
    schema = pa.schema(
        [("id", pa.int64()), ("text", pa.string()), ("v", pa.list_(pa.float64())), ("note", pa.string())]
    )
    for name, part in (("a", rows[:5]), ("b", rows[5:])):
        pq.write_table(pa.Table.from_pylist(part, schema), tmp_path / f"{name}.parquet")
    spec = IngestSpec(text_column="text", vector_column="v", id_column="id", max_text_chars=5, max_cell_bytes=40)
    facts, out = run([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path, spec)
    found = refused(out)
    assert [(Path(each["file"]).stem, each["row"], each["reason"]) for each in found] == [
        ("a", 2, "null_text"),
        ("a", 3, "empty_text"),
        ("a", 4, "text_too_long"),
        ("a", 5, "empty_text"),
        ("b", 1, "null_vector"),
        ("b", 2, "wrong_length"),
        ("b", 3, "not_finite"),
        ("b", 4, "not_finite"),
        ("b", 5, "zero_vector"),
        ("b", 6, "wrong_length"),
        ("b", 7, "null_id"),
        ("b", 8, "too_large"),
    ]
    assert found[2]["detail"] == "column 'text' holds 6 characters, more than max_text_chars=5"
    assert found[5]["detail"] == "column 'v' holds 1 numbers, the other rows 2"
    assert found[11]["detail"] == "column 'note' holds a value of more than max_cell_bytes=40"
    assert json.loads(found[5]["content"]) == {"id": 7, "text": "b", "v": [1.0], "note": None}
    assert (facts["rows_in"], facts["accepted"], sum(facts["rejected"].values())) == (14, 2, 12)
    assert facts["rejected"]["not_finite"] == 2
    rows_left = {row["text"]: decode(pa.array([row["vector"]], pa.binary(4))) for row in table(out, "rows").to_pylist()}
    assert {text: vector.round(2).tolist() for text, vector in rows_left.items()} == {
        "fine": [[1.0, 0.0]],
        "fünf5": [[pytest.approx(0.71)] * 2],
    }


def test_records_that_the_source_cannot_read_stand_among_the_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "b"\n{"text": ""}\n{"text": "\xff"}\n{"text": "c"}\n')
    facts, out = run(path, tmp_path, text_columns=["text"])
    assert [(each["row"], each["reason"]) for each in refused(out)] == [
        (2, "undecodable"),
        (3, "empty_text"),
        (4, "undecodable"),
    ]
    assert refused(out)[0]["content"] == b'{"text": "b"'
    assert facts["rows_in"] == 5
    assert facts["rejected"] == {"empty_text": 1, "undecodable": 2}
    assert table(out, "places").sort_by("row")["row"].to_pylist() == [1, 5]


def test_content_is_cut_and_what_json_does_not_know_is_spelled_out(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": ["", "ok"], "raw": [b"\x00\xff", None], "long": ["y" * 100_000, None]})
    _, out = run(frame, tmp_path)
    content = refused(out)[0]["content"]
    assert content.startswith(b'{"text": "", "raw": "00ff", "long": "yyy')
    assert len(content) == 64 << 10


@pytest.mark.parametrize("lengths", [[3, 2, 2, 2], [2, 2, 2, 3], [2, 3, 3, 2, 2]], ids=str)
def test_the_length_that_most_vectors_have_is_the_right_one_in_any_order(tmp_path: Path, lengths: list[int]) -> None:
    frame = pl.DataFrame({"v": [[1.0 + i] * length for i, length in enumerate(lengths)]})
    ticks: list[int] = []
    out = stage_in(tmp_path)
    spec = IngestSpec(vector_column="v")
    facts = ingest(open_source(frame), out, spec=spec, scratch=tmp_path / "scratch", progress=ticks.append)
    assert facts["dim"] == 2
    assert facts["rejected"] == {"wrong_length": lengths.count(3)}
    assert sum(ticks) == len(lengths)


def test_equally_common_lengths_go_to_the_longer_one(tmp_path: Path) -> None:
    frame = pl.DataFrame({"v": [[1.0], [1.0, 2.0], [1.0, 2.0], [2.0]]})
    assert run(frame, tmp_path, IngestSpec(vector_column="v"))[0]["dim"] == 2


def test_rows_named_by_a_column_keep_their_ids_when_the_rest_changes(tmp_path: Path) -> None:
    spec = IngestSpec(text_column="text", id_column="id")
    _, first = run(pl.DataFrame({"id": [7, 8], "text": ["a", "b"]}), tmp_path / "a", spec)
    _, second = run(pl.DataFrame({"id": [8, 7], "text": ["x", "y"]}), tmp_path / "b", spec)
    assert table(first, "rows")["row_id"].equals(table(second, "rows")["row_id"])


def test_an_id_that_stands_twice_is_named_with_both_places(tmp_path: Path) -> None:
    for name, ids in (("a", ["x", "y", "z"]), ("b", ["u", "y"])):
        pl.DataFrame({"id": ids, "text": ids}).write_parquet(tmp_path / f"{name}.parquet")
    spec = IngestSpec(text_column="text", id_column="id")
    with pytest.raises(
        RowIdError, match=r"id column 'id' is not unique: 'y' stands in .*a\.parquet row 2 and .*b\.parquet row 2;"
    ):
        run([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path, spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"text_column": "nope"},
            "text column 'nope' is not in the source; its columns are text, n, v, odd, empty, nulls, row",
        ),
        ({"text_column": "n"}, "text column 'n' is int64; it must hold strings"),
        ({"text_column": "empty"}, "text column 'empty' holds nothing but nulls"),
        ({"text_column": "nulls"}, "column 'nulls' holds nothing but nulls; name another column, or none"),
        ({"text_column": "text", "label_column": "nulls"}, "column 'nulls' holds nothing but nulls"),
        (
            {"text_column": "text", "label_column": "v"},
            "label column 'v' is list<.*>; it must hold strings, numbers or times",
        ),
        (
            {"vector_column": "text"},
            "vector column 'text': vectors are lists of numbers, or bfloat16 .* this column is string",
        ),
        ({"vector_column": "odd"}, "vector column 'odd': column 'odd' holds no encoded vectors: it lacks dtype"),
    ],
    ids=str,
)
def test_columns_that_cannot_play_their_role_are_refused(tmp_path: Path, spec: dict[str, Any], message: str) -> None:
    rows = pa.table(
        {
            "text": ["a"],
            "n": [1],
            "v": [[1.0]],
            "odd": pa.array([b"ab"], pa.binary(2)),
            "empty": pa.nulls(1),
            "nulls": pa.nulls(1, pa.string()),
            "row": [1],
        }
    )
    pq.write_table(rows, tmp_path / "rows.parquet")
    with pytest.raises(ColumnError, match=message):
        run(tmp_path / "rows.parquet", tmp_path, IngestSpec(**spec))


def test_a_row_id_column_of_another_type_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ColumnError, match="column 'row_id' of the source is int64; rename it"):
        run(pl.DataFrame({"text": ["a"], "row_id": [1]}), tmp_path)


def test_a_source_without_a_usable_row_tells_why(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": ["", " ", None]})
    with pytest.raises(SourceError, match=r"can be used: all 3 rows are refused \(2 empty_text, 1 null_text\)"):
        run(frame, tmp_path)
    assert list(stage_in(tmp_path).path.iterdir()) == []


def test_labels_are_text_whatever_their_type_and_too_many_are_no_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pl.DataFrame({"text": list("abcd"), "truth": [True, False, None, True], "day": [date(2024, 1, 2)] * 4})
    facts, out = run(frame, tmp_path / "a", IngestSpec(text_column="text", label_column="truth", group_column="day"))
    assert facts["classes"] == 2
    assert set(table(out, "rows")["label"].to_pylist()) == {"true", "false", None}
    assert set(table(out, "rows")["group"].to_pylist()) == {"2024-01-02"}
    monkeypatch.setattr(roles, "MAX_CLASSES", 3)
    facts, _ = run(frame, tmp_path / "b", IngestSpec(text_column="text", label_column="text"))
    assert facts["classes"] is None


def test_large_rows_make_more_shards_and_ranges_may_be_empty(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": [f"{i}" * 500 for i in range(9)]})
    facts, out = run(frame, tmp_path, IngestSpec(text_column="text", shard_bytes=300))
    assert facts["shards"] == 16
    sizes = [pq.read_metadata(path).num_rows for path in sorted(out.path.glob("rows-*.parquet"))]
    assert sum(sizes) == 9
    assert 0 in sizes
    for index, path in enumerate(sorted(out.path.glob("rows-*.parquet"))):
        assert all(value[0] >> 4 == index for value in pq.read_table(path)["row_id"].to_pylist())


def test_shards_that_are_there_are_not_made_again_and_the_rest_is_the_same(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": [f"row {i % 90}" for i in range(100)] + [""]})
    spec = IngestSpec(text_column="text", shard_rows=30)
    facts, out = run(frame, tmp_path, spec)
    before = {path.name: path.read_bytes() for path in out.path.iterdir()}
    kept = {path.name: path.stat().st_mtime_ns for path in out.path.iterdir()}
    for name in ("rows-00001.parquet.json", "places-00002.parquet", "rejected.parquet"):
        (out.path / name).unlink()
    assert run(frame, tmp_path, spec)[0] == facts
    assert {path.name: path.read_bytes() for path in out.path.iterdir()} == before
    assert (out.path / "rows-00000.parquet").stat().st_mtime_ns == kept["rows-00000.parquet"]
    assert (out.path / "rows-00001.parquet").stat().st_mtime_ns > kept["rows-00001.parquet"]


def test_a_run_that_is_stopped_ends_its_reader_and_leaves_no_scratch(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    frame = pl.DataFrame({"text": [str(i) for i in range(10)]})
    with pytest.raises(KeyboardInterrupt):
        ingest(open_source(frame), stage_in(tmp_path), spec=TEXT, scratch=tmp_path / "scratch", progress=stop)
    assert not (tmp_path / "scratch").exists()


def test_limits_of_the_source_refuse_rows_too(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": ["short", "l" * 5_000]})
    facts, out = run(frame, tmp_path, limits=Limits(max_cell_bytes=1_000))
    assert facts["rejected"] == {"too_large": 1}
    assert refused(out)[0]["row"] == 2
