"""A set is read as it is, sampled the same everywhere, and refused by file, row and column where it is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datapipe.errors import ColumnError, ConfigError, SourceError
from provence.evaluation.sets import read_examples, splits_of
from tests.provence.evaluation.rows import row, written

if TYPE_CHECKING:
    from pathlib import Path


def test_a_row_becomes_a_question_with_its_sentences(tmp_path: Path) -> None:
    (found,) = read_examples(written(tmp_path / "set.parquet", [row()]))
    sentences = [found.context[start:end] for start, end in zip(found.starts, found.ends, strict=True)]
    assert sentences == ["It rained.", "Anna came."]
    assert found.relevant.tolist() == [False, True]
    assert (found.id, found.question, found.title, found.answers) == ("q1", "Who came?", "Visits", ("Anna",))
    assert found.answerable


def test_every_row_of_the_shipped_set_is_read_as_the_file_has_it(data: Path) -> None:
    path = data / "squad20_dev.parquet"
    rows = pq.read_table(path).to_pylist()
    found = read_examples(path)
    assert len(found) == len(rows)
    for example, expected in zip(found[::97], rows[::97], strict=True):
        assert (example.id, example.context) == (expected["id"], expected["context"])
        assert example.starts.tolist() == expected["sent_start"]
        assert example.ends.tolist() == expected["sent_end"]
        assert example.relevant.tolist() == [bool(value) for value in expected["relevant"]]
        assert list(example.answers) == expected["answers"]


def test_a_split_holds_its_own_rows_and_sentences(data: Path) -> None:
    path = data / "squad20_dev.parquet"
    tests = [line for line in pq.read_table(path).to_pylist() if line["split"] == "test"]
    found = read_examples(path, split="test")
    assert len(found) == splits_of(path)["test"] == len(tests)
    assert [each.id for each in found] == [line["id"] for line in tests]
    assert all(each.starts.tolist() == line["sent_start"] for each, line in zip(found, tests, strict=True))


def test_a_smaller_sample_lies_inside_a_larger_one_in_the_order_of_the_file(data: Path) -> None:
    path = data / "squad20_dev.parquet"
    order = {each.id: place for place, each in enumerate(read_examples(path))}
    small, large = (read_examples(path, limit=limit) for limit in (40, 400))
    assert [len(small), len(large)] == [40, 400]
    assert {each.id for each in small} <= {each.id for each in large}
    places = [order[each.id] for each in large]
    assert places == sorted(places)
    assert {each.id for each in read_examples(path, limit=40, seed=1)} != {each.id for each in small}


def test_other_columns_and_integer_widths_do_not_matter(tmp_path: Path) -> None:
    rows = [row(note="x"), row(id="q2", sent_start=[0], sent_end=[10], relevant=[0], answers=[])]
    wide = pa.Table.from_pylist(rows)
    narrow = wide.set_column(7, "relevant", wide["relevant"].cast(pa.list_(pa.int8())))
    pq.write_table(narrow, tmp_path / "set.parquet", row_group_size=1)
    assert [each.starts.size for each in read_examples(tmp_path / "set.parquet")] == [2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sent_end": [10, 22]}, r"row 1, column sent_end: each sentence must end .* context of 21 characters"),
        ({"sent_end": [0, 21]}, r"row 1, column sent_end: each sentence must end after it begins"),
        ({"sent_end": [12, 21]}, r"row 1, column sent_start: sentences must lie in order"),
        ({"sent_start": [-1, 11]}, r"row 1, column sent_start: .* begin at 0"),
        ({"sent_end": [10]}, r"row 1, column sent_end: 2 starts, 1 ends, 2 labels"),
        ({"relevant": [0, 3]}, r"row 1, column relevant: must be 0 or 1. Got 3"),
        ({"relevant": [0, None]}, r"row 1, column relevant: holds a null"),
        ({"answers": ["Anna", None]}, r"row 1, column answers: holds a null"),
        ({"question": None}, r"row 1, column question: is null, must be text"),
        ({"sent_start": None}, r"row 1, column sent_start: is null, must be a list of whole numbers"),
    ],
)
def test_a_wrong_row_is_refused_with_file_row_and_column(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "set.parquet", [row(), row(id="q2") | changes])
    with pytest.raises(SourceError, match=rf"set\.parquet, {message}"):
        read_examples(path)


def test_the_row_of_an_error_counts_all_rows_of_the_file_not_those_of_the_split(tmp_path: Path) -> None:
    rows = [row(split="train"), row(), row(split="train"), row(relevant=[0, 7])]
    with pytest.raises(SourceError, match="row 3, column relevant"):
        read_examples(written(tmp_path / "set.parquet", rows), split="test")


def test_a_missing_or_mistyped_column_is_refused_with_the_columns_there_are(tmp_path: Path) -> None:
    without = {name: value for name, value in row().items() if name != "relevant"}
    with pytest.raises(ColumnError, match=r"no column relevant\. It has id, split"):
        read_examples(written(tmp_path / "set.parquet", [without]))
    with pytest.raises(ColumnError, match=r"no column split, title, context, .* It has id, question"):
        read_examples(written(tmp_path / "set.parquet", [{"id": "q1", "question": "Who came?"}]))
    with pytest.raises(ColumnError, match=r"column context must hold text\. It is of type int64"):
        read_examples(written(tmp_path / "set.parquet", [row(context=3)]))
    with pytest.raises(ColumnError, match=r"column sent_start must hold a list of whole numbers\. It is of type list"):
        read_examples(written(tmp_path / "set.parquet", [row(sent_start=["0", "11"])]))


def test_files_that_are_none_and_splits_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.parquet: no such file"):
        read_examples(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no table", encoding="utf-8")
    with pytest.raises(SourceError, match=r"text\.parquet: not a readable Parquet file"):
        read_examples(tmp_path / "text.parquet")
    path = written(tmp_path / "set.parquet", [row()])
    with pytest.raises(SourceError, match=r"no row of split 'dev'. It has \{'test': 1\}"):
        read_examples(path, split="dev")
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        read_examples(path, limit=0)
