"""Soft labels beside real rows: joined by row id, collated in any order, trained on; other rows and tokens refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from datapipe.distill.codec import encode
from datapipe.distill.dataset import PLACE, SoftLabelCollator, SoftLabelDataset, batch_loss
from datapipe.distill.header import SoftLabelHeader, Teacher
from datapipe.distill.layout import TokenRows, table_of
from datapipe.distill.store import SoftLabelStore
from datapipe.distill.writer import SoftLabelWriter
from datapipe.errors import SoftLabelError
from datapipe.storage.rowid import content_digests, ids_to_hex

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.storage.arrays import Ids

ROOT = __file__.rpartition("/tests/")[0]
ROWS = 60
VOCABULARY = 90_000


def questions() -> tuple[list[dict[str, Any]], Ids]:
    """Rows of BANKING77 with their row ids, in the order of these."""
    table = pq.read_table(f"{ROOT}/data/banking77.parquet").slice(0, ROWS)
    ids = content_digests(table)
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    rows = table.take(order).to_pylist()
    return [{**row, "row_id": own} for row, own in zip(rows, ids_to_hex(ids[order]), strict=True)], ids[order]


def header(**options: Any) -> SoftLabelHeader:
    settings = {"level": "row", "mode": "topk", "k": 3, "classes": 77, **options}
    return SoftLabelHeader(teachers=(Teacher("t", "digest"),), preprocessing="plain", **settings)


def teacher_logits(positions: int, classes: int = 77) -> Any:
    return np.random.default_rng(positions).normal(size=(positions, classes)).astype(np.float32) * 3


def store_of(path: Path, head: SoftLabelHeader, ids: Ids, **facts: Any) -> SoftLabelStore:
    with SoftLabelWriter(path, head) as writer:
        writer.write(table_of(head, ids, encode(teacher_logits(len(ids)), head, row_ids=ids), facts=facts))
    return SoftLabelStore(path)


def lengths(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A user's own collator: the length of the text stands for its features."""
    assert all(PLACE not in item and "row_id" not in item for item in items)
    return {
        "lengths": torch.tensor([len(item["text"]) for item in items]),
        "labels": torch.tensor([item["label"] for item in items]),
    }


def test_every_row_of_a_shuffled_loader_meets_its_own_soft_labels(tmp_path: Path) -> None:
    rows, ids = questions()
    head = header()
    dataset = SoftLabelDataset(store_of(tmp_path / "s.parquet", head, ids), rows[::-1])
    collator = SoftLabelCollator(SoftLabelStore(tmp_path / "s.parquet"), alpha=0.6, collate=lengths)
    expected = {len(row["text"]): own for row, own in zip(rows, teacher_logits(ROWS), strict=True)}
    unique = [len(row["text"]) for row in rows]
    seen = 0
    for batch in DataLoader(dataset, batch_size=16, shuffle=True, collate_fn=collator):
        assert batch["kd_alpha"].tolist() == pytest.approx([0.6] * len(batch["lengths"]))
        for length, best in zip(batch["lengths"].tolist(), batch["soft_labels"].ids.tolist(), strict=True):
            if unique.count(length) == 1:
                assert best == np.argsort(-expected[length])[:3].tolist()
                seen += 1
    assert seen > ROWS // 4


@pytest.mark.slow
def test_worker_processes_read_the_store_on_their_own(tmp_path: Path) -> None:
    rows, ids = questions()
    store = store_of(tmp_path / "s.parquet", header(), ids)
    collator = SoftLabelCollator(store, alpha=0.5, collate=lengths)
    dataset = SoftLabelDataset(store, rows)
    alone = [batch["soft_labels"].ids for batch in DataLoader(dataset, batch_size=16, collate_fn=collator)]
    loader = DataLoader(dataset, batch_size=16, collate_fn=collator, num_workers=1, multiprocessing_context="spawn")
    for expected, batch in zip(alone, loader, strict=True):
        assert torch.equal(expected, batch["soft_labels"].ids)


def test_rows_without_soft_labels_are_refused_with_the_remedy(tmp_path: Path) -> None:
    rows, ids = questions()
    store = store_of(tmp_path / "s.parquet", header(), ids[10:])
    with pytest.raises(
        SoftLabelError, match=f"10 of 60 rows have no soft labels .*{rows[0]['row_id']}.*missing='labels'"
    ):
        SoftLabelDataset(store, rows)


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "dense", "k": None}, {"mode": "sampled", "k": None, "draws": 9}],
    ids=["topk", "dense", "sampled"],
)
@pytest.mark.parametrize("known", [40, 0])
def test_rows_without_soft_labels_are_trained_on_their_label_alone_if_asked(
    tmp_path: Path, options: dict[str, Any], known: int
) -> None:
    rows, ids = questions()
    store = store_of(tmp_path / "s.parquet", header(**options), ids[:known])
    dataset = SoftLabelDataset(store, rows, missing="labels")
    batch = SoftLabelCollator(store, alpha=1.0, collate=lengths)([dataset[at] for at in range(30, 50)])
    assert batch["kd_alpha"].tolist() == [1.0] * max(0, known - 30) + [0.0] * (20 - max(0, known - 30))
    logits = torch.randn(20, 77, generator=torch.Generator().manual_seed(0))
    own = slice(max(0, known - 30), None)
    alone = functional.cross_entropy(logits[own], batch["labels"][own], reduction="sum")
    if not known:
        assert batch_loss(logits, batch).item() == pytest.approx(alone.item() / 20)
    else:
        batch["labels"][: known - 30] = 0  # of no weight where alpha is 1
        assert batch_loss(logits, batch).item() > alone.item() / 20


def test_a_rows_own_weight_goes_before_the_general_one(tmp_path: Path) -> None:
    rows, ids = questions()
    own = np.ma.masked_array(np.ones(ROWS, np.float32), np.arange(ROWS) % 2 == 1)
    store = store_of(tmp_path / "s.parquet", header(), ids, kd_alpha=own)
    items = [SoftLabelDataset(store, rows)[at] for at in range(4)]
    mixed = SoftLabelCollator(store, alpha=0.25, collate=lengths)(items)["kd_alpha"].tolist()
    assert mixed == [1.0, 0.25, 1.0, 0.25]
    with pytest.raises(
        SoftLabelError, match=f"row {rows[1]['row_id']} has no weight of the teacher .* give one as alpha="
    ):
        SoftLabelCollator(store, collate=lengths)(items)
    assert SoftLabelCollator(store, collate=lengths)([items[0], items[2]])["kd_alpha"].tolist() == [1.0, 1.0]
    general = SoftLabelCollator(store, alpha=0.25, collate=lengths, own_alpha=False)(items)["kd_alpha"].tolist()
    assert general == [0.25] * 4


def test_ids_come_as_bytes_hex_or_arrays_and_nothing_else(tmp_path: Path) -> None:
    rows, ids = questions()
    store = store_of(tmp_path / "s.parquet", header(), ids)
    plain = [{"text": row["text"]} for row in rows]
    for given in (ids, ids_to_hex(ids), [bytes.fromhex(each) for each in ids_to_hex(ids)]):
        assert SoftLabelDataset(store, plain, row_ids=given).places.tolist() == list(range(ROWS))
    with pytest.raises(SoftLabelError, match=r"the rows have no 'row_id' but \['text'\]"):
        SoftLabelDataset(store, plain)
    with pytest.raises(SoftLabelError, match="row 0 has the row id 7; it must be 16 bytes or 32 hex"):
        SoftLabelDataset(store, plain, row_ids=[7] * ROWS)  # type: ignore[list-item]
    with pytest.raises(SoftLabelError, match="60 rows and 3 row ids"):
        SoftLabelDataset(store, plain, row_ids=ids[:3])


def test_a_batch_of_other_rows_says_what_is_missing(tmp_path: Path) -> None:
    rows, ids = questions()
    store = store_of(tmp_path / "s.parquet", header(), ids)
    with pytest.raises(SoftLabelError, match="remove_unused_columns=False"):
        SoftLabelCollator(store, alpha=0.5)(rows[:2])
    with pytest.raises(SoftLabelError, match=r"alpha must be 0 ... 1. Got 2"):
        SoftLabelCollator(store, alpha=2)


SEQUENCES = [np.arange(3 + 2 * row, dtype=np.int32) * 7 + row for row in range(6)]
SCORED = [np.arange(len(ids)) % 4 > 1 for ids in SEQUENCES]


def token_store(path: Path, *, known: int = 6, mode: str = "topk") -> tuple[SoftLabelStore, Ids, Any]:
    options = {"mode": mode, "k": 4 if mode == "topk" else None, "draws": 20 if mode == "sampled" else None}
    head = header(level="token", classes=VOCABULARY, tokenizer="tok", **options)
    ids = np.stack([np.arange(6, dtype=np.uint64)] * 2, axis=1)
    tokens = TokenRows.of(SEQUENCES[:known], SCORED[:known])
    logits = teacher_logits(int(tokens.tokens.sum()), VOCABULARY)
    places = np.concatenate([np.arange(count) for count in tokens.tokens])
    labels = encode(logits, head, row_ids=np.repeat(ids[:known], tokens.tokens, axis=0), places=places)
    with SoftLabelWriter(path, head) as writer:
        writer.write(table_of(head, ids[:known], labels, tokens=tokens))
    return SoftLabelStore.open(path, tokenizer="tok"), ids, logits


def padded(items: list[dict[str, Any]], *, left: bool = False) -> dict[str, torch.Tensor]:
    width = max(len(item["input_ids"]) for item in items)
    whole = torch.zeros(len(items), width, dtype=torch.int64)
    for row, item in enumerate(items):
        own = torch.tensor(np.asarray(item["input_ids"], np.int64))
        whole[row, width - len(own) if left else 0 :][: len(own)] = own
    return {"input_ids": whole}


@pytest.mark.parametrize("mode", ["topk", "sampled"])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_tokens_meet_the_logits_one_place_before_them(tmp_path: Path, mode: str, padding: Any) -> None:
    store, ids, logits = token_store(tmp_path / "s.parquet", mode=mode)
    rows = [{"input_ids": each} for each in SEQUENCES]
    dataset = SoftLabelDataset(store, rows, row_ids=ids)
    collator = SoftLabelCollator(
        store, alpha=1.0, padding=padding, collate=lambda items: padded(items, left=padding == "left")
    )
    order = [4, 0, 2]
    batch = collator([dataset[at] for at in order])
    at = (batch["soft_rows"], batch["soft_places"] + 1)
    assert torch.equal(batch["input_ids"][at], batch["soft_classes"])
    begins = np.cumsum([0, *(mask.sum() for mask in SCORED)])
    own = np.concatenate([logits[begins[row] : begins[row + 1]] for row in order])
    student = torch.zeros(3, batch["input_ids"].shape[1], VOCABULARY)
    student[batch["soft_rows"], batch["soft_places"]] = torch.from_numpy(own)
    loss = batch_loss(student, batch).item()
    assert abs(loss) < (0.01 if mode == "topk" else 1.0), "a student that says the same as the teacher"
    assert batch_loss(torch.roll(student, 1, 1), batch).item() > loss + 0.5


def test_tokens_of_rows_without_soft_labels_are_those_that_have_a_label(tmp_path: Path) -> None:
    store, ids, _ = token_store(tmp_path / "s.parquet", known=4)
    rows = [
        {"input_ids": own, "labels": np.where(mask, own, -100)} for own, mask in zip(SEQUENCES, SCORED, strict=True)
    ]
    dataset = SoftLabelDataset(store, rows, row_ids=ids, missing="labels")
    batch = SoftLabelCollator(store, alpha=0.5, collate=padded)([dataset[5], dataset[1]])
    many, few = int(SCORED[5].sum()), int(SCORED[1].sum())
    assert batch["kd_alpha"].tolist() == [0.0] * many + [0.5] * few
    assert batch["soft_classes"].tolist() == [*SEQUENCES[5][SCORED[5]], *SEQUENCES[1][SCORED[1]]]
    assert torch.isfinite(batch_loss(torch.zeros(2, 13, VOCABULARY), batch))
    with pytest.raises(SoftLabelError, match="row 0 of the batch has neither soft labels nor 'labels'"):
        SoftLabelCollator(store, alpha=0.5, collate=padded)([{"input_ids": SEQUENCES[5], PLACE: -1}])


def test_tokens_that_the_teacher_did_not_read_are_refused(tmp_path: Path) -> None:
    store, ids, _ = token_store(tmp_path / "s.parquet")
    collator = SoftLabelCollator(store, alpha=0.5, collate=padded)
    other = SEQUENCES[3].copy()
    other[2] += 1
    for sequence, message in ((SEQUENCES[3][:-1], "has 8 tokens, and the teacher read 9"), (other, "has other tokens")):
        with pytest.raises(SoftLabelError, match=f"row {ids_to_hex(ids[3:4])[0]} {message}.*the teacher's tokenizer"):
            collator([{"input_ids": sequence, PLACE: 3}])
    with pytest.raises(SoftLabelError, match="row 0 of the batch has no 'input_ids'"):
        collator([{"text": "a", PLACE: 3}])
