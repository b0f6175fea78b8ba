"""The external sorter equals a stable sort in memory, for any batches and any memory."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import OutputError
from datapipe.storage.sort import END, ExternalSorter, equal_ranges, regrouped

if TYPE_CHECKING:
    from collections.abc import Sequence

# high words: few and equal, or anything, with both ends of the range among them
highs = st.one_of(st.integers(0, 3), st.sampled_from([0, 2**63, END - 1]), st.integers(0, END - 1))
keys = st.lists(st.tuples(highs, st.integers(0, 2)), max_size=60)


def rows_of(count: int) -> pa.Table:
    return pa.table({"at": np.arange(count), "text": ["x" * (i % 7) if i % 5 else None for i in range(count)]})


def add_in_pieces(sorter: ExternalSorter, rows: list[tuple[int, int]], step: int) -> pa.Table:
    words = np.array(rows, np.uint64).reshape(-1, 2)
    table = rows_of(len(rows))
    for start in range(0, len(rows), step):
        stop = start + step
        sorter.add(words[start:stop, 0], words[start:stop, 1], table.slice(start, step))
    return table


def stable_order(rows: list[tuple[int, int]]) -> list[int]:
    words = np.array(rows, np.uint64).reshape(-1, 2)
    found: list[int] = np.lexsort((words[:, 1], words[:, 0])).tolist()
    return found


def positions(tables: Sequence[pa.Table]) -> list[int]:
    return [at for table in tables for at in table["at"].to_pylist()]


def test_rows_come_back_in_the_order_of_their_keys(tmp_path: Path) -> None:
    with ExternalSorter(tmp_path / "sort") as sorter:
        sorter.add(np.array([5, 1], np.uint64), np.array([0, 0], np.uint64), pa.table({"name": ["e", "a"]}))
        sorter.add(np.array([1, 3], np.uint64), np.array([9, 0], np.uint64), pa.table({"name": ["b", "c"]}))
        assert [table["name"].to_pylist() for table in sorter.sorted_tables([2, 4])] == [["a", "b"], ["c"], ["e"]]


@given(
    rows=keys,
    step=st.integers(1, 20),
    memory=st.sampled_from([1, 300, 2_000, 1 << 20]),
    bounds=st.lists(highs, max_size=5),
    hint=st.integers(1, 40),
)
def test_it_is_a_stable_sort_for_any_batches_and_memory(
    rows: list[tuple[int, int]], step: int, memory: int, bounds: list[int], hint: int
) -> None:
    expected = stable_order(rows)
    cuts = sorted(bounds)
    with TemporaryDirectory() as folder, ExternalSorter(Path(folder) / "sort", memory_bytes=memory) as sorter:
        table = add_in_pieces(sorter, rows, step)
        ranges = list(sorter.sorted_tables(cuts))
        assert len(ranges) == len(cuts) + 1
        if rows:
            assert pa.concat_tables(ranges).equals(table.take(expected))
            for low, high, part in zip([0, *cuts], [*cuts, END], ranges, strict=True):
                assert all(low <= rows[at][0] < high for at in positions([part]))
            found = list(sorter.sorted_tables(rows_hint=hint))
            assert positions(found) == expected
            assert all(part.num_rows for part in found)


@given(rows=keys, low=highs, high=st.one_of(highs, st.just(END)), memory=st.sampled_from([1, 500]))
def test_ranges_can_be_read_in_any_order_with_their_keys(
    rows: list[tuple[int, int]], low: int, high: int, memory: int
) -> None:
    with TemporaryDirectory() as folder, ExternalSorter(Path(folder) / "sort", memory_bytes=memory) as sorter:
        add_in_pieces(sorter, rows, 7)
        for a, b in [(low, high), (0, END), (low, high)]:
            words, part = sorter.read_range(a, b)
            wanted = [at for at in stable_order(rows) if a <= rows[at][0] < b]
            assert words.tolist() == [list(rows[at]) for at in wanted]
            assert not wanted or positions([part]) == wanted


def test_what_fits_in_memory_leaves_no_file_and_what_does_not_leaves_none_behind(tmp_path: Path) -> None:
    rows = [(i * 7919 % 100, 0) for i in range(100)]
    with ExternalSorter(tmp_path / "small") as sorter:
        add_in_pieces(sorter, rows, 10)
        list(sorter.sorted_tables())
        assert not (tmp_path / "small").exists()
    with ExternalSorter(tmp_path / "large", memory_bytes=1_000) as sorter:
        add_in_pieces(sorter, rows, 10)
        assert (tmp_path / "large" / "runs.arrow").stat().st_size > 1_000
        assert positions(list(sorter.sorted_tables())) == stable_order(rows)
    assert list(tmp_path.iterdir()) == []


def test_sampled_ranges_have_about_the_rows_that_were_hinted_at(tmp_path: Path) -> None:
    rows = [(i * 0x9E3779B97F4A7C15 % END, 0) for i in range(5_000)]
    with ExternalSorter(tmp_path / "sort", memory_bytes=40_000) as sorter:
        add_in_pieces(sorter, rows, 500)
        sizes = [table.num_rows for table in sorter.sorted_tables(rows_hint=500)]
    assert sum(sizes) == 5_000
    assert 400 <= np.mean(sizes) <= 700
    assert max(sizes) <= 1_000


def test_nothing_added_is_nothing_sorted(tmp_path: Path) -> None:
    with ExternalSorter(tmp_path / "sort") as sorter:
        assert [table.num_rows for table in sorter.sorted_tables([5])] == [0, 0]
        assert list(sorter.sorted_tables()) == []
        assert sorter.range_count(rows=10, nbytes=10) == 1


def test_columns_of_any_type_are_sorted_and_coded_ones_come_back_plain(tmp_path: Path) -> None:
    columns = {
        "coded": pa.array(["b", "a", None]).dictionary_encode(),
        "view": pa.array(["b", "a", None], pa.string_view()),
        "list": pa.array([[1.0], None, []], pa.list_(pa.float32())),
        "fixed": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
        "struct": pa.array([{"a": "x"}, None, {"a": None}]),
        "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        "null": pa.nulls(3),
        "truth": pa.array([True, None, False]),
    }
    table = pa.table(columns)
    for memory in (1, 1 << 20):
        with ExternalSorter(tmp_path / "sort", memory_bytes=memory) as sorter:
            sorter.add(np.array([2, 1, 0], np.uint64), np.zeros(3, np.uint64), table)
            found = pa.concat_tables(sorter.sorted_tables([1, 2]))
        assert found.to_pylist() == table.to_pylist()[::-1]
        assert found.schema.field("coded").type == pa.string()


@given(rows=keys, step=st.integers(1, 20), other=st.integers(1, 20))
def test_the_number_of_ranges_does_not_depend_on_the_cut(rows: list[tuple[int, int]], step: int, other: int) -> None:
    counts = []
    for size in (step, other):
        with TemporaryDirectory() as folder, ExternalSorter(Path(folder) / "sort") as sorter:
            add_in_pieces(sorter, rows, size)
            counts.append((sorter.range_count(rows=8, nbytes=1 << 20), sorter.range_count(rows=99, nbytes=64)))
    assert counts[0] == counts[1]
    assert 8 * counts[0][0] >= len(rows)
    assert counts[0][0] == 1 or 8 * (counts[0][0] // 2) < len(rows)


def test_large_rows_make_more_ranges(tmp_path: Path) -> None:
    with ExternalSorter(tmp_path / "sort") as sorter:
        words = np.arange(4, dtype=np.uint64)
        texts = pa.array([["x" * 100, "y" * 100]] * 4, pa.list_(pa.string()))
        sorter.add(words, words, pa.table({"text": texts, "id": np.arange(4)}))
        assert sorter.payload_bytes == 4 * (200 + 8)
        assert sorter.range_count(rows=1_000, nbytes=416) == 2
        assert sorter.range_count(rows=1_000, nbytes=415) == 4


def test_equal_ranges_cover_every_high_word_once() -> None:
    assert equal_ranges(1) == [(0, END)]
    assert equal_ranges(4) == [(i << 62, (i + 1) << 62) for i in range(4)]


@given(sizes=st.lists(st.integers(0, 9), max_size=8), rows=st.integers(1, 7))
def test_regrouping_depends_on_the_rows_alone(sizes: list[int], rows: int) -> None:
    ends = np.cumsum([0, *sizes])
    table = rows_of(int(ends[-1]))
    groups = list(regrouped((table.slice(a, b - a) for a, b in pairwise(ends)), rows))
    assert positions(groups) == list(range(table.num_rows))
    assert all(len(group) == rows for group in groups[:-1])
    assert all(column.num_chunks == 1 for group in groups for column in group.columns)


def test_memory_stays_near_its_bound_for_many_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before = pa.total_allocated_bytes()
    peak = 0
    tracemalloc.start()
    with ExternalSorter(tmp_path / "sort", memory_bytes=1 << 20) as sorter:
        for _ in range(40):
            words = rng.integers(0, END, (2_000, 2), np.uint64, endpoint=False)
            payload = pa.FixedSizeBinaryArray.from_buffers(pa.binary(128), 2_000, [None, pa.py_buffer(bytes(256_000))])
            sorter.add(words[:, 0], words[:, 1], pa.table({"payload": payload}))
            peak = max(peak, pa.total_allocated_bytes() - before)
        for table in sorter.sorted_tables([i << 59 for i in range(1, 32)]):
            peak = max(peak, pa.total_allocated_bytes() - before)
            del table
    _, traced = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak + traced < 6 << 20  # of 11.5 MiB of rows


def test_a_scratch_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with ExternalSorter(tmp_path / "file" / "sort", memory_bytes=1) as sorter:
        words = np.zeros(1, np.uint64)
        with pytest.raises(OutputError, match=r"cannot write .*sort: a part of the path is not a folder"):
            sorter.add(words, words, pa.table({"a": [1]}))


def test_a_full_disk_is_told_as_such_and_the_scratch_file_goes_away(tmp_path: Path) -> None:
    folder = tmp_path / "sort"
    folder.mkdir()
    (folder / "runs.arrow").symlink_to("/dev/full")
    words = np.zeros(1, np.uint64)
    with (
        pytest.raises(OutputError, match=r"cannot write .*runs\.arrow: no space is left on the device; free"),
        ExternalSorter(folder, memory_bytes=1) as sorter,
    ):
        sorter.add(words, words, pa.table({"a": [1]}))
    assert not folder.exists()
