"""What a store holds comes back, in any order, from a file in memory or larger than it; what is no store is refused."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datapipe.distill.codec import encode
from datapipe.distill.header import SoftLabelHeader, Teacher
from datapipe.distill.layout import TokenRows, labels_of, row_bytes, schema_of, table_of
from datapipe.distill.store import SoftLabelStore
from datapipe.distill.writer import SoftLabelWriter, group_rows
from datapipe.errors import SoftLabelError
from datapipe.storage.rowid import ids_to_hex

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.storage.arrays import Ids

MODES: list[dict[str, Any]] = [
    {"mode": "dense", "classes": 20},
    {"mode": "topk", "classes": 20, "k": 5},
    {"mode": "topk", "classes": 70_001, "k": 7},
    {"mode": "sampled", "classes": 20, "draws": 40},
    {"mode": "sampled", "classes": 70_001, "draws": 300},
]


def header(*, level: str = "row", **options: Any) -> SoftLabelHeader:
    settings = {"tokenizer": "tok" if level == "token" else None, **options}
    return SoftLabelHeader(level=level, teachers=(Teacher("t", "digest"),), preprocessing="plain", **settings)  # type: ignore[arg-type]


def ids_of(rows: int) -> Ids:
    """Row ids in order, some of which end in zero bytes."""
    words = np.random.default_rng(rows).integers(0, 1 << 63, (rows, 2)).astype(np.uint64)
    words[:, 0] = np.sort(words[:, 0])
    words[::5, 1] = 0
    words[1::5, 1] <<= np.uint64(40)
    return words


def some_table(head: SoftLabelHeader, rows: int) -> pa.Table:
    """Rows of random labels; of tokens, rows of 0 … 7 scored ones."""
    draw, ids, tokens = np.random.default_rng(rows), ids_of(rows), None
    owners = np.arange(rows)
    if head.level == "token":
        sequences = [draw.integers(0, head.classes, int(draw.integers(1, 9))).astype(np.int32) for _ in range(rows)]
        masks = [np.concatenate([[False], draw.random(len(each) - 1) < 0.6]) for each in sequences]
        tokens = TokenRows.of(sequences, masks)
        owners = np.repeat(owners, tokens.tokens)
    logits = draw.normal(size=(len(owners), head.classes)).astype(np.float32) * 3
    labels = encode(logits, head, row_ids=ids[owners], places=np.arange(len(owners)))
    return table_of(
        head, ids, labels, tokens=tokens, facts={"label": np.arange(rows), "contradicts": owners_even(rows)}
    )


def owners_even(rows: int) -> Any:
    return pa.array([row % 2 == 0 if row % 3 else None for row in range(rows)])


def written(path: Path, head: SoftLabelHeader, table: pa.Table, *, step: int = 17) -> Path:
    with SoftLabelWriter(path, head) as writer:
        for start in range(0, table.num_rows, step):
            writer.write(table.slice(start, step))
        assert writer.rows == table.num_rows
    return path


@pytest.fixture(params=[{**mode, "level": level} for level in ("row", "token") for mode in MODES], ids=str)
def head(request: pytest.FixtureRequest) -> SoftLabelHeader:
    return header(**request.param)


def test_labels_come_back_in_any_order(tmp_path: Path, head: SoftLabelHeader) -> None:
    table = some_table(head, 40)
    store = SoftLabelStore.open(written(tmp_path / "s.parquet", head, table), teacher="digest", classes=head.classes)
    order = np.random.default_rng(0).permutation(40)
    found = store.read(store.find(ids_of(40)[order]))
    whole = store.read(np.arange(40))
    np.testing.assert_array_equal(found.row_ids, ids_of(40)[order])
    begins = np.concatenate([[0], np.cumsum(whole.sizes)])
    positions = np.concatenate([np.arange(begins[row], begins[row + 1]) for row in order])
    expected = labels_of(head, table)
    for name in expected.__slots__:
        np.testing.assert_array_equal(getattr(whole.labels, name), getattr(expected, name))
        np.testing.assert_array_equal(getattr(found.labels, name), getattr(expected.take(positions), name))
    assert found.fact("label").tolist() == order.tolist()
    assert found.fact("contradicts").tolist() == [owners_even(40)[int(row)].as_py() for row in order]
    assert found.fact("kd_alpha").mask.all()


def test_batches_in_order_are_the_whole_store(tmp_path: Path, head: SoftLabelHeader) -> None:
    store = SoftLabelStore(written(tmp_path / "s.parquet", head, some_table(head, 40)))
    batches = list(store.batches(11))
    assert [len(batch.sizes) for batch in batches] == [11, 11, 11, 7]
    np.testing.assert_array_equal(np.concatenate([batch.row_ids for batch in batches]), store.row_ids)
    assert sum(len(batch.labels) for batch in batches) == len(store.read(np.arange(40)).labels)


def test_the_same_rows_give_the_same_bytes_however_they_are_cut(tmp_path: Path) -> None:
    head = header(mode="topk", classes=20, k=3)
    table = some_table(head, 3000)
    files = [written(tmp_path / f"{step}.parquet", head, table, step=step).read_bytes() for step in (17, 1500, 3000)]
    assert files[0] == files[1] == files[2]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A store of five row groups."""
    head = header(mode="dense", classes=2000, wide=True)
    assert group_rows(head) == 2048
    ids = ids_of(9000)
    logits = np.zeros((9000, 2000), np.float16)
    logits[:, 0] = np.arange(9000) % 512
    with SoftLabelWriter(tmp_path / "s.parquet", head) as writer:
        for start in range(0, 9000, 3000):
            own = slice(start, start + 3000)
            labels = encode(logits[own], head, row_ids=ids[own])
            writer.write(table_of(head, ids[own], labels, facts={"label": np.arange(start, start + 3000)}))
    assert pq.ParquetFile(tmp_path / "s.parquet").num_row_groups == 5
    return tmp_path / "s.parquet"


def test_what_hardly_shrinks_lies_uncompressed_where_a_row_is_large(tmp_path: Path) -> None:
    compressed = {}
    for level in ("row", "token"):
        head = header(level=level, mode="sampled", classes=20, draws=40)
        group = pq.read_metadata(written(tmp_path / level, head, some_table(head, 50))).row_group(0)
        columns = [group.column(at) for at in range(group.num_columns)]
        compressed[level] = {each.path_in_schema for each in columns if each.compression == "ZSTD"}
    assert compressed["row"] - compressed["token"] == {"teacher_ids", "position_entropy"}
    assert {"teacher_counts", "teacher_unique"} < compressed["token"]
    assert "row_id" not in compressed["row"] | compressed["token"]


def test_a_file_larger_than_the_memory_is_read_by_row_group(large: Path) -> None:
    store, whole = SoftLabelStore(large, memory=20 << 20), SoftLabelStore(large)
    order = np.random.default_rng(1).permutation(9000)[:300]
    for places in (order, np.sort(order), np.array([8999, 0, 0, 8999]), np.empty(0, np.int64)):
        found, expected = store.read(places), whole.read(places)
        assert found.fact("label").tolist() == places.tolist()
        np.testing.assert_array_equal(found.labels.log_probabilities, expected.labels.log_probabilities)  # type: ignore[union-attr]
    assert sum(group.nbytes for group in store._groups.values()) <= 20 << 20


def test_a_shuffled_order_has_every_row_once_and_takes_row_groups_one_after_the_other(large: Path) -> None:
    store = SoftLabelStore(large)
    order = store.shuffled(seed=3, groups=2)
    assert sorted(order.tolist()) == list(range(9000))
    for group in range(5):
        when = np.flatnonzero(order // 2048 == group)
        assert np.ptp(when) < 2 * 2048
    assert order[:2000].tolist() != sorted(order[:2000].tolist())
    assert order.tolist() == store.shuffled(seed=3, groups=2).tolist()
    assert order.tolist() != store.shuffled(seed=3, epoch=1, groups=2).tolist()


def test_rows_that_are_not_there_are_found_missing(tmp_path: Path) -> None:
    head = header(mode="topk", classes=20, k=3)
    store = SoftLabelStore(written(tmp_path / "s.parquet", head, some_table(head, 40)))
    asked = ids_of(40).copy()
    asked[7, 1] += 1
    asked[39, 0] = np.uint64(0xFFFFFFFFFFFFFFFF)
    asked[0] = 0
    assert np.flatnonzero(store.find(asked) < 0).tolist() == [0, 7, 39]
    assert store.find(ids_of(0)).tolist() == []
    with pytest.raises(SoftLabelError, match=r"has rows 0 … 39. Got places up to 40"):
        store.read(np.array([40]))


def test_an_empty_store_is_read(tmp_path: Path) -> None:
    head = header(mode="topk", classes=20, k=3)
    store = SoftLabelStore(written(tmp_path / "s.parquet", head, schema_of(head).empty_table()))
    assert len(store) == 0
    assert store.find(ids_of(3)).tolist() == [-1, -1, -1]
    assert list(store.batches()) == []
    assert len(store.read(np.empty(0, np.int64)).labels) == 0
    assert store.shuffled(seed=0).tolist() == []


def test_a_store_goes_to_another_process_without_its_rows(tmp_path: Path) -> None:
    head = header(mode="topk", classes=20, k=3)
    store = SoftLabelStore(written(tmp_path / "s.parquet", head, some_table(head, 40)))
    expected = store.read(np.arange(5))
    again = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own
    assert not again._groups
    np.testing.assert_array_equal(again.read(np.arange(5)).labels.ids, expected.labels.ids)  # type: ignore[union-attr]


def test_rows_out_of_order_or_twice_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    head = header(mode="topk", classes=20, k=3)
    table = some_table(head, 40)
    first = ids_to_hex(ids_of(40)[:1])[0]
    for pieces in ([table.slice(20), table.slice(0, 20)], [table.slice(0, 1), table.slice(0, 1)]):
        with (
            pytest.raises(SoftLabelError, match=f"row {first} comes after .* once each, in the order of their ids"),
            SoftLabelWriter(tmp_path / "s.parquet", head) as writer,
        ):
            for piece in pieces:
                writer.write(piece)
        assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    head = header(mode="topk", classes=20, k=3)
    path = written(tmp_path / "s.parquet", head, some_table(head, 40))
    before = path.read_bytes()
    with pytest.raises(RuntimeError), SoftLabelWriter(path, head) as writer:
        writer.write(some_table(head, 5))
        raise RuntimeError
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["s.parquet"]


def test_a_table_of_another_header_is_not_appended(tmp_path: Path) -> None:
    head, other = header(mode="topk", classes=20, k=3), header(mode="topk", classes=20, k=3, seed=1)
    with (
        pytest.raises(SoftLabelError, match="of another header or schema"),
        SoftLabelWriter(tmp_path / "s.parquet", head) as writer,
    ):
        writer.write(some_table(other, 4))


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    head = header(mode="topk", classes=20, k=3)
    path = tmp_path / "s.parquet"
    with pytest.raises(SoftLabelError, match=r"no soft labels at .*s.parquet: no such file"):
        SoftLabelStore(path)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(SoftLabelError, match="cannot be read as Parquet"):
        SoftLabelStore(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(SoftLabelError, match=r"s\.parquet holds no soft labels"):
        SoftLabelStore(path)
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(head.to_metadata()), path)
    with pytest.raises(SoftLabelError, match="its columns are not those of its header"):
        SoftLabelStore(path)
    table = some_table(head, 3)
    pq.write_table(table.take([1, 0, 2]), path)
    with pytest.raises(SoftLabelError, match="its row ids do not ascend at row 1"):
        SoftLabelStore(path)


def test_a_file_damaged_after_it_was_opened_is_an_error_of_the_store(tmp_path: Path) -> None:
    head = header(mode="topk", classes=20, k=3)
    path = written(tmp_path / "s.parquet", head, some_table(head, 4000))
    store = SoftLabelStore(path, memory=1)
    whole = bytearray(path.read_bytes())
    whole[4 + 16 * 4000 + 100 : -5000] = bytes(len(whole) - 4 - 16 * 4000 - 100 - 5000)
    path.write_bytes(whole)
    for reading in (lambda: store.read(np.arange(3)), lambda: list(store.batches())):
        with pytest.raises(SoftLabelError, match=r"s\.parquet cannot be read, it is damaged or gone"):
            reading()


def test_ids_beyond_the_classes_are_damage(tmp_path: Path) -> None:
    head = header(mode="topk", classes=20, k=3)
    table = some_table(head, 3)
    at = table.schema.get_field_index("teacher_ids")
    broken = table.set_column(at, table.schema.field(at), pa.array([b"\xff" * 6] * 3, pa.binary(6)))
    with pytest.raises(SoftLabelError, match="a class id is 65,535, and there are 20 classes: the file is damaged"):
        labels_of(head, broken)


def test_labels_that_do_not_fit_the_header_are_refused() -> None:
    head, ids = header(mode="topk", classes=20, k=3), ids_of(4)
    labels = encode(np.zeros((4, 20)), head, row_ids=ids)
    with pytest.raises(SoftLabelError, match=r"TopLabels of that width are no labels of mode 'topk' .* k 4"):
        table_of(header(mode="topk", classes=20, k=4), ids, labels)
    with pytest.raises(SoftLabelError, match="4 positions do not make 3 rows of 3 positions together"):
        table_of(head, ids[:3], labels)
    with pytest.raises(SoftLabelError, match=r"unknown facts \['colour'\]; known are"):
        table_of(head, ids, labels, facts={"colour": np.zeros(4)})
    with pytest.raises(SoftLabelError, match="TokenRows go with labels of tokens"):
        table_of(header(mode="topk", classes=20, k=3, level="token"), ids, labels)
    with pytest.raises(SoftLabelError, match=r"row 1 of the batch has 2 tokens .* nothing predicts"):
        TokenRows.of([np.arange(2, dtype=np.int32)] * 2, [np.array([False, True]), np.array([True, True])])


def test_a_row_takes_the_bytes_that_the_design_says() -> None:
    assert row_bytes(header(mode="topk", classes=1000, k=5)) == 16 + 5 * (2 + 2) + 2
    assert row_bytes(header(mode="topk", classes=128_256, k=8)) == 16 + 17 + 8 * 2 + 2
    assert row_bytes(header(mode="dense", classes=100)) == 16 + 200
