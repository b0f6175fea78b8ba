"""A Polars frame as a source: rows are cut from memory, the digest is one of content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from datapipe.errors import SourceError
from datapipe.storage.formats.base import BATCH_BYTES, Source
from datapipe.storage.formats.parquet_ import typed_texts
from datapipe.storage.formats.place import Place
from datapipe.storage.formats.types import plain_schema, unify
from datapipe.storage.limits import check_columns, check_rows
from datapipe.storage.rowid import content_digests

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping, Sequence

    import pyarrow as pa

    from datapipe.storage.arrays import Int64
    from datapipe.storage.formats.base import Refuse
    from datapipe.storage.limits import Limits

__all__ = ["FrameSource"]

_MOST_ROWS = 65_536


class FrameSource(Source):
    """Rows of a DataFrame, or of a LazyFrame, which is collected.

    Args:
        frame: The rows. It is not changed.
        limits: See `Limits`.
        text_columns: Without effect where a column has a type; one that is null in all rows becomes a string column.

    Raises:
        SourceError: The frame is empty, or a column holds Python objects.
        LimitError: Too many columns or rows.
    """

    format = "frame"
    checks_text = False

    def __init__(self, frame: pl.DataFrame | pl.LazyFrame, *, limits: Limits, text_columns: Sequence[str] = ()) -> None:
        uri = f"<{type(frame).__name__}>"
        data = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
        if not data.height:
            raise SourceError(f"{uri} holds no rows")
        odd = next((name for name, kind in data.schema.items() if kind == pl.Object), None)
        if odd is not None:
            raise SourceError(f"{uri}: column {odd!r} holds Python objects; give it a type first")
        check_rows(data.height, uri=uri, limits=limits)
        check_columns(data.width, uri=uri, limits=limits)
        super().__init__([Place(uri, int(data.estimated_size()), None, uri)], limits=limits)
        self._data = data
        self.rows = data.height
        self.schema = typed_texts(unify([(uri, plain_schema(data.head(0).to_arrow().schema, uri=uri))]), text_columns)

    def digests(self, known: MutableMapping[str, str] | None = None) -> tuple[str, ...]:
        """sha256 of the schema and the digest of each row, in order."""
        found = hashlib.sha256(str(self.schema).encode())
        for batch in self.batches():
            found.update(content_digests(batch.table).astype(">u8").tobytes())
        return (found.hexdigest(),)

    def beside(self, file: int, path: str) -> Place | None:
        """The file of that path, relative to the working directory: the rows of a frame are the caller's own."""
        if "\0" in path:
            return None
        return Place(path, 0, None, str(Path(path).absolute()))

    def _raw(self, file: int, schema: pa.Schema, refuse: Refuse) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        chosen = self._data.select(schema.names)
        size = max(1, int(chosen.estimated_size()))
        step = max(1, min(_MOST_ROWS, BATCH_BYTES * chosen.height // size))
        for start in range(0, chosen.height, step):
            part = chosen.slice(start, step)
            for batch in part.to_arrow().combine_chunks().to_batches():
                yield batch, start + np.arange(batch.num_rows)
