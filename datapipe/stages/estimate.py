"""What a run would cost: rows read, rows kept, disk and time, from the source's footers and a small sample.

Reads at most `SAMPLE_ROWS` rows where the source states its length, all of it (without keeping it) where it does not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from datapipe.config import budget_of

if TYPE_CHECKING:
    from datapipe.stages.build import Wiring
    from datapipe.storage.images import ImageFiles

SAMPLE_ROWS = 256
SAMPLE_IMAGES = 64
INGEST_ROWS_A_SECOND = 150_000
"""Ingest, score, select and export together on two cores; embedding, where there is any, is timed."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A run, before it is run.

    Attributes:
        rows: Rows in the source.
        rows_kept: Rows that the budget keeps; None where it counts tokens.
        files: Files in the source.
        source_bytes: Their size.
        disk_bytes: What the run folder will hold, about.
        scratch_bytes: What the sort needs besides, while it runs, about.
        seconds: How long the run will take on this machine, about.
        stages: The stages, in order.
    """

    rows: int
    rows_kept: int | None
    files: int
    source_bytes: int
    disk_bytes: int
    scratch_bytes: int
    seconds: float
    stages: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The estimate as plain values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "stages": " -> ".join(self.stages)}


def estimate(wiring: Wiring) -> Estimate:
    """Look at the source and the model, and say what the run would cost. Writes nothing.

    Raises:
        SourceError: The source cannot be read.
        ModelError: The model cannot be loaded.
    """
    source, config = wiring.source, wiring.config
    rows = source.rows if source.rows is not None else _count(wiring)
    budget = budget_of(config)
    kept = None if budget.tokens is not None else budget.rows_of(rows)
    source_bytes = sum(file.size for file in source.files)
    row_bytes, vector_bytes = source_bytes / max(rows, 1), 0
    seconds = rows / INGEST_ROWS_A_SECOND
    if wiring.embeds:
        vector_bytes = 2 * wiring.embedder.dim
        seconds += rows * _seconds_a_row(wiring)
    # Ids, places, scores, choice and vectors of every row, the rows themselves, and the kept ones once more.
    each = 16 * 5 + 12 + 8 + 24 + vector_bytes + row_bytes
    share = (kept if kept is not None else rows) / max(rows, 1)
    return Estimate(
        rows=rows,
        rows_kept=kept,
        files=len(source.files),
        source_bytes=source_bytes,
        disk_bytes=int(rows * (each + share * row_bytes)),
        scratch_bytes=int(rows * (row_bytes + 100)),
        seconds=round(seconds, 1),
        stages=tuple(wiring.stage_names),
    )


def _count(wiring: Wiring) -> int:
    own = wiring.columns
    columns = [own.text or own.vector or own.image or wiring.source.schema.names[0]]
    return sum(len(batch.rows) for batch in wiring.source.batches(columns, rejected=lambda _: None))


def _seconds_a_row(wiring: Wiring) -> float:
    """Time the embedder on the first rows, once to warm up and once to measure."""
    if wiring.images is not None:
        return _seconds_an_image(wiring, wiring.images)
    from datapipe.embedding.text import embed_texts

    texts: list[str] = []
    for batch in wiring.source.batches([str(wiring.columns.text)], rejected=lambda _: None):
        column = batch.table[str(wiring.columns.text)].slice(0, SAMPLE_ROWS - len(texts))
        texts += [text for text in column.cast("string").to_pylist() if text]
        if len(texts) >= SAMPLE_ROWS:
            break
    if not texts:
        return 0.0
    embedder = wiring.embedder
    embed_texts(embedder.worker(), texts[:32], model=embedder.name)
    begun = time.perf_counter()
    embed_texts(embedder.worker(), texts, model=embedder.name)
    return (time.perf_counter() - begun) / len(texts)


def _seconds_an_image(wiring: Wiring, files: ImageFiles) -> float:
    """The same for images, those of the first batch that has any."""
    from datapipe.embedding.image import embed_images

    embedder = wiring.embedder
    for batch in files.source.batches([files.column], rejected=lambda _: None):
        begun = time.perf_counter()
        column = batch.table[files.column].slice(0, SAMPLE_IMAGES)
        keys = files.keys(column, file=batch.file)
        checked = (time.perf_counter() - begun) / len(keys)
        rows = zip(column.to_pylist(), keys, strict=True)
        images = [files.read(value, file=batch.file) for value, key in rows if isinstance(key, bytes)]
        if images:
            embed_images(embedder.worker(), images[:1], model=embedder.name, batch=embedder.batch)
            begun = time.perf_counter()
            embed_images(embedder.worker(), images, model=embedder.name, batch=embedder.batch)
            return checked + (time.perf_counter() - begun) / len(images)
    return 0.0
