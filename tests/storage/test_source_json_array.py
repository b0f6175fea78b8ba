"""One JSON array reads as JSON Lines do, however it is laid out and wherever a read ends."""

from __future__ import annotations

import gzip
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.storage.formats.json_array import ArrayLines
from datapipe.storage.source import Rejected, open_source

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"a": 'x, [y] {z} "q" \\', "n": [1, 2]}, {"a": "two\nlines", "n": None}, {"a": "", "n": []}]

_VALUES = st.recursive(
    st.one_of(st.integers(), st.text(max_size=6), st.sampled_from(["\\", '\\\\"', "],[", "\n"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def lines(text: str, *, size: int) -> list[Any]:
    stream, read = ArrayLines(io.BytesIO(text.encode())), b""
    while piece := stream.read(size):
        read += piece
    assert len(read) == len(text.encode())
    return [json.loads(line) for line in read.split(b"\n") if line.strip()]


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), _VALUES, max_size=3), min_size=1, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    size=st.integers(1, 40),
    plain=st.booleans(),
)
def test_every_element_is_a_line_of_its_own(rows: list[Any], indent: int | None, size: int, plain: bool) -> None:  # noqa: FBT001
    assert lines(json.dumps(rows, indent=indent, ensure_ascii=plain) + "\n", size=size) == rows


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_an_array_reads_as_its_lines_do(tmp_path: Path, suffix: str) -> None:
    text = "\ufeff  " + json.dumps(ROWS, indent=2) + "\n"
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    array, plain = open_source(path), open_source(tmp_path / "rows.jsonl")
    assert array.schema == plain.schema
    found = list(array.batches())
    assert [row for batch in found for row in batch.table.to_pylist()] == ROWS
    assert [row for batch in plain.batches() for row in batch.table.to_pylist()] == ROWS
    assert [row for batch in found for row in batch.rows.tolist()] == [0, 1, 2]


def test_elements_that_are_no_records_are_rejected_by_their_place(tmp_path: Path) -> None:
    text = '[{"a": 1},\n 7,\n {"a": "broken\nstring"}, {"a": 2}, {"b" 3}, {"a": 4}] tail'
    (tmp_path / "rows.json").write_text(text)
    rejected: list[Rejected] = []
    tables = [batch.table for batch in open_source(tmp_path / "rows.json").batches(rejected=rejected.append)]
    assert [row["a"] for table in tables for row in table.to_pylist()] == [1, 2]
    assert [each.row for each in rejected] == [2, 3, 5, 6]
    assert "a number, no JSON object" in rejected[0].detail


def test_an_array_that_was_cut_off_loses_its_last_element_only(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"a": 1}, {"a": 2}, {"a": 3')
    rejected: list[Rejected] = []
    (batch,) = open_source(tmp_path / "rows.json").batches(rejected=rejected.append)
    assert batch.table["a"].to_pylist() == [1, 2]
    assert [each.row for each in rejected] == [3]
