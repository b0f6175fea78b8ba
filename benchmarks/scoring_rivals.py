"""What `benchmarks/scoring_cost.py` compares with where no library has it in one call, and its file of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from benchmarks.vectors import floats
from datapipe.storage.parquet import open_writer, write_table
from datapipe.storage.vectors import encode, vector_field

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32

SHARD = 65_536
LITERAL_DRAWS = 200


def copy_there(bits: NDArray[np.uint16], device: str) -> None:
    """Send all rows through two page-locked buffers, one filled while the other is on its way."""
    import torch

    locked = device.startswith("cuda")
    buffers = [torch.empty(SHARD, bits.shape[1], dtype=torch.uint16, pin_memory=locked) for _ in range(2)]
    goals = [torch.empty(SHARD, bits.shape[1], dtype=torch.uint16, device=device) for _ in range(2)]
    sent: list[Any] = [torch.cuda.Event() if locked else None for _ in range(2)]  # type: ignore[no-untyped-call]
    for at, start in enumerate(range(0, len(bits), SHARD)):
        side, part = at % 2, bits[start : start + SHARD]
        event = sent[side]
        if event is not None and at > 1:
            event.synchronize()
        np.copyto(buffers[side][: len(part)].numpy(), part)
        goals[side][: len(part)].copy_(buffers[side][: len(part)], non_blocking=True)
        if event is not None:
            event.record()
    if locked:
        torch.cuda.synchronize()


def topk_there(bits: NDArray[np.uint16], queries: Float32, k: int, device: str) -> None:
    """The k + 1 greatest cosines of some rows with all, block by block."""
    import torch

    every = torch.from_numpy(bits).view(torch.bfloat16).to(device)
    for start in range(0, len(queries), 1024):
        block = torch.from_numpy(queries[start : start + 1024]).to(device)
        best = torch.full((len(block), k + 1), -1.0, device=device)
        for low in range(0, len(bits), SHARD):
            cosines = block @ every[low : low + SHARD].float().T
            best = torch.cat([best, cosines], dim=1).topk(k + 1, dim=1).values
        best.cpu()


def draw_by_draw(vectors: Float32) -> None:
    """Coverage as published (arXiv 2411.15349), over all rows in every draw; `LITERAL_DRAWS` draws."""
    chance = np.random.default_rng(0)
    for _ in range(LITERAL_DRAWS):
        flat = vectors[:, chance.choice(vectors.shape[1], 2, replace=False)]
        point = chance.triangular(flat.min(axis=0), np.median(flat, axis=0), flat.max(axis=0))
        winner = int(np.abs(flat - point).sum(axis=1).argmin())
        apart = np.abs(flat - flat[winner]).sum(axis=1)
        nearest = np.argpartition(apart, min(1000, len(apart) - 1))[:1000]
        loss = 1.0 / np.maximum(apart[nearest], 1e-8) ** 4
        _ = loss / loss.sum()


def write_vectors(bits: NDArray[np.uint16], path: Path) -> None:
    """A Parquet file as the pipeline has it."""
    schema = pa.schema([vector_field("vector", dim=bits.shape[1], model="", digest="", normalised=True)])
    with open_writer(path, schema) as writer:
        for start in range(0, len(bits), SHARD):
            write_table(writer, pa.table([encode(floats(bits[start : start + SHARD]))], schema=schema))
