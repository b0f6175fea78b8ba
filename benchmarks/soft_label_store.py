"""Bytes and reading speed of stored soft labels, against one `.pt` file a batch and against JSON lines.

    python -m benchmarks.soft_label_store classes [10 100 1000]    classes; logits are random
    python -m benchmarks.soft_label_store vocabulary MODEL         49,152: what a language model says of real answers

All three formats hold the same: float16 values, ids of 16 bits, row ids. A `.pt` file holds 256 rows as tensors, a
line of JSON one row with four digits a value. Read is up to tensors that a loss takes, on one thread: in the order of
the rows, and in batches of 256 rows in random order, for which a `.pt` a batch opens a file a row, and JSON lines have
an index of offsets. The store is read within its memory, and with room for two row groups in `shuffled` order; its
bytes are those of its row groups, without some kB of footer a file. Seconds are the processor's, of one thread with
files in the page cache, so that other work on the machine does not count.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.common import record, table
from benchmarks.soft_label_rivals import BATCH, measure_files, measure_lines, random_batches, speed
from datapipe.distill.codec import encode
from datapipe.distill.header import SoftLabelHeader, Teacher
from datapipe.distill.layout import TokenRows, table_of
from datapipe.distill.losses import targets_of
from datapipe.distill.store import SoftLabelStore
from datapipe.distill.writer import SoftLabelWriter, group_rows

if TYPE_CHECKING:
    from datapipe.distill.codec import SoftLabels

NAME = "soft_label_store"
ROWS = 20_480
MODES: dict[int, list[dict[str, Any]]] = {
    10: [{"mode": "dense"}, {"mode": "topk", "k": 3}, {"mode": "sampled", "draws": 20}],
    100: [{"mode": "dense"}, {"mode": "topk", "k": 5}, {"mode": "topk", "k": 16}, {"mode": "sampled", "draws": 50}],
    1000: [
        {"mode": "dense", "wide": True},
        {"mode": "topk", "k": 5},
        {"mode": "topk", "k": 16},
        {"mode": "sampled", "draws": 50},
    ],
}
VOCABULARY: list[dict[str, Any]] = [
    {"mode": "dense", "wide": True},
    {"mode": "topk", "k": 16},
    {"mode": "topk", "k": 64},
    {"mode": "sampled", "draws": 50},
    {"mode": "sampled", "draws": 250},
]
ANSWERS, ANSWER_TOKENS, PROMPT_TOKENS = 128, 24, 24
DENSE_ANSWERS = 24


def header_of(level: str, classes: int, mode: dict[str, Any]) -> SoftLabelHeader:
    tokenizer = "tokenizer" if level == "token" else None
    return SoftLabelHeader(
        level=level,  # type: ignore[arg-type]
        classes=classes,
        teachers=(Teacher("teacher", "digest"),),
        preprocessing="p",
        tokenizer=tokenizer,
        **mode,
    )


def ids_of(rows: int) -> Any:
    words = np.random.default_rng(0).integers(0, 1 << 63, (rows, 2)).astype(np.uint64)
    return words[np.argsort(words[:, 0])]


def measure(
    folder: Path, header: SoftLabelHeader, labels: SoftLabels, tokens: TokenRows | None, config: dict[str, Any]
) -> None:
    """Write the labels in all three formats, read them back, record a row each."""
    rows = len(labels) if tokens is None else len(tokens.tokens)
    ids = ids_of(rows)
    sizes = np.ones(rows, np.int64) if tokens is None else tokens.tokens.astype(np.int64)
    measure_store(folder, header, table_of(header, ids, labels, tokens=tokens), sizes, config)
    begins = np.concatenate([[0], np.cumsum(sizes)])
    own = [labels.take(np.arange(begins[row], begins[row + 1])) for row in range(rows)]
    for name, measured in (
        ("one .pt a batch", measure_files(folder, header, labels, begins)),
        ("JSON lines", measure_lines(folder, own, ids)),
    ):
        record(NAME, {**rounded_row(measured), "positions_a_row": float(sizes.mean())}, {**config, "format": name})


def rounded_row(row: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.4g}") for key, value in row.items()}


def measure_store(folder: Path, header: SoftLabelHeader, whole: Any, sizes: Any, config: dict[str, Any]) -> None:
    path = folder / "labels.parquet"
    begun = time.process_time()
    with SoftLabelWriter(path, header) as writer:
        writer.write(whole)
    wrote = time.process_time() - begun
    rows = whole.num_rows
    held = bytes_held(path)
    store = SoftLabelStore(path)
    store.read(np.arange(1))
    chunks = random_batches(rows)
    row = {
        "bytes_a_row": held / rows,
        "bytes_a_position": held / sizes.sum(),
        "write_rows_s": rows / wrote,
        "random_rows_s": speed(
            lambda at: targets_of(store.read(at).labels, header), chunks, [len(at) for at in chunks]
        ),
    }
    row["sequential_rows_s"] = speed(
        lambda _: [targets_of(batch.labels, header) for batch in store.batches(BATCH)], [None], [rows]
    )
    groups = -(-rows // group_rows(header))
    small = SoftLabelStore(path, memory=2 * held // groups if groups > 2 else 1)
    order = small.shuffled(seed=0, groups=2)
    near = np.array_split(order, max(1, rows // BATCH))
    row["shuffled_small_memory_rows_s"] = speed(
        lambda at: targets_of(small.read(at).labels, header), near, [len(at) for at in near]
    )
    record(NAME, {**rounded_row(row), "positions_a_row": float(sizes.mean())}, {**config, "format": "store"})


def bytes_held(path: Path) -> int:
    """Bytes of all row groups."""
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    return sum(group.column(at).total_compressed_size for group in groups for at in range(group.num_columns))


def classes_part(chosen: list[int]) -> None:
    for classes in chosen or MODES:
        rows = ROWS if classes < 1000 else ROWS // 5
        logits = np.random.default_rng(classes).normal(size=(rows, classes)).astype(np.float32) * 3
        for mode in MODES[classes]:
            header = header_of("row", classes, mode)
            begun = time.process_time()
            labels = encode(logits, header, row_ids=ids_of(rows))
            print(classes, mode, f"encoded {rows / (time.process_time() - begun):,.0f} rows/s", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                config = {"classes": classes, "labels": label_of(mode), "rows": rows, "level": "row"}
                measure(Path(folder), header, labels, None, config)


def label_of(mode: dict[str, Any]) -> str:
    return {"dense": "dense", "topk": f"top {mode.get('k')}", "sampled": f"{mode.get('draws')} draws"}[mode["mode"]]


def vocabulary_part(model: str) -> None:
    from benchmarks.soft_label_loss import answers, logits_of
    from datapipe.distill.codec import concatenate

    torch.set_num_threads(2)
    sequences, masks = answers(model, count=ANSWERS, answer_tokens=ANSWER_TOKENS, prompt_tokens=PROMPT_TOKENS)
    classes, made = 49_152, dict.fromkeys(range(len(VOCABULARY)))
    parts: dict[int, list[SoftLabels]] = {at: [] for at in made}
    ids = ids_of(len(sequences))
    for row, logits in enumerate(logits_of(model, sequences, masks)):
        for at, mode in enumerate(VOCABULARY):
            if mode["mode"] != "dense" or row < DENSE_ANSWERS:
                owners, places = np.repeat(ids[row : row + 1], len(logits), axis=0), np.arange(len(logits))
                header = header_of("token", classes, mode)
                parts[at].append(encode(logits, header, row_ids=owners, places=places))
    torch.set_num_threads(1)
    for at, mode in enumerate(VOCABULARY):
        rows = len(parts[at])
        tokens = TokenRows.of(sequences[:rows], masks[:rows])
        config = {"classes": classes, "labels": label_of(mode), "rows": rows, "level": "token"}
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), header_of("token", classes, mode), concatenate(parts[at]), tokens, config)


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1] == "classes":
        classes_part([int(each) for each in sys.argv[2:]])
    else:
        vocabulary_part(sys.argv[2])
    shown = ["classes", "labels", "format", "positions_a_row", "bytes_a_row", "bytes_a_position", "sequential_rows_s"]
    print(table(NAME, [*shown, "random_rows_s", "shuffled_small_memory_rows_s", "write_rows_s"]))


if __name__ == "__main__":
    main()
