"""Soft labels in the formats people write by hand: one `.pt` file a batch, and JSON lines.

    SoftLabels -> a file of tensors for 256 rows, or a line of text a row -> the tensors that a loss takes

Seconds are the processor's.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from datapipe.distill.codec import DenseLabels, SampledLabels, TopLabels
from datapipe.distill.losses import DenseTargets, TopTargets, targets_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from datapipe.distill.codec import SoftLabels
    from datapipe.distill.header import SoftLabelHeader
    from datapipe.distill.losses import Targets

BATCH = 256
LEAST_SECONDS, MOST_SECONDS = 0.3, 1.0


def speed(step: Callable[[Any], object], pieces: list[Any], sizes: list[int]) -> float:
    """Rows a second: all pieces at least once and for `LEAST_SECONDS`, or as many as `MOST_SECONDS` allow."""
    begun, rows = time.process_time(), 0
    while True:
        for piece, size in zip(pieces, sizes, strict=True):
            step(piece)
            rows += size
            if (took := time.process_time() - begun) > MOST_SECONDS:
                return rows / took
        if (took := time.process_time() - begun) > LEAST_SECONDS:
            return rows / took


def random_batches(rows: int) -> list[Any]:
    return np.array_split(np.random.default_rng(1).permutation(rows), max(1, rows // BATCH))


def arrays_of(labels: SoftLabels, draws: int | None) -> dict[str, torch.Tensor]:
    """What one would hand to torch.save, as narrow as it goes."""
    if isinstance(labels, DenseLabels):
        return {"log_probabilities": torch.from_numpy(labels.log_probabilities.copy())}
    if isinstance(labels, TopLabels):
        return {
            "ids": torch.from_numpy(labels.ids.astype(np.uint16)),
            "log_probabilities": torch.from_numpy(labels.log_probabilities.copy()),
            "tail": torch.from_numpy(labels.tail.copy()),
        }
    return {
        "ids": torch.from_numpy(labels.ids.astype(np.uint16)),
        "counts": torch.from_numpy(labels.counts.astype(np.uint8 if (draws or 0) < 256 else np.uint16)),
        "unique": torch.from_numpy(np.diff(labels.offsets).astype(np.uint8)),
        "entropy": torch.from_numpy(labels.entropy.copy()),
    }


def targets_from(arrays: dict[str, torch.Tensor], header: SoftLabelHeader) -> Targets:
    """What `torch.load` gave, as wide as a loss takes it."""
    if header.draws is not None:
        own = {name: values.numpy() for name, values in arrays.items()}
        offsets = np.concatenate([[0], np.cumsum(own["unique"], dtype=np.int64)])
        return targets_of(SampledLabels(own["ids"], own["counts"], offsets, own["entropy"]), header)
    if header.k is not None:
        return TopTargets(arrays["ids"].long(), arrays["log_probabilities"], arrays["tail"])
    return DenseTargets(arrays["log_probabilities"])


def line_of(labels: SoftLabels, at: int, row_id: str) -> str:
    """One row as JSON; `labels` are those of the row."""
    if isinstance(labels, DenseLabels):
        own: dict[str, Any] = {"log_probabilities": rounded(labels.log_probabilities)}
    elif isinstance(labels, TopLabels):
        own = {
            "ids": labels.ids.tolist(),
            "log_probabilities": rounded(labels.log_probabilities),
            "tail": rounded(labels.tail),
        }
    else:
        own = {
            "ids": labels.ids.tolist(),
            "counts": labels.counts.tolist(),
            "unique": np.diff(labels.offsets).tolist(),
            "entropy": rounded(labels.entropy),
        }
    return json.dumps({"row_id": row_id, "row": at, **own}, separators=(",", ":"))


def rounded(values: Any) -> Any:
    return np.round(values.astype(np.float64), 4).tolist()


def parsed(line: str) -> list[torch.Tensor]:
    return [torch.tensor(value) for key, value in json.loads(line).items() if isinstance(value, list)]


def measure_files(folder: Path, header: SoftLabelHeader, labels: SoftLabels, begins: Any) -> dict[str, float]:
    own = folder / "pt"
    own.mkdir()
    rows = len(begins) - 1
    begun = time.process_time()
    for start in range(0, rows, BATCH):
        end = min(rows, start + BATCH)
        arrays = arrays_of(labels.take(np.arange(begins[start], begins[end])), header.draws)
        ids = torch.zeros(end - start, 16, dtype=torch.uint8)
        torch.save({"row_ids": ids, **arrays}, own / f"{start // BATCH}.pt")
    wrote = time.process_time() - begun
    paths = [own / f"{at}.pt" for at in range(len(list(own.iterdir())))]
    total = sum(path.stat().st_size for path in paths)

    def load(path: Path) -> None:
        targets_from(torch.load(path), header)

    def gather(at: Any) -> None:
        for row in at:
            load(paths[row // BATCH])

    # A batch of random rows opens a file for each: pieces of 8 rows, or the clock would be looked at too late.
    pieces = [piece for at in random_batches(rows) for piece in np.array_split(at, max(1, len(at) // 8))]
    return {
        "bytes_a_row": total / rows,
        "bytes_a_position": total / begins[-1],
        "write_rows_s": rows / wrote,
        "sequential_rows_s": speed(load, paths, [min(BATCH, rows - at) for at in range(0, rows, BATCH)]),
        "random_rows_s": speed(gather, pieces, [len(piece) for piece in pieces]),
    }


def measure_lines(folder: Path, own: list[Any], ids: Any) -> dict[str, float]:
    path = folder / "labels.jsonl"
    begun = time.process_time()
    offsets = []
    with path.open("w", encoding="ascii") as stream:
        for row, labels in enumerate(own):
            offsets.append(stream.tell())
            stream.write(line_of(labels, row, ids[row].tobytes().hex()) + "\n")
    wrote = time.process_time() - begun
    positions = sum(len(labels) for labels in own)
    with path.open(encoding="ascii") as stream:
        sequential = speed(parsed, stream.readlines(), [1] * len(own))

        def seek(row: Any) -> None:
            stream.seek(offsets[row])
            parsed(stream.readline())

        random = speed(seek, np.random.default_rng(1).permutation(len(own)).tolist(), [1] * len(own))
    return {
        "bytes_a_row": path.stat().st_size / len(own),
        "bytes_a_position": path.stat().st_size / positions,
        "write_rows_s": len(own) / wrote,
        "sequential_rows_s": sequential,
        "random_rows_s": random,
    }
