"""Arrow IPC: files (Feather 2) and streams, read through a memory map where they lie on this machine.

messages surveyed (rows, decoded bytes) -> record batches, each checked -> the source's schema

Arrow trusts what a message says. So each batch is validated in full before anything looks at its values, and what
compressed buffers unpack to is read off their headers before they are.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datapipe.errors import SourceError
from datapipe.storage.formats.base import Source, readable
from datapipe.storage.formats.ipc_messages import FILE_MAGIC, survey
from datapipe.storage.formats.parquet_ import typed_texts
from datapipe.storage.formats.structure import check_structure
from datapipe.storage.formats.types import plain_schema, unify
from datapipe.storage.limits import DecodedMeter, check_columns, check_group, check_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapipe.storage.arrays import Int64
    from datapipe.storage.formats.base import Refuse
    from datapipe.storage.formats.place import Place
    from datapipe.storage.limits import Limits

__all__ = ["ArrowSource"]

_FEATHER_1 = b"FEA1"


class ArrowSource(Source):
    """Rows of Arrow IPC files or streams. A compressed record batch is decoded whole.

    Args:
        places: The files.
        limits: See `Limits`; `max_row_group_rows` and `max_row_group_bytes` apply to record batches.
        text_columns: Without effect where a column has a type; one that is null in all files becomes a string column.

    Raises:
        SourceError: A file is no Arrow IPC file, is truncated, or no file holds a row.
        LimitError: A record batch or file exceeds the limits.
    """

    format = "arrow"

    def __init__(self, places: Sequence[Place], *, limits: Limits, text_columns: Sequence[str] = ()) -> None:
        super().__init__(places, limits=limits)
        schemas = []
        rows = 0
        for place in places:
            with readable(place.uri), _opened(place) as stream:
                _refuse_feather_1(stream, place)
                rows += _check_messages(stream, place, limits)
                stream.seek(0)
                schema = _reader(stream, None).schema
                check_columns(_leaves(schema), uri=place.uri, limits=limits)
                schemas.append((place.uri, plain_schema(schema, uri=place.uri)))
        if not rows:
            raise SourceError(f"{self.files[0].uri} holds no rows")
        check_rows(rows, uri=self.files[0].uri, limits=limits)
        self.rows = rows
        self.schema = typed_texts(unify(schemas), text_columns)

    def _raw(self, file: int, schema: pa.Schema, refuse: Refuse) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        place = self._places[file]
        first = 0
        with _opened(place) as stream:
            names = _reader(stream, None).schema.names
            stream.seek(0)
            asked = set(schema.names)
            wanted = [index for index, name in enumerate(names) if name in asked]
            # No index at all would read every column.
            reader = _reader(stream, wanted or [0])
            batches = (
                reader
                if hasattr(reader, "read_next_batch")
                else map(reader.get_batch, range(reader.num_record_batches))
            )
            for batch in batches:
                if batch.num_rows:
                    check_structure(batch, uri=place.uri)
                    yield batch, first + np.arange(batch.num_rows)
                    first += batch.num_rows


@contextmanager
def _opened(place: Place) -> Iterator[Any]:
    if place.filesystem is None:
        with pa.memory_map(place.path) as mapped:
            yield mapped
    else:
        with place.open() as stream:
            yield pa.PythonFile(stream, mode="r")


def _reader(stream: Any, columns: list[int] | None) -> Any:
    options = pa.ipc.IpcReadOptions(included_fields=columns or [])
    head = stream.read(len(FILE_MAGIC))
    stream.seek(0)
    if head.startswith(FILE_MAGIC):
        return pa.ipc.open_file(stream, options=options)
    return pa.ipc.open_stream(stream, options=options)


def _refuse_feather_1(stream: Any, place: Place) -> None:
    if stream.read(len(_FEATHER_1)) == _FEATHER_1:
        raise SourceError(f"{place.uri} is Feather version 1; write it again as Arrow IPC (Feather version 2)")
    stream.seek(0)


def _check_messages(stream: Any, place: Place, limits: Limits) -> int:
    """Hold every record batch against the limits; returns the rows of the file."""
    meter = DecodedMeter(place.uri, place.size, limits)
    rows = 0
    for found in survey(stream, size=place.size):
        check_group(found.rows, found.nbytes, uri=place.uri, limits=limits)
        meter.add(found.nbytes)
        rows += 0 if found.is_dictionary else found.rows
    return rows


def _leaves(schema: pa.Schema) -> int:
    def count(kind: pa.DataType) -> int:
        return sum(count(kind.field(index).type) for index in range(kind.num_fields)) or 1

    return sum(count(field.type) for field in schema)
